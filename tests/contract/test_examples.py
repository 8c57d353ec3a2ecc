"""The examples of the wire models are valid, belong to a model, and are in the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError, create_model

from tunewright.api.http import app  # noqa: F401  (imports all wire models)
from tunewright.wire import Body, Exact, Wire

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "service" / "tunewright"


def descendants(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in model.__subclasses__():
        yield child
        yield from descendants(child)


def examples_of(model: type[BaseModel]) -> list[dict[str, Any]]:
    """Without the rest of its schema: each worker collects these tests, and the schemas of all models take 1.2 s."""
    schema: dict[str, Any] = {}
    add = model.model_config.get("json_schema_extra")
    if callable(add):
        add(schema, model)  # type: ignore[call-arg]
    return schema.get("examples", [])


MODELS = sorted({*descendants(Body), *descendants(Wire)}, key=lambda model: model.__name__)
EXAMPLES = [
    pytest.param(model, example, id=f"{model.__name__}-{number}")
    for model in MODELS
    for number, example in enumerate(examples_of(model))
]


@pytest.mark.parametrize(("model", "example"), EXAMPLES)
def test_every_example_is_valid(model: type[BaseModel], example: dict[str, Any]) -> None:
    parsed = model.model_validate_json(json.dumps(example))

    assert parsed.model_dump(mode="json", exclude_unset=True) == example


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


EXACT = {
    *descendants(Exact),
    *(m for body in descendants(Exact) for f in body.model_fields.values() for m in models_in(f.annotation)),
}
"""Bodies, and what is in them."""


@pytest.mark.parametrize("model", sorted(EXACT, key=lambda model: model.__name__))
def test_a_field_takes_no_text_for_a_number_and_no_number_for_a_boolean(model: type[BaseModel]) -> None:
    base = Exact if issubclass(model, Exact) else BaseModel
    for name, field in model.model_fields.items():
        with suppress(ValidationError):
            alone = create_model("Alone", __base__=base, value=(field.annotation, field))
            for given in ("1", "3600", "true", True, False, 1, 0):
                with suppress(ValidationError):
                    read = alone(value=given).value  # type: ignore[attr-defined]
                    is_same = type(read) is type(given) or (type(given) is int and type(read) is float)
                    is_other = isinstance(read, bool | int | float) and not is_same and name not in _SIZES
                    assert not is_other, f"{model.__name__}.{name} takes {given!r} for {read!r}"


_SIZES = {"kv_cache_memory"}
"""They are also written with a unit, as texts."""


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("examples.json")), ids=lambda file: file.parent.name)
def test_every_entry_of_a_file_is_shown_in_the_schema_of_a_model(file: Path) -> None:
    package = ".".join(file.parent.relative_to(PACKAGE.parent).parts)
    models = {model.__name__: model for model in MODELS if model.__module__.rpartition(".")[0] == package}

    for name, examples in json.loads(file.read_text()).items():
        assert name in models, f"{package} has no such model"
        assert models[name].model_json_schema()["examples"] == examples


def test_every_file_of_examples_is_packaged() -> None:
    setuptools = pytest.importorskip("setuptools.config.pyprojecttoml", reason="needs setuptools")
    patterns = setuptools.read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]

    packaged = {p for pattern in patterns["package-data"]["tunewright"] for p in PACKAGE.glob(pattern)}

    assert set(PACKAGE.rglob("examples.json")) <= packaged
