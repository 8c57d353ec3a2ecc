"""How far a trained model is from the one before training on general text, and what is too far. Pure."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

GENERAL_TEXT = Path(__file__).parents[1] / "embedded" / "general" / "text.jsonl"
"""A passage in each line."""
BOUND = 2.0
"""Nats per token; docs/decisions/0046 has the measurements behind it."""


def passages() -> list[str]:
    return [json.loads(line)["text"] for line in GENERAL_TEXT.read_text(encoding="utf-8").splitlines()]


class Forgetting(BaseModel):
    """The divergence of a trained model on the general text of the package (`trainer.general_text`)."""

    model_config = ConfigDict(frozen=True)

    kl: float
    """KL(before || now) in nats per token."""
    low: float
    """The lower end of its 95 % interval over passages."""
    high: float
    loss: float
    """Nats per token of the text."""
    loss_before: float
    tokens: int
    bound: float = BOUND
    """That of `kl`, as it was then."""

    @property
    def metrics(self) -> dict[str, float]:
        """As metrics of a step or a checkpoint."""
        return {"general_kl": self.kl, "general_loss": self.loss}

    @property
    def is_beyond(self) -> bool:
        return self.kl > self.bound

    def describe(self) -> str:
        return (
            f"On general text the model is {self.kl:.3f} nats per token ({self.low:.3f} to {self.high:.3f}) from what "
            f"it was before training; its loss there is {self.loss:.3f}, and was {self.loss_before:.3f}"
        )


def has_forgotten(found: Forgetting) -> str | None:
    """A warning where the divergence is beyond the bound."""
    if not found.is_beyond:
        return None
    return (
        f"The model has gone {found.kl:.2f} nats per token from what it was before training on text that has nothing "
        f"to do with the data, which is more than {found.bound:g}: it will have forgotten much. Lower the learning "
        "rate or the number of epochs, or use an earlier checkpoint, whose metrics have its general_kl."
    )
