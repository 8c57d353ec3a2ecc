"""The data of a job: its files, tokenized by this run, an earlier one, or another job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tunewright.jobs.folder import EventLog, JobFolder
from tunewright.plan.pitfalls import rows_cut
from tunewright.rows.cache import TokenCache, cache_key, file_sha256
from tunewright.rows.reading import Reading
from tunewright.rows.tokenized import TokenizedFile, tokenize_file
from tunewright.rows.totals import Totals
from tunewright.trainer.spec import TrainingSpec


def tokenized_files(
    folder: JobFolder, spec: TrainingSpec, tokenizer: PreTrainedTokenizerBase, beat: Callable[[], None]
) -> tuple[TokenizedFile, TokenizedFile | None]:
    """The training file and, where the job has one, the validation file. `beat` is called as the work goes on. Raises
    TrainingFailed."""
    cache = TokenCache(Path(spec.token_cache) if spec.token_cache is not None else folder.token_cache)

    def tokenized(file: str, reading: Reading, sha256: str | None, what: str) -> TokenizedFile:
        tuning = spec.tuning
        source = sha256 or file_sha256(Path(file), beat)
        key = cache_key(
            source,
            Path(spec.base_path),
            reading=reading,
            chat_template=spec.chat_template,
            max_length=tuning.max_length,
            truncation=tuning.truncation,
            trust_remote_code=spec.trust_remote_code,
        )
        return tokenize_file(
            Path(file),
            tokenizer,
            tuning.max_length,
            cache=cache,
            key=key,
            source=source,
            reading=reading,
            truncation=tuning.truncation,
            what=what,
            on_row=beat,
        )

    training = tokenized(spec.training_file, spec.reading, spec.training_sha256, "training_file")
    if spec.validation_file is None:
        return training, None
    return training, tokenized(
        spec.validation_file, spec.validation_reading, spec.validation_sha256, "validation_file"
    )


def tell_data(events: EventLog, totals: Totals) -> None:
    """Tell the events what is trained on, and warn of what is cut."""
    events.message(f"Training data: {totals.describe()}")
    if cut := rows_cut(totals.truncated, totals.examples + totals.dropped, totals.max_length):
        events.message(cut, level="warn", data={"code": "rows_cut"})
