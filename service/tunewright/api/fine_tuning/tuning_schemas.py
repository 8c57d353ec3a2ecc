"""Tunewright's own options of a job, `tuning`, beside OpenAI's `method`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from tunewright.api.fine_tuning.method_schemas import Auto
from tunewright.errors import UnsupportedFeature
from tunewright.plan.initializations import InitName
from tunewright.plan.methods import LossType
from tunewright.plan.schedulers import SchedulerName
from tunewright.plan.stopping import StoppingMetric
from tunewright.wire import Body

SchedulerOption = Annotated[float, Field(strict=True, ge=0, le=1e9)]
Rate = Annotated[float, Field(strict=True, gt=0, le=1)]


class EarlyStopping(Body):
    """When a run ends early, as transformers' EarlyStoppingCallback."""

    metric: Auto | StoppingMetric = Field(
        "auto",
        description="Of an evaluation on the held-out rows: valid_loss by default, valid_reward with reinforcement. "
        "Which there are depends on the method.",
    )
    patience: Annotated[int, Field(strict=True, ge=1, le=1000)] = Field(
        1, description="The run ends when so many evaluations one after another have not improved."
    )
    min_delta: Annotated[float, Field(strict=True, ge=0, le=1e6)] = Field(
        0.0, description="The metric has improved where it is better than the best before by more than this."
    )


class Tuning(Body):
    """Tunewright's own options; they win over OpenAI's hyperparameters. `auto` or absent: chosen, then shown."""

    type: Literal["auto", "lora", "qlora", "full"] = Field(
        "auto",
        description="auto: lora, or qlora on a GPU that lora does not fit. qlora: on the NF4 form of the "
        "base. full: all weights.",
    )
    rank: Auto | Annotated[int, Field(strict=True, ge=1, le=512)] = "auto"
    alpha: Auto | Annotated[float, Field(strict=True, gt=0, le=4096)] = Field(
        "auto", description="Twice the rank by default."
    )
    dropout: Auto | Annotated[float, Field(strict=True, ge=0, lt=1)] = "auto"
    target_modules: Auto | Literal["all-linear"] | Annotated[list[str], Field(max_length=512)] = Field(
        "auto", description="Names of the modules to adapt; all-linear by default."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) (Kalajdzievski 2023).")
    use_dora: bool = Field(
        False,
        description="DoRA (Liu 2024): magnitudes are trained beside the adapter. vLLM serves no DoRA: the result is "
        "merged to be served (`POST /v1/exports`).",
    )
    init: Auto | InitName = Field(
        "auto",
        description="How a new adapter begins, by peft's name; as LoRA's paper by default. pissa (Meng et al. 2024; "
        "_niter_4 or _niter_16: much faster and nearly the same) and olora (Buyukakyuz 2024) take what they begin with "
        "out of the base, so that the product has twice the rank: the engine has to serve that.",
    )
    loraplus_lr_ratio: Auto | Annotated[float, Field(strict=True, ge=1, le=1000)] = Field(
        "auto",
        description="LoRA+ (Hayou et al. 2024): the learning rate of the adapter's B is so many times that of A; 16 is "
        "the paper's advice. The same by default.",
    )
    gradient_checkpointing: Auto | Annotated[bool, Field(strict=True)] = Field(
        "auto",
        description="Compute activations again in the backward pass: much less memory, a quarter to a third more time. "
        "auto: on a GPU.",
    )
    torch_compile: Auto | Annotated[bool, Field(strict=True)] = Field(
        "auto",
        description="Compile the layers with torch.compile: about a fifth less time a step and less memory, after 15 "
        "to 60 s at the start of each process. auto: on a GPU, with the method supervised, where a run is long enough.",
    )
    learning_rate: Auto | Rate = Field(
        "auto",
        description="2e-4 for lora and qlora, 2e-5 for full; with the methods dpo and kto 5e-6 and 5e-7, with orpo "
        "8e-5 and 8e-6, with reward 1e-4 and 1e-5, with reinforcement 1e-5 and 1e-6.",
    )
    n_epochs: Auto | Annotated[int, Field(strict=True, ge=1, le=1000)] = "auto"
    batch_size: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = Field(
        "auto", description="Rows per optimizer step."
    )
    per_device_batch_size: Auto | Annotated[int, Field(strict=True, ge=1, le=4096)] = Field(
        "auto",
        description="Most rows at a time; the largest divisor of `batch_size` up to it is used, and the rest is "
        "accumulated.",
    )
    max_length: Auto | Annotated[int, Field(strict=True, ge=8, le=1_048_576)] = Field(
        "auto", description="Largest length of a row in tokens; 2048 or the model's context by default."
    )
    truncation: Literal["truncate", "refuse", "split"] = Field(
        "truncate",
        description="Cut rows that are longer than `max_length`, or fail the job and name them. split: texts without a "
        "prompt become several examples, so that nothing of them is lost; other rows are cut.",
    )
    group_by_length: bool = Field(
        False,
        description="Make batches of rows of about the same length, which saves padding where few rows are long.",
    )
    packing: Auto | Annotated[bool, Field(strict=True)] = Field(
        "auto",
        description="Of supervised: rows of a step share sequences, without a view of each other, which saves padding. "
        "What is learnt is the same. Off by default.",
    )
    dataloader_workers: Auto | Annotated[int, Field(strict=True, ge=0, le=32)] = Field(
        "auto",
        description="Processes that read rows beside the steps: 2 on a GPU, none on the CPU by default.",
    )
    warmup_ratio: Auto | Annotated[float, Field(strict=True, ge=0, le=1)] = "auto"
    lr_scheduler_type: Auto | SchedulerName = Field(
        "auto", description="A schedule of transformers by its name there; cosine by default."
    )
    lr_scheduler_kwargs: Auto | Annotated[dict[str, SchedulerOption], Field(max_length=8)] = Field(
        "auto",
        description="Options of the schedule by their names in transformers, such as "
        '`{"min_lr_rate": 0.1}` of cosine_with_min_lr.',
    )
    max_grad_norm: Auto | Annotated[float, Field(strict=True, gt=0, le=1000)] = "auto"
    weight_decay: Auto | Annotated[float, Field(strict=True, ge=0, le=1)] = "auto"
    neftune_alpha: Auto | Annotated[float, Field(strict=True, gt=0, le=1000)] = Field(
        "auto",
        description="Of supervised: NEFTune (Jain et al. 2023), noise in the embeddings of training rows; 5 is usual. "
        "None by default.",
    )
    loss_type: Auto | LossType = Field(
        "auto", description="Of dpo: TRL's name for the loss, such as ipo or robust; sigmoid by default."
    )
    label_smoothing: Auto | Annotated[float, Field(strict=True, gt=0, lt=0.5)] = Field(
        "auto",
        description="Of dpo with the losses robust (0.1 by default) and exo_pair (0.001): the share of pairs that are "
        "taken to be the wrong way round.",
    )
    eval_interval: Auto | Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        "auto",
        description="Steps between evaluations on the held-out rows, beside one after the last step; at the end of "
        "each epoch by default.",
    )
    early_stopping: Auto | EarlyStopping = Field(
        "auto",
        description="End the run when a metric of the held-out rows gets no better; the model is the best checkpoint. "
        "Never by default.",
    )
    best_checkpoint: Auto | StoppingMetric = Field(
        "auto",
        description="The model is the checkpoint with the best value of this metric of the held-out rows. By default "
        "the last state, or with `early_stopping` the best by its metric.",
    )
    gpus: Auto | Annotated[int, Field(strict=True, ge=1, le=64)] = Field(
        "auto",
        description="GPUs that train together, each in a process of its own with its part of every batch; 1 by "
        "default. They have to share `batch_size` evenly. On the CPU: processes, up to `--cpu-processes`.",
    )
    sharding: Literal["auto", "none", "fsdp", "zero2", "zero3"] = Field(
        "auto",
        description="fsdp: with type full, weights, gradients and optimizer are shared between the `gpus` (FSDP2). "
        "none: each has all of it (DDP). auto: fsdp for full. zero2 and zero3 are DeepSpeed's, and refused.",
    )
    algorithm: Literal["auto", "grpo", "rloo"] = Field(
        "auto",
        description="Of reinforcement: grpo (Shao et al. 2024) compares an answer with all answers to its prompt, rloo "
        "(Ahmadian et al. 2024) with the others; grpo by default.",
    )
    num_generations: Auto | Annotated[int, Field(strict=True, ge=2, le=256)] = Field(
        "auto",
        description="Of reinforcement: answers to each prompt, which are compared with each other; 8 by default.",
    )
    max_completion_length: Auto | Annotated[int, Field(strict=True, ge=1, le=1_048_576)] = Field(
        "auto",
        description="Of reinforcement: largest length of an answer in tokens, 256 by default; a prompt has at most "
        "`max_length` less these.",
    )
    temperature: Auto | Annotated[float, Field(strict=True, gt=0, le=2)] = Field(
        "auto", description="Of reinforcement: of the answers in training; 1 by default."
    )
    sampling: Literal["auto", "engine", "trainer"] = Field(
        "auto",
        description="Of reinforcement: what makes the answers in training. engine: the one that serves the base, below "
        "live traffic, for lora with grpo at temperature 1; the job fails where it makes none for 30 minutes. trainer: "
        "the job's own process. auto: the engine where that is possible and the job is on a GPU, else the trainer, "
        "which also makes them while the engine cannot.",
    )
    desirable_weight: Auto | Annotated[float, Field(strict=True, gt=0, le=1000)] = Field(
        "auto", description="Of kto: the weight of the losses of good answers; 1 by default."
    )
    undesirable_weight: Auto | Annotated[float, Field(strict=True, gt=0, le=1000)] = Field(
        "auto", description="Of kto: the weight of the losses of bad answers; 1 by default."
    )
    force: bool = Field(False, description="Create the job even where it does not fit this machine's GPU.")

    @field_validator("target_modules")
    @classmethod
    def _check_modules(cls, value: object) -> object:
        if isinstance(value, list) and not (value and all(name.strip() for name in value)):
            raise ValueError("name at least one module")
        return value

    @field_validator("sharding")
    @classmethod
    def _refuse_deepspeed(cls, value: str) -> str:
        if value.startswith("zero"):
            raise UnsupportedFeature(
                f"tuning.sharding {value} is DeepSpeed's, which is not part of Tunewright: use fsdp, which shares the "
                "same between GPUs.",
                param="tuning.sharding",
            )
        return value
