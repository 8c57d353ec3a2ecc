"""The stock `openai` package as the suites of its resources call it (tests/api_resources of its repository).

Each method of what is served here is called with the blocking and the asynchronous client, strict and loose; its answer
is parsed at once, kept raw, or streamed, and has the types that the package declares, in every field.

Run by test_openai_strict.py as openai_strict.py is. Prints `ok` and the number of calls.
"""

import asyncio
import inspect
import sys
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any

import pydantic
from openai import AsyncOpenAI, OpenAI, __version__
from openai.types import FileDeleted, FileObject, Model, ModelDeleted
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.alpha import GraderRunResponse, GraderValidateResponse
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

ROWS = b'{"prompt": "a", "completion": "b"}\n'
GRADER = {"input": "a", "name": "name", "operation": "eq", "reference": "b", "type": "string_check"}
AUTO = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}
PAGE = "a page of"
calls = 0


def check(expected: Any, value: Any, place: str) -> None:
    """Assert that the value is what the package declares, in every field."""
    expected = getattr(expected, "__value__", expected)
    origin, parts = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Annotated:
        check(parts[0], value, place)
    elif origin in (typing.Union, types.UnionType):
        faults = []
        for part in parts:
            try:
                return check(part, value, place)
            except AssertionError as fault:
                faults.append(str(fault))
        raise AssertionError("; ".join(faults))
    elif origin is typing.Literal:
        assert value in parts, f"{place}: {value!r} is none of {parts}"
    elif origin is list:
        assert isinstance(value, list), f"{place}: {value!r} is no list"
        for number, item in enumerate(value):
            check(parts[0], item, f"{place}.{number}")
    elif origin is dict:
        assert isinstance(value, dict), f"{place}: {value!r} is no object"
        for key, item in value.items():
            check(parts[1], item, f"{place}.{key}")
    elif inspect.isclass(expected) and issubclass(expected, pydantic.BaseModel):
        assert isinstance(value, expected), f"{place}: {value!r} is no {expected.__name__}"
        for name, field in expected.model_fields.items():
            check(field.annotation, getattr(value, name), f"{place}.{name}")
    elif expected is int:
        assert type(value) is int, f"{place}: {value!r} is no whole number"
    elif expected is not typing.Any and expected is not object:
        assert isinstance(value, expected), f"{place}: {value!r} is no {expected.__name__}"


def check_answer(expected: Any, value: Any, place: str) -> None:
    if isinstance(expected, tuple):
        assert value.data is not None, place
        for number, item in enumerate(value.data):
            check(expected[1], item, f"{place}.{number}")
    elif expected is bytes:
        assert value.read() == ROWS, place
    else:
        check(expected, value, place)


async def awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def call(client: Any, name: str, expected: Any, make: Callable[[], dict[str, Any]]) -> None:
    """Call the method `name` three times, each with new arguments."""
    global calls
    *path, method = name.split(".")
    resource = client
    for part in path:
        resource = getattr(resource, part)
    place = f"{type(client).__name__} {name}"

    given = make()
    answer = getattr(resource, method)(*given.pop("path", ()), **given)
    check_answer(expected, await awaited(answer), place)

    given = make()
    raw = await awaited(getattr(resource.with_raw_response, method)(*given.pop("path", ()), **given))
    assert raw.http_request.headers["X-Stainless-Lang"] == "python"
    check_answer(expected, await awaited(raw.parse()), f"{place}, raw")

    given = make()
    streaming = getattr(resource.with_streaming_response, method)(*given.pop("path", ()), **given)
    if hasattr(streaming, "__aenter__"):
        async with streaming as response:
            parsed = await response.read() if expected is bytes else await awaited(response.parse())
    else:
        with streaming as response:
            parsed = response.read() if expected is bytes else response.parse()
    if expected is bytes:
        assert parsed == ROWS, place
    else:
        check_answer(expected, parsed, f"{place}, streamed")
    assert response.is_closed, place
    calls += 3


async def main(client: Any, setup: OpenAI) -> None:
    jobs, files = setup.fine_tuning.jobs, setup.files
    file = files.create(file=ROWS, purpose="fine-tune")
    done = next(job for job in jobs.list() if job.status == "succeeded")
    model = next(model for model in setup.models.list() if model.owned_by)
    adapters = iter([model.id for model in setup.models.list() if getattr(model, "kind", "") == "adapter"])

    movable = next(job.id for job in jobs.list() if getattr(job, "state", "") in ("queued", "paused"))

    def moved(to: str) -> dict[str, Any]:
        """A job in this state."""
        if getattr(jobs.retrieve(movable), "state", "") != to:
            (jobs.pause if to == "paused" else jobs.resume)(movable)
        return {"path": (movable,)}

    def create(**more: Any) -> dict[str, Any]:
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return {"model": "missing", "training_file": file.id, "extra_headers": key, **more}

    everything = {
        "hyperparameters": AUTO,
        "metadata": {"foo": "string"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": AUTO}},
        "seed": 42,
        "suffix": "x",
        "validation_file": file.id,
    }
    for name, expected, make in (
        ("files.create", FileObject, lambda: {"file": ROWS, "purpose": "fine-tune"}),
        (
            "files.create",
            FileObject,
            lambda: {
                "file": ROWS,
                "purpose": "fine-tune",
                "expires_after": {"anchor": "created_at", "seconds": 3600},
            },
        ),
        ("files.retrieve", FileObject, lambda: {"path": (file.id,)}),
        ("files.list", (PAGE, FileObject), dict),
        (
            "files.list",
            (PAGE, FileObject),
            lambda: {"after": file.id, "limit": 2, "order": "asc", "purpose": "fine-tune"},
        ),
        ("files.content", bytes, lambda: {"path": (file.id,)}),
        (
            "files.delete",
            FileDeleted,
            lambda: {"path": (files.create(file=ROWS, purpose="fine-tune").id,)},
        ),
        ("models.retrieve", Model, lambda: {"path": (model.id,)}),
        ("models.list", (PAGE, Model), dict),
        ("models.delete", ModelDeleted, lambda: {"path": (next(adapters),)}),
        ("fine_tuning.jobs.create", FineTuningJob, create),
        ("fine_tuning.jobs.create", FineTuningJob, lambda: create(**everything)),
        ("fine_tuning.jobs.retrieve", FineTuningJob, lambda: {"path": (done.id,)}),
        ("fine_tuning.jobs.list", (PAGE, FineTuningJob), dict),
        (
            "fine_tuning.jobs.list",
            (PAGE, FineTuningJob),
            lambda: {"after": done.id, "limit": 2, "metadata": {"foo": "string"}},
        ),
        ("fine_tuning.jobs.cancel", FineTuningJob, lambda: {"path": (jobs.create(**create()).id,)}),
        ("fine_tuning.jobs.pause", FineTuningJob, lambda: moved("queued")),
        ("fine_tuning.jobs.resume", FineTuningJob, lambda: moved("paused")),
        ("fine_tuning.jobs.list_events", (PAGE, FineTuningJobEvent), lambda: {"path": (done.id,)}),
        (
            "fine_tuning.jobs.list_events",
            (PAGE, FineTuningJobEvent),
            lambda: {"path": (done.id,), "limit": 1},
        ),
        (
            "fine_tuning.jobs.checkpoints.list",
            (PAGE, FineTuningJobCheckpoint),
            lambda: {"path": (done.id,), "limit": 1},
        ),
        ("fine_tuning.alpha.graders.validate", GraderValidateResponse, lambda: {"grader": GRADER}),
        (
            "fine_tuning.alpha.graders.run",
            GraderRunResponse,
            lambda: {"grader": GRADER, "model_sample": "a", "item": {"x": "y"}},
        ),
    ):
        if name == "models.delete" and not (
            isinstance(client, OpenAI) and client._strict_response_validation
        ):
            continue  # the service has no more of them
        await call(client, name, expected, make)


async def every() -> None:
    setup = OpenAI(base_url=sys.argv[1], api_key="unused")
    for kind in (OpenAI, AsyncOpenAI):
        for strict in (True, False):
            client = kind(base_url=sys.argv[1], api_key="unused", _strict_response_validation=strict)
            await main(client, setup)
    print("ok", __version__, calls)


asyncio.run(every())
