"""The training methods, by OpenAI's names or TRL's: what of the defaults and of the plan depends on them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MethodName = Literal["supervised", "dpo", "kto", "orpo", "reward", "reinforcement"]


@dataclass(frozen=True)
class Method:
    """What is different about a method. Learning rates are by tuning type."""

    learning_rates: Mapping[str, float]
    rate_ranges: Mapping[str, tuple[float, float]]
    """Learning rates outside which the method rarely works."""
    epochs: int
    epochs_of_few: int
    """Of fewer rows than `FEW_ROWS`."""
    sequences: int = 1
    """What passes through the model of each row: of a pair both answers, each with the prompt."""
    has_reference: bool = False
    """Whether each step also asks a reference model, which does not change."""
    generates: bool = False
    """Whether the answers are made while it trains: rows are prompts, and what a step costs is not known before."""
    learns_prompts: bool = False
    """Whether prompts are learnt too."""
    has_mismatched: bool = False
    """Whether each step also asks for each answer behind another prompt, without learning from it."""
    scores: bool = False
    """Whether the product is a whole model that gives an answer a score, and writes none."""
    compiles: bool = False
    """Whether layers are compiled where it pays: only where that was measured (docs/performance.md)."""
    on_several_gpus: bool = False
    """Whether several GPUs can train together."""

    @property
    def least_at_a_time(self) -> int:
        """Rows at a time, which exchange their answers where answers are mismatched."""
        return 2 if self.has_mismatched else 1


FEW_ROWS = 1000
METHODS: Mapping[str, Method] = {
    "supervised": Method(
        learning_rates={"lora": 2e-4, "qlora": 2e-4, "full": 2e-5},
        rate_ranges={"lora": (5e-5, 5e-4), "qlora": (5e-5, 5e-4), "full": (1e-6, 5e-5)},
        epochs=3,
        epochs_of_few=3,
        compiles=True,
        on_several_gpus=True,
    ),
    "dpo": Method(
        learning_rates={"lora": 5e-6, "qlora": 5e-6, "full": 5e-7},
        rate_ranges={"lora": (1e-6, 1e-4), "qlora": (1e-6, 1e-4), "full": (1e-7, 5e-6)},
        epochs=1,
        epochs_of_few=3,
        sequences=2,
        has_reference=True,
        on_several_gpus=True,
    ),
    "kto": Method(
        learning_rates={"lora": 5e-6, "qlora": 5e-6, "full": 5e-7},
        rate_ranges={"lora": (1e-6, 1e-4), "qlora": (1e-6, 1e-4), "full": (1e-7, 5e-6)},
        epochs=1,
        epochs_of_few=3,
        has_reference=True,
        has_mismatched=True,
    ),
    "orpo": Method(
        learning_rates={"lora": 8e-5, "qlora": 8e-5, "full": 8e-6},
        rate_ranges={"lora": (1e-5, 5e-4), "qlora": (1e-5, 5e-4), "full": (1e-6, 5e-5)},
        epochs=1,
        epochs_of_few=3,
        sequences=2,
        learns_prompts=True,
    ),
    "reward": Method(
        learning_rates={"lora": 1e-4, "qlora": 1e-4, "full": 1e-5},
        rate_ranges={"lora": (1e-5, 5e-4), "qlora": (1e-5, 5e-4), "full": (1e-6, 5e-5)},
        epochs=1,
        epochs_of_few=3,
        sequences=2,
        scores=True,
    ),
    "reinforcement": Method(
        learning_rates={"lora": 1e-5, "qlora": 1e-5, "full": 1e-6},
        rate_ranges={"lora": (1e-6, 1e-4), "qlora": (1e-6, 1e-4), "full": (1e-7, 1e-5)},
        epochs=1,
        epochs_of_few=3,
        generates=True,
    ),
}

NUM_GENERATIONS = 8
"""Answers to a prompt that are compared with each other, where `compute_multiplier` is 1; TRL's default."""
MAX_COMPLETION_LENGTH = 256
PROMPTS = 8
"""Of a step of reinforcement: each has several answers."""

BETA = 0.1
ANSWER_WEIGHT = 1.0
"""Of the losses of good answers and of bad ones, in kto."""
GOOD_TO_BAD = (1.0, 4 / 3)
"""Between these the good answers' share of all weights should be to the bad ones' (equation 8 of the paper of kto)."""
LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "sigmoid_norm",
]  # fmt: skip
"""TRL's losses of which each looks at one pair. Not among them: `sft`, which compares nothing, and `aot` and
`aot_unpaired`, which sort the pairs that are computed at a time, so that their number would change the result."""
LOSS_TYPE = "sigmoid"
LABEL_SMOOTHING = {"robust": 0.1, "exo_pair": 1e-3}
"""The losses that smooth labels, and the default of each: what its paper recommends (Chowdhury et al. 2024, Ji et al.
2024)."""
