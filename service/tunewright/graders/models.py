"""The grader objects of OpenAI's API, and two of our own: `regex` and `json_schema`.

What is checked here is cheap. What takes time on bad input (patterns, schemas, code) is checked by `checking.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from tunewright.graders import formula
from tunewright.graders.json_values import LONGEST_SCHEMA, check_json
from tunewright.graders.similarity import METRICS
from tunewright.graders.templates import Reference, references
from tunewright.wire import Body

MOST_GRADERS, MOST_INPUTS = 16, 32
ONE, BY_NAME = "one grader", "graders by name"
_METRICS = ("fuzzy_match", "bleu", "gleu", *(f"rouge_{n}" for n in range(1, 6)), "rouge_l")
assert set(_METRICS) == METRICS.keys()


def _check_references(text: str) -> str:
    for _ in references(text):
        pass
    return text


Name = Annotated[str, Field(min_length=1, max_length=64)]
Template = Annotated[str, Field(max_length=65_536), AfterValidator(_check_references)]
"""A text with references such as `{{ item.answer }}` and `{{ sample.output_text }}`."""
_ANSWER = "{{ sample.output_text }}"


class StringCheckGrader(Body):
    """1 where the comparison holds, else 0."""

    type: Literal["string_check"]
    name: Name
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"] = Field(
        description="eq, ne: the same or not; like: `input` contains `reference`; ilike: whatever the case."
    )


class TextSimilarityGrader(Body):
    """How near `input` is to `reference`, from 0 to 1."""

    type: Literal["text_similarity"]
    name: Name
    input: Template
    reference: Template
    evaluation_metric: Literal[
        "fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
    ] = Field(description="OpenAI's cosine and meteor are not offered.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, value: object) -> object:
        metric = value.get("evaluation_metric") if isinstance(value, dict) else None
        if metric == "cosine":
            raise ValueError(
                "evaluation_metric cosine is not offered: it compares embeddings of a model of OpenAI's"
            )
        if metric == "meteor":
            raise ValueError("evaluation_metric meteor is not offered: it needs the data of WordNet")
        return value


class InputText(Body):
    """A part of a message's content."""

    type: Literal["input_text", "output_text"]
    text: Template


class ModelInput(Body):
    """A message to the model that grades."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | Annotated[list[Template | InputText], Field(max_length=MOST_INPUTS)] = Field(
        description="Text; images and audio are not offered."
    )
    type: Literal["message"] | None = None

    @property
    def texts(self) -> list[str]:
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part if isinstance(part, str) else part.text for part in parts]


class SamplingParams(Body):
    """How the model that grades samples its answer."""

    max_completions_tokens: Annotated[int, Field(strict=True, ge=1, le=4096)] | None = None
    reasoning_effort: Literal["none"] | None = Field(None, description="Nothing else is offered.")
    seed: Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None


class ScoreModelGrader(Body):
    """The score that a model gives, which is served here."""

    type: Literal["score_model"]
    name: Name
    model: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        description="A base, a fine-tuned model, a deployment or an alias of this service."
    )
    input: Annotated[list[ModelInput], Field(min_length=1, max_length=MOST_INPUTS)]
    range: (
        Annotated[list[Annotated[float, Field(ge=-1e6, le=1e6)]], Field(min_length=2, max_length=2)] | None
    ) = Field(None, description="The least and the largest score; [0, 1] by default.")
    sampling_params: SamplingParams | None = None

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range has its least score first: [0, 1]")
        return self


class PythonGrader(Body):
    """What the function `grade(sample, item)` of a program returns."""

    type: Literal["python"]
    name: Name
    source: Annotated[str, Field(min_length=1, max_length=65_536)]
    image_tag: str | None = Field(None, max_length=64, description="Not offered; must be null.")

    @model_validator(mode="after")
    def _refuse_images(self) -> Self:
        if self.image_tag is not None:
            raise ValueError(
                "image_tag is not offered: graders run in the service's own Python; leave it out"
            )
        return self


class RegexGrader(Body):
    """Tunewright's own: 1 where the pattern is found, else 0."""

    type: Literal["regex"]
    name: Name
    pattern: Annotated[str, Field(min_length=1, max_length=4096)] = Field(description="In Python's syntax.")
    input: Template = _ANSWER
    match: Literal["search", "full"] = Field("search", description="Anywhere in `input`, or all of it.")


class JsonSchemaGrader(Body):
    """Tunewright's own: 1 where the input is JSON that the schema allows, else 0."""

    type: Literal["json_schema"]
    name: Name
    json_schema: dict[str, Any] = Field(
        description="JSON Schema, draft 2020-12. References lead to places in the schema itself."
    )
    input: Template = _ANSWER

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        check_json(self.json_schema, LONGEST_SCHEMA)
        return self


SingleGrader = (
    StringCheckGrader
    | TextSimilarityGrader
    | ScoreModelGrader
    | PythonGrader
    | RegexGrader
    | JsonSchemaGrader
)
OneGrader = Annotated[SingleGrader, Field(discriminator="type")]
GraderName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class MultiGrader(Body):
    """A formula over the rewards of several graders."""

    type: Literal["multi"]
    name: Name
    graders: Annotated[
        Annotated[
            Annotated[dict[GraderName, OneGrader], Field(min_length=1, max_length=MOST_GRADERS)], Tag(BY_NAME)
        ]
        | Annotated[OneGrader, Tag(ONE)],
        Discriminator(lambda value: ONE if _is_one(value) else BY_NAME),
    ] = Field(description="By the names that the formula has; or a single grader, whose `name` it then has.")
    calculate_output: Annotated[str, Field(min_length=1, max_length=formula.LONGEST)] = Field(
        description="Of numbers, names, + - * / ^, min, max, abs, floor, ceil, exp, sqrt and log."
    )

    @property
    def by_name(self) -> dict[str, SingleGrader]:
        """The graders by the names that the formula has."""
        return self.graders if isinstance(self.graders, dict) else {self.graders.name: self.graders}

    @model_validator(mode="after")
    def _check_formula(self) -> Self:
        formula.check(self.calculate_output, self.by_name)
        return self


def _is_one(value: object) -> bool:
    """Whether `graders` is a single grader, as the types of OpenAI's package have it: its `type` is a text."""
    return isinstance(value, SingleGrader) or (isinstance(value, dict) and isinstance(value.get("type"), str))


AnyGrader = SingleGrader | MultiGrader
Grader = Annotated[AnyGrader, Field(discriminator="type")]
TYPES = ("string_check", "text_similarity", "score_model", "python", "regex", "json_schema", "multi")


def singles(grader: AnyGrader) -> dict[str, SingleGrader]:
    """The graders that are run, by the names of their rewards."""
    return grader.by_name if isinstance(grader, MultiGrader) else {grader.name: grader}


def item_references(grader: AnyGrader) -> Iterator[Reference]:
    """What the grader refers to of an item. What a program reads of it is not known."""
    for one in singles(grader).values():
        for text in _texts(one):
            yield from (found for found in references(text) if found.namespace == "item")


def _texts(grader: SingleGrader) -> list[str]:
    match grader:
        case StringCheckGrader() | TextSimilarityGrader():
            return [grader.input, grader.reference]
        case ScoreModelGrader():
            return [text for message in grader.input for text in message.texts]
        case RegexGrader() | JsonSchemaGrader():
            return [grader.input]
        case PythonGrader():
            return []
