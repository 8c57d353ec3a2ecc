"""Why each default of `plan.defaults` is what it is, and where that is from."""

from __future__ import annotations

_QLORA = "QLoRA (Dettmers et al. 2023)"
_LEARNS_LESS = "LoRA learns less and forgets less (Biderman et al. 2024)"
_HERE = "docs/reference/training-defaults.md"
MEMORY_MODEL = "docs/decisions/0025-the-memory-model.md"

REASONS = {
    "learning_rate": ("2e-4 for adapters, 2e-5 for all weights, which move from a good place", _QLORA),
    "n_epochs": ("three to five passes are enough for instructions; more learn the rows by heart", _HERE),
    "batch_size": ("32 to 128 rows a step: fewer are noisy; small files have smaller ones", _HERE),
    "per_device_batch_size": ("rows at a time; the rest is accumulated, which takes no more memory", _HERE),
    "gradient_accumulation_steps": ("batch_size over per_device_batch_size", _HERE),
    "max_length": ("2048 tokens or the context; longer rows are cut", _HERE),
    "rank": ("by the number of rows, up to what the engine serves", _HERE),
    "alpha": ("twice the rank", _LEARNS_LESS),
    "target_modules": ("all linear layers learn more than attention alone", _LEARNS_LESS),
    "dataloader_workers": (
        "2 on a GPU, which then does not wait for rows; on the CPU the steps take all cores",
        _HERE,
    ),
    "gradient_checkpointing": ("off on the CPU, where time is scarcer than memory", _HERE),
    "torch_compile": ("on where a run is long enough: a fifth less time a step, after a longer start", _HERE),
    "warmup_ratio": ("a short warm-up, before the optimizer's moments are known", _HERE),
    "lr_scheduler_type": ("cosine ends in small steps", _HERE),
    "max_grad_norm": ("limits what one odd row does", _HERE),
    "weight_decay": ("none: few epochs do not need it", _HERE),
    "dropout": ("none: few epochs do not need it", _HERE),
    "gpus": ("one: jobs on one GPU wait for no other; more share every batch, and take less time", _HERE),
    "sharding": ("what one GPU has room for is not shared; full tuning on several GPUs is (FSDP)", _HERE),
    "quantization": ("NF4 with double quantization", _QLORA),
}
"""(reason, source) by the name of the option."""

_DPO = "DPO (Rafailov et al. 2023)"
_KTO = "KTO (Ethayarajh et al. 2024)"
_ZEPHYR = "Zephyr (Tunstall et al. 2023) and its alignment handbook"
OF_METHOD = {
    "dpo": {
        "learning_rate": (
            "5e-6 for adapters, 5e-7 for all weights: a fortieth of supervised: the model stays near its reference",
            _ZEPHYR,
        ),
        "n_epochs": ("one pass over many pairs; three over fewer than 1,000, which make few steps", _HERE),
        "per_device_batch_size": ("pairs at a time, of two sequences each; the rest is accumulated", _HERE),
        "beta": ("as the paper's experiments: more keeps the model nearer to the reference", _DPO),
        "loss_type": ("the loss of the paper", _DPO),
        "label_smoothing": ("what the paper of the loss recommends", _HERE),
    },
    "kto": {
        "learning_rate": (
            "5e-6 for adapters, 5e-7 for all weights: with a beta of 0.1 more than 1e-6 rarely works for all weights",
            "TRL's documentation of KTOTrainer",
        ),
        "n_epochs": ("one pass over many rows; three over fewer than 1,000, which make few steps", _HERE),
        "per_device_batch_size": ("rows at a time, at least two, whose answers are exchanged", _KTO),
        "beta": ("as the paper's experiments: more keeps the model nearer to the reference", _KTO),
        "desirable_weight": ("good answers count as they are", _KTO),
        "undesirable_weight": ("bad answers count as they are", _KTO),
    },
    "orpo": {
        "learning_rate": ("8e-5 for adapters, 8e-6 for all weights", "TRL's script for ORPO"),
        "n_epochs": ("one pass over many pairs; three over fewer than 1,000, which make few steps", _HERE),
        "per_device_batch_size": ("pairs at a time, of two sequences each; the rest is accumulated", _HERE),
        "beta": ("the weight of the odds beside the loss of the good answer", "ORPO (Hong et al. 2024)"),
    },
    "reward": {
        "learning_rate": ("1e-4 for adapters, 1e-5 for all weights", "TRL's scripts for reward models"),
        "n_epochs": ("one pass over many pairs; three over fewer than 1,000, which make few steps", _HERE),
        "per_device_batch_size": ("pairs at a time, of two sequences each; the rest is accumulated", _HERE),
    },
    "reinforcement": {
        "learning_rate": ("1e-5 for adapters, 1e-6 for all weights: rewards are noisy", "TRL's GRPOConfig"),
        "batch_size": ("up to 8 prompts a step, each with num_generations answers", _HERE),
        "per_device_batch_size": (
            "a prompt at a time, with all of its answers; the rest is accumulated",
            _HERE,
        ),
        "beta": (
            "0: no reference; more keeps the model nearer to what it was before",
            "DAPO (Yu et al. 2025)",
        ),
        "algorithm": ("answers are compared with the mean of their group", "GRPO (Shao et al. 2024)"),
        "num_generations": ("8 answers to a prompt are compared with each other", "TRL's GRPOConfig"),
        "max_completion_length": ("256 tokens, at most half of max_length", "TRL's GRPOConfig"),
        "temperature": ("as the model samples by itself", "TRL's GRPOConfig"),
        "sampling": (
            "the engine where it can and the job is on a GPU; on the CPU the trainer is faster",
            _HERE,
        ),
    },
}
"""The same of what a method has of its own, or has for other reasons."""

_WITHOUT = "without it {rows} x {length} tokens at a time need {needed:.1f} GiB"
CHECKPOINTING = {
    "fits": f"off, which is faster: {_WITHOUT}, and {{available:.1f}} GiB less a margin of {{margin:.1f}} are there",
    "does not fit": f"on: {_WITHOUT}, and only {{available:.1f}} GiB less a margin of {{margin:.1f}} are there",
    "unknown": "on: whether the run fits without it is not known",
    "not counted": "on: what DoRA or a mixture of experts needs without it is not counted",
}
"""Why `gradient_checkpointing` is what it is on a GPU (`plan.fitting`)."""
