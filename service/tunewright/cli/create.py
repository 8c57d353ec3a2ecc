"""`tunewright jobs create`, and the option types that it shares with `tunewright exports create`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from tunewright.cli.evaluate import evaluate_options
from tunewright.cli.graders import JsonObject
from tunewright.cli.job_commands import JOBS
from tunewright.cli.options import KeyValue, Remote, column_option, examples, on_service, read_template
from tunewright.cli.watch import print_created

P = ParamSpec("P")
R = TypeVar("R")


class LocalOrUploaded(click.ParamType[Any]):
    """A file on this machine, which is uploaded, or the id of one that the service has."""

    name = "PATH|FILE_ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        path = Path(value).expanduser()
        if path.is_file():
            return path
        if value.startswith("file-") and os.sep not in value and not path.suffix:
            return str(value)
        self.fail(f"no such file here, and not the id of an uploaded one: {value}", param, ctx)


class Mixed(click.ParamType[Any]):
    """FILE or FILE=WEIGHT, as (file, weight); without a weight, 1."""

    name = "FILE=WEIGHT"

    def __init__(self, file: click.ParamType[Any]) -> None:
        self._file = file

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, float]:
        if isinstance(value, tuple):
            return value
        name, equals, number = ("", "", "") if Path(value).is_file() else value.rpartition("=")
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            self.fail(f"{value!r}: the part after = must be a number", param, ctx)
        return self._file.convert(name if equals else value, param, ctx), weight


def mix_option(file: click.ParamType[Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add --mix, `data.mix` of a job, as `mix`: weights by file."""
    return click.option(
        "--mix", type=Mixed(file), multiple=True, metavar="FILE[=WEIGHT]",
        callback=lambda _, __, pairs: dict(pairs),
        help="A further file to train on, and how often an epoch has its rows (1: each once); may be repeated, and may "
        "name the first file too, for its weight.",
    )  # fmt: skip


class LocalUploadedOrAuto(LocalOrUploaded):
    """The same, or `auto`."""

    name = "PATH|FILE_ID|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:
        return "auto" if value == "auto" else super().convert(value, param, ctx)


FILE = LocalOrUploaded()
_TYPES = ("lora", "qlora", "full")
METHODS = ("supervised", "dpo", "kto", "orpo", "reward", "reinforcement")
_WITH_BETA = ("dpo", "kto", "orpo")
_FILES = ("training_file", "validation_file")


@click.command(
    epilog=examples(
        "tunewright jobs create --model tunewright-tiny --file train.jsonl --watch",
        "tunewright jobs create --model my-base --file train.jsonl --validation-file valid.jsonl \\",
        "    --type qlora --rank 16 --epochs 2 --suffix support --metadata team=help",
        "tunewright jobs create --model my-base --file pairs.jsonl --method dpo --beta 0.1",
        "tunewright jobs create --model my-base --file judged.jsonl --method kto --desirable-weight 1.5",
        "tunewright jobs create --model my-base --file train.jsonl --then @dpo.json",
        "tunewright jobs create --model my-base --file train.jsonl --evaluate test.jsonl --evaluate-suite mmlu \\",
        "    --evaluate-max-drop accuracy=0.02 --select best",
        "tunewright jobs create --model my-base --file prompts.jsonl --grader @grader.json",
        "tunewright jobs create --model my-base --file file-7aZkQ3vJ0c9yW2mXb4LrTn5e --json | jq -r .id",
    )
)
@click.option("--model", "-m", required=True, help="The base, or a fine-tuned model to continue from.")
@click.option(
    "--file", "-f", "--training-file", "training_file", type=FILE, required=True,
    help="Rows to train on: a file here, which is uploaded, or an uploaded file's id.",
)  # fmt: skip
@mix_option(FILE)
@click.option(
    "--validation-file", type=LocalUploadedOrAuto(),
    help="Held-out rows, for the validation loss; auto: a share of the training file, which is not trained on.",
)  # fmt: skip
@click.option(
    "--validation-share", type=click.FloatRange(0, 0.5, min_open=True),
    help="The share that --validation-file auto holds out.  [default: 0.05]",
)  # fmt: skip
@column_option
@click.option(
    "--type", "tuning_type", type=click.Choice(_TYPES),
    help="lora: an adapter; qlora: one on the 4-bit base; full: all weights.  [default: lora]",
)  # fmt: skip
@click.option(
    # In earlier versions it was the name of --type.
    "--method", type=click.Choice([*METHODS, *_TYPES]), metavar=f"[{'|'.join(METHODS)}]",
    help="supervised: learn the answers; dpo: learn which of two answers is better; kto: learn from answers that are "
    "good or bad; orpo (experimental): learn the better of two answers, and that it is; reward: learn to give the "
    "better of two answers a larger score; reinforcement: learn from what --grader makes of the model's own answers.  "
    "[default: supervised]",
)  # fmt: skip
@click.option(
    "--beta", type=click.FloatRange(0, 100, min_open=True),
    help="Of dpo, kto, reinforcement: how strongly the model is kept near what it was before; of orpo the weight of "
    "the odds.  [default: 0.1; 0 of reinforcement]",
)  # fmt: skip
@click.option(
    "--desirable-weight", type=click.FloatRange(0, 1000, min_open=True),
    help="Of kto: the weight of good answers, where there are fewer of them.  [default: 1]",
)  # fmt: skip
@click.option(
    "--undesirable-weight", type=click.FloatRange(0, 1000, min_open=True),
    help="Of kto: the weight of bad answers, where there are fewer of them.  [default: 1]",
)  # fmt: skip
@click.option("--grader", type=JsonObject(), help="Of reinforcement: what scores the answers.")
@click.option("--epochs", type=click.IntRange(1), help="Times through the file.  [default: chosen]")
@click.option("--batch-size", type=click.IntRange(1), help="Rows for each step.  [default: chosen]")
@click.option(
    "--learning-rate", type=click.FloatRange(0, 1, min_open=True), help="For example 2e-4.  [default: chosen]"
)
@click.option(
    "--lr-scheduler", metavar="TEXT",
    help="A schedule of transformers, such as linear or warmup_stable_decay.  [default: cosine]",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(1), help="Rank of the adapter.  [default: chosen by the rows]")
@click.option(
    "--use-dora", is_flag=True,
    help="Train magnitudes beside the adapter (DoRA). vLLM serves no DoRA: the result is merged to be served.",
)  # fmt: skip
@click.option(
    "--init", metavar="NAME",
    help="How a new adapter begins: gaussian, orthogonal, pissa, pissa_niter_4, pissa_niter_16 or olora. With the last "
    "four the product has twice the rank.  [default: as LoRA's paper]",
)  # fmt: skip
@click.option(
    "--loraplus-lr-ratio", type=click.FloatRange(1, 1000),
    help="LoRA+: the learning rate of the adapter's B is so many times that of A.  [default: the same]",
)  # fmt: skip
@click.option(
    "--neftune-alpha", type=click.FloatRange(0, 1000, min_open=True),
    help="NEFTune: noise of this size in the embeddings of training rows, such as 5.  [default: none]",
)  # fmt: skip
@click.option(
    "--packing", is_flag=True,
    help="Of supervised: rows of a step share sequences, without a view of each other, which saves padding.",
)  # fmt: skip
@click.option(
    "--early-stopping", type=click.IntRange(1), metavar="EVALUATIONS",
    help="End the run when so many evaluations on the held-out rows, one after another, are no better; the model is "
    "the best checkpoint.  [default: never]",
)  # fmt: skip
@click.option(
    "--best-checkpoint", metavar="METRIC",
    help="The model is the checkpoint with the best value of this metric of the held-out rows, such as valid_loss.  "
    "[default: the last state; with --early-stopping the smallest valid_loss]",
)  # fmt: skip
@click.option(
    "--eval-interval", type=click.IntRange(1),
    help="Steps between evaluations on the held-out rows.  [default: at the end of each epoch]",
)  # fmt: skip
@click.option(
    "--gpus", type=click.IntRange(1),
    help="GPUs that train together, each with its part of every batch.  [default: 1]",
)  # fmt: skip
@click.option(
    "--sharding", type=click.Choice(["none", "fsdp"]),
    help="Of --type full on several GPUs: whether they share the weights (fsdp).  [default: fsdp]",
)  # fmt: skip
@click.option(
    "--then", type=JsonObject(), multiple=True,
    help='A job that follows, from the model of the one before, such as {"training_file": "pairs.jsonl", "method": '
    '"dpo"}; files are ones here or ids. May be repeated.',
)  # fmt: skip
@evaluate_options(FILE)
@click.option("--wandb", metavar="PROJECT", help="Report it to this project of Weights & Biases.")
@click.option(
    "--tensorboard", is_flag=True, help="Keep TensorBoard's files with the job: `jobs tensorboard`."
)
@click.option("--mlflow", metavar="EXPERIMENT", help="Report it to this experiment of the server's MLflow.")
@click.option("--suffix", help="Part of the model's name: ft:BASE:SUFFIX:ID.")
@click.option("--seed", type=click.IntRange(0), help="The same seed, files and settings give the same run.")
@click.option("--metadata", type=KeyValue(), multiple=True, help="Kept with the job; may be repeated.")
@click.option(
    "--chat-template-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Jinja template to train and to serve with, in place of the base's own.",
)  # fmt: skip
@click.option(
    "--plan", "show_plan", is_flag=True, help="Show first what it would need and what is advised, and ask."
)
@click.option("--watch", is_flag=True, help="Show its progress until it has ended, as `jobs watch` does.")
@on_service
def create(
    remote: Remote,
    *,
    model: str,
    training_file: str | Path,
    mix: dict[str | Path, float],
    validation_file: str | Path | None,
    validation_share: float | None,
    columns: dict[str, str] | None,
    tuning_type: str | None,
    method: str | None,
    beta: float | None,
    desirable_weight: float | None,
    undesirable_weight: float | None,
    grader: dict[str, Any] | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    lr_scheduler: str | None,
    rank: int | None,
    use_dora: bool,
    init: str | None,
    loraplus_lr_ratio: float | None,
    neftune_alpha: float | None,
    packing: bool,
    early_stopping: int | None,
    best_checkpoint: str | None,
    eval_interval: int | None,
    gpus: int | None,
    sharding: str | None,
    then: tuple[dict[str, Any], ...],
    evaluate: dict[str, Any] | None,
    wandb: str | None,
    tensorboard: bool,
    mlflow: str | None,
    suffix: str | None,
    seed: int | None,
    metadata: tuple[tuple[str, str], ...],
    chat_template_file: Path | None,
    show_plan: bool,
    watch: bool,
) -> int:
    """Start a fine-tuning job and print its id.

    The service chooses the options that are not given; `jobs show` shows them.
    """
    if method in _TYPES:
        if tuning_type:
            raise click.UsageError(
                f"--method {method} is the older form of --type {method}: give --type only"
            )
        method, tuning_type = None, method
    if grader is not None and method not in (None, "reinforcement"):
        raise click.UsageError(f"--grader is for --method reinforcement, not for {method}")
    if grader is None and method == "reinforcement":
        raise click.UsageError("--method reinforcement needs a --grader")
    if beta is not None and method not in _WITH_BETA and grader is None:
        raise click.UsageError(f"--beta is for --method {', '.join(_WITH_BETA)}, and beside --grader")
    options = {
        "type": tuning_type,
        "n_epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": lr_scheduler,
        "rank": rank,
        "use_dora": use_dora or None,
        "init": init,
        "loraplus_lr_ratio": loraplus_lr_ratio,
        "neftune_alpha": neftune_alpha,
        "packing": packing or None,
        "early_stopping": {"patience": early_stopping} if early_stopping else None,
        "best_checkpoint": best_checkpoint,
        "eval_interval": eval_interval,
        "gpus": gpus,
        "sharding": sharding,
        "desirable_weight": desirable_weight,
        "undesirable_weight": undesirable_weight,
    }
    given = {"columns": columns, "validation_share": validation_share}
    data = {name: value for name, value in given.items() if value} or None
    tuning = {name: value for name, value in options.items() if value is not None} or None
    template = read_template(chat_template_file)
    if show_plan:
        ids = {  # uploaded once, for the plan and the job
            file: remote.client.files.upload(file).id if isinstance(file, Path) else file
            for file in (training_file, *mix)
        }
        training_file, mix = ids[training_file], {ids[file]: weight for file, weight in mix.items()}
        plan = remote.client.jobs.plan(
            model,
            training_file,
            tuning=tuning,
            method=method,
            beta=beta,
            chat_template=template,
            data=data,
            mix=mix or None,
            grader=grader,
        )
        for line in str(plan).splitlines():
            remote.out.note(line)
        click.confirm("Create the job?", abort=True, err=True)
    job = remote.client.jobs.create(
        model,
        training_file,
        validation_file,
        tuning=tuning,
        method=method,
        beta=beta,
        data=data,
        suffix=suffix,
        seed=seed,
        metadata=dict(metadata) or None,
        chat_template=template,
        mix=mix or None,
        grader=grader,
        steps=[_step(one) for one in then] or None,
        evaluate=evaluate,
        integrations=_integrations(wandb, tensorboard, mlflow) or None,
    )
    if job.unreported:
        remote.out.note(job.unreported)
    return print_created(remote, JOBS, job, watch)


def _integrations(wandb: str | None, tensorboard: bool, mlflow: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"type": "wandb", "wandb": {"project": wandb}}] if wandb else []
    if tensorboard:
        found.append({"type": "tensorboard"})
    if mlflow:
        found.append({"type": "mlflow", "mlflow": {"experiment": mlflow}})
    return found


def _step(step: dict[str, Any]) -> dict[str, Any]:
    """With paths for the files that are here."""
    return {
        name: FILE.convert(value, None, None)
        if name in ("training_file", "validation_file") and value != "auto"
        else value
        for name, value in step.items()
    }
