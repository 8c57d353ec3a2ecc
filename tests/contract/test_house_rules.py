"""The rules of the code: what may import what, how long a file may be, and documents that must not drift."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "transformers",
    "vllm",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "numpy",
    "pynvml",
)
MOST_LINES = 400


def run(*command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A command in the repository, with what this interpreter imports from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def tool(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed (extra dev)")
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def mypy() -> Iterator[subprocess.Popen[str] | None]:
    """Strict mypy over the service, beside the other tests: a second with its cache, about fifteen without."""
    path = Path(sys.executable).parent / "mypy"
    if not path.exists():
        yield None
        return
    with subprocess.Popen(
        [path], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process
        process.kill()


def passes(*command: str) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        (("scheduler.main", "serve", "cli.main", "jobs.folder"), set()),
        (("cleaner.run", "cleaner.folder"), set()),
        (("batcher.run", "batcher.folder"), set()),
        (("api.http.app", "api.http.process", "engine.worker"), {"numpy"}),  # litserve's
    ],
)
def test_the_service_starts_without_the_heavy_libraries(modules: tuple[str, ...], allowed: set[str]) -> None:
    program = (
        f"import json, sys, {', '.join('tunewright.' + module for module in modules)}\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) <= allowed


def test_imports_follow_the_written_directions() -> None:
    passes(tool("lint-imports"), "--no-cache")


def sources() -> Iterator[Path]:
    for folder in ("service", "client", "tests", "recipes", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if not any(
                part.startswith(".") or part in ("build", "__pycache__")
                for part in path.relative_to(ROOT).parts
            ):
                yield path


def test_no_file_of_the_service_is_long() -> None:
    """Tests may be longer: one file holds all promises of one thing."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if "tests" not in path.parts and (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "service").rglob("*.py")
        if path.read_text().strip() and not path.read_text().lstrip().startswith('"""')
    ]
    assert silent == []


def test_ruff_finds_nothing() -> None:
    passes(tool("ruff"), "check", "--no-cache", "service", "tests", "client")


def test_the_code_is_in_form() -> None:
    passes(tool("ruff"), "format", "--no-cache", "--check", "service", "tests", "client")


# openapi/openapi.json


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return dict(json.loads((ROOT / "openapi" / "openapi.json").read_text()))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_committed_document_is_the_applications(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "tunewright.api.http.openapi", str(tmp_path / "openapi.json"))
    assert done.returncode == 0, done.stderr
    fresh = (tmp_path / "openapi.json").read_text()
    assert fresh == (ROOT / "openapi" / "openapi.json").read_text(), "run `make openapi`"


def schemas_of(node: Any, document: dict[str, Any], seen: set[str]) -> Iterator[dict[str, Any]]:
    """Every schema that `node` refers to, over any number of references; errors aside."""
    if isinstance(node, dict):
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name and name not in seen and name != "ErrorResponse":
            seen.add(name)
            schema = document["components"]["schemas"][name]
            yield schema
            yield from schemas_of(schema, document, seen)
        for value in node.values():
            yield from schemas_of(value, document, seen)
    elif isinstance(node, list):
        for value in node:
            yield from schemas_of(value, document, seen)


def has_example(content: dict[str, Any], document: dict[str, Any]) -> bool:
    return any("example" in media or "examples" in media for media in content.values()) or any(
        "examples" in schema for schema in schemas_of(content, document, set())
    )


def test_every_operation_has_a_summary_an_id_and_a_tag(document: dict[str, Any]) -> None:
    found = dict(operations(document))
    assert len(found) > 20
    for name, operation in found.items():
        assert operation.get("summary"), name
        assert operation.get("tags"), name
    ids = [operation["operationId"] for operation in found.values()]
    assert len(set(ids)) == len(ids)


def test_every_operation_shows_examples(document: dict[str, Any]) -> None:
    without = []
    for name, operation in operations(document):
        if not has_example(operation["responses"]["200"]["content"], document):
            without.append(f"{name}: answer")
        body = operation.get("requestBody")
        if (
            body
            and "multipart/form-data" not in body["content"]
            and not has_example(body["content"], document)
        ):
            without.append(f"{name}: request")
    assert without == []


def test_every_operation_tells_its_errors(document: dict[str, Any]) -> None:
    reference = {"$ref": "#/components/schemas/ErrorResponse"}
    for name, operation in operations(document):
        responses = operation["responses"]
        assert "422" not in responses, name
        if "/v1/" in name:
            assert "401" in responses, name
        if operation.get("requestBody"):
            assert "400" in responses, name
        if "{" in name:
            assert "404" in responses, name
        for status, response in responses.items():
            if status >= "400" and name != "GET /ready":
                assert response["content"]["application/json"]["schema"] == reference, f"{name} {status}"


def test_the_document_names_no_machine(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    assert "/tmp" not in text
    assert str(ROOT) not in text
    assert document["openapi"] == "3.1.0"


def test_types_hold(mypy: subprocess.Popen[str] | None) -> None:
    if mypy is None:
        pytest.skip("mypy is not installed (extra dev)")
    output = mypy.communicate(timeout=120)[0]
    assert mypy.returncode == 0, output
