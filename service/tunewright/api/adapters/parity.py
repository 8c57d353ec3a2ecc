"""Results of the parity check, as the API shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunewright.wire import Wire

Verdict = Literal["pass", "fail", "no_measurable_effect", "not_checked"]


class RowObject(Wire):
    """A row on which the engine and peft differ."""

    file: str | None = Field(None, description="Its file; null for a text that comes with the service.")
    line: int = Field(description="In its file, from 1.")
    text: str = Field(description="Its beginning, as the model reads it.")
    mean_difference: float = Field(description="Nats.")
    max_difference: float
    reason: str | None = Field(None, description="Set where its prompt differs from the one in training.")


class ForcedObject(Wire):
    """Records that an adapter is served although it was quarantined."""

    at: float
    who: str | None


class ReferenceObject(Wire):
    """How the reference (transformers and peft) was computed."""

    device: str
    dtype: str
    seconds: float


class FourBitObject(Wire):
    """For an adapter of QLoRA: its loss on the same rows on the base in 4 bits, on which it was trained, and in 16
    bits, on which it is served. Nats per token."""

    loss: float = Field(description="On the base in 4 bits.")
    served_loss: float = Field(description="On the base in 16 bits.")
    difference: float = Field(description="served_loss - loss: positive where it is served worse.")


class ParityObject(Wire):
    """What the adapter changes in the engine against what it changes in transformers and peft: the changes in the
    log-probabilities (nats) of some rows' tokens. Null where nothing was measured."""

    verdict: Verdict | None
    reason: str | None = Field(description="The verdict in words, with the numbers that decided it.")
    checked_at: float | None
    measured_as: str | None = Field(
        None, description="The model of equal weights that was measured, where it was not this one."
    )
    check_pending: bool = Field(description="A check was requested and has not ended.")
    rows_from: Literal["validation_file", "training_file", "probes"] | None = Field(
        None, description="The rows of its job; probes: texts that come with the service."
    )
    rows: int | None = None
    tokens: int | None = None
    prompts: int | None = Field(None, description="Prompts whose tokens were compared with training's.")
    slope: float | None = Field(
        None,
        description="Slope of the engine's changes over peft's, rounding taken into account: 1 is right.",
    )
    correlation: float | None = None
    effect: float | None = Field(None, description="Root mean square of peft's changes.")
    noise: float | None = Field(
        None,
        description="Root mean square of the difference between the engine and transformers without the adapter.",
    )
    residual: float | None = Field(
        None, description="Root mean square of the difference between the two changes."
    )
    mean_difference: float | None = None
    max_difference: float | None = None
    top1_agreement: float | None = Field(
        None, description="Share of positions at which both have the same most likely token."
    )
    worst_rows: list[RowObject] = Field(
        default_factory=list, description="The rows that differ most, where it did not pass."
    )
    four_bit: FourBitObject | None = Field(
        None, description="Set where it was trained on the base in 4 bits."
    )
    reference: ReferenceObject | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    forced: ForcedObject | None = None

    @classmethod
    def of(cls, parity: dict[str, Any] | None) -> ParityObject | None:
        if parity is None:
            return None
        known = {key: value for key, value in parity.items() if key in cls.model_fields}
        defaults = {"verdict": None, "reason": None, "checked_at": None}
        return cls(**(defaults | known), check_pending="asked_at" in parity)
