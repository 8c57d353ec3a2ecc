"""The data of a job: its files, tokenized by this run, an earlier one, or another job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tunewright.jobs.failure import TrainingFailed
from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.plan.defaults import Resolved
from tunewright.plan.methods import METHODS
from tunewright.plan.pitfalls import labels_unbalanced, rows_cut, rows_padded
from tunewright.rows.cache import TokenCache, cache_key, file_sha256
from tunewright.rows.mixture import EpochOrder, Mixture, Part
from tunewright.rows.reading import Reading
from tunewright.rows.tokenized import NothingUsable, TokenizedFile, tokenize_file
from tunewright.trainer.spec import TrainingSpec


def tokenized_files(
    folder: JobFolder, spec: TrainingSpec, tokenizer: PreTrainedTokenizerBase, beat: Callable[[], None]
) -> tuple[Mixture, Mixture | None]:
    """What is trained on and, where rows are held out, these. `beat` is called as the work goes on. Raises
    TrainingFailed."""
    cache = TokenCache(Path(spec.token_cache) if spec.token_cache is not None else folder.token_cache)

    def tokenized(file: str, reading: Reading, sha256: str | None, what: str) -> TokenizedFile:
        tuning = spec.tuning
        longest, truncation = tuning.max_length, tuning.truncation
        if METHODS[
            tuning.method
        ].generates:  # what is left is for the answer, and half a prompt asks something else
            longest, truncation = longest - (tuning.max_completion_length or 0), "refuse"
        source = sha256 or file_sha256(Path(file), beat)
        key = cache_key(
            source,
            Path(spec.base_path),
            reading=reading,
            chat_template=spec.chat_template,
            max_length=longest,
            truncation=truncation,
            trust_remote_code=spec.trust_remote_code,
        )
        try:
            return tokenize_file(
                Path(file),
                tokenizer,
                longest,
                cache=cache,
                key=key,
                source=source,
                reading=reading,
                truncation=truncation,
                what=what,
                on_row=beat,
            )
        except TrainingFailed as error:
            if error.code == "row_too_long" and METHODS[tuning.method].generates:
                raise TrainingFailed(error.code, _prompts_too_long(str(error))) from error
            raise

    def further(reading: Reading, what: str) -> Iterator[Part]:
        for one in spec.further_files:
            name = Path(one.file).name
            try:
                yield Part(name, tokenized(one.file, reading, one.sha256, what), one.weight)
            except NothingUsable:
                if what == "training_file":
                    raise
                # so few rows that none is held out
            except TrainingFailed as error:
                raise TrainingFailed(error.code, f"{name}: {error}") from error

    name = Path(spec.training_file).name
    first = Part(
        name, tokenized(spec.training_file, spec.reading, spec.training_sha256, "training_file"), spec.weight
    )
    training = Mixture([first, *further(spec.reading, "training_file")], spec.seed)
    if spec.validation_file is None:
        return training, None
    held_out = [
        Part(
            Path(spec.validation_file).name,
            tokenized(
                spec.validation_file, spec.validation_reading, spec.validation_sha256, "validation_file"
            ),
        )
    ]
    if spec.validation_reading.part == "held_out":
        held_out += [
            replace(part, weight=1.0) for part in further(spec.validation_reading, "validation_file")
        ]
    return training, Mixture(held_out, spec.seed)


def _prompts_too_long(message: str) -> str:
    """The message for prompts, which are not cut."""
    return (
        f"{message.partition(' Shorten')[0]} Shorten the prompts, raise tuning.max_length (up to the base's context), "
        "or lower tuning.max_completion_length, which is left for the answer"
    )


def tell_data(events: EventLog, training: Mixture, tuning: Resolved) -> None:
    """Tell the events what is trained on, of each file where there are several, and warn of what is cut and of batches
    that are mostly padding."""
    epochs = tuning.n_epochs
    for number, part in enumerate(training.parts):
        totals = part.totals
        if len(training.parts) == 1 and training.is_plain:
            events.message(f"Training data: {totals.describe()}")
        else:
            tokens = training.tokens_of(number, epochs)
            events.message(
                f"Training data, {part.name} with the weight {part.weight:g}: {totals.describe()}; an epoch has "
                f"{part.drawn} of {totals.examples} examples, all {epochs} epochs {tokens} tokens of it",
                data={
                    "file": part.name,
                    "weight": part.weight,
                    "rows": totals.rows,
                    "examples": part.drawn,
                    "tokens": tokens,
                },
            )
        if cut := rows_cut(totals.truncated, totals.examples + totals.dropped, totals.max_length):
            events.message(cut, level="warn", data={"code": "rows_cut"})
    if METHODS[tuning.method].generates:
        return
    if tuning.desirable_weight is not None and tuning.undesirable_weight is not None:
        good = sum(round(part.weight * (part.totals.good or 0)) for part in training.parts)
        bad = sum(part.drawn for part in training.parts) - good
        weights = (tuning.desirable_weight, tuning.undesirable_weight)
        if unbalanced := labels_unbalanced(good, bad, *weights):
            events.message(unbalanced, level="warn", data={"code": "labels_unbalanced"})
    at_a_time = tuning.per_device_batch_size * METHODS[tuning.method].sequences
    padding = training.shape().padding(at_a_time, tuning.max_length)
    if padded := rows_padded(padding, tuning.group_by_length or tuning.packing):
        events.message(padded, level="warn", data={"code": "rows_padded"})


def epoch_order(training: Mixture, tuning: Resolved) -> EpochOrder | None:
    """The order of the examples; None: the Trainer's own, each once in an epoch, by chance."""
    if training.is_plain and not tuning.group_by_length:
        return None
    return EpochOrder(training, tuning.rows_together if tuning.group_by_length else None)
