"""Choices of people between answers, and what comes of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunewright.wire import Body, Text, Wire

MOST_RATINGS = 20_000


class RatingBody(Body):
    """A person's choice."""

    id: Annotated[str, Field(min_length=1, max_length=64, description="The id of the pair.")]
    choice: Literal["a", "b", "tie"]


class RatePairs(Body):
    """Choices of one person; they replace the person's earlier ones of the same pairs."""

    rater: Text = Field(min_length=1, max_length=128, description="Who has chosen.")
    ratings: Annotated[list[RatingBody], Field(min_length=1, max_length=MOST_RATINGS)]


class RatedModelObject(Wire):
    """What people have preferred: the evaluated model or another one."""

    against: str
    rows: int = Field(description="Rows that were rated.")
    ratings: int = Field(description="Choices of all people.")
    wins: int = Field(description="Choices of the evaluated model.")
    ties: int
    losses: int
    win_rate: float = Field(description="A tie is half a win; a row counts once, however many have rated it.")
    low: float = Field(description="The lower end of its 95 % interval over rows.")
    high: float
    p_value: float = Field(description="Of the hypothesis that neither is preferred.")
    conclusion: Literal["better", "worse", "no_difference_seen"]


class AgreementObject(Wire):
    """How two agree about the pairs that both have rated."""

    first: str
    second: str = Field(description="Another person, or the judge.")
    rows: int
    agreement: float = Field(description="The share of the pairs that both rate alike.")
    kappa: float | None = Field(description="Cohen's: 0 is as good as chance, 1 always.")


class RatingsObject(Wire):
    """What people have chosen of the pairs of an evaluation."""

    object: Literal["evaluation.ratings"] = "evaluation.ratings"
    evaluation: str
    model: str = Field(description="The evaluated model.")
    raters: list[str]
    models: list[RatedModelObject] = Field(
        description="Those with which it was compared, and that were rated."
    )
    agreement: list[AgreementObject]
    model_config = ConfigDict(protected_namespaces=())
