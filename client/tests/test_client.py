"""Settings, what the package exports and imports, and that the two clients have one surface."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import httpx
import pydantic
import pytest
from fake_server import FakeServer, ok

import tunewright_client
from tunewright_client import AsyncTunewright, Tunewright, types


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tunewright().base_url == "http://127.0.0.1:8000"
    assert Tunewright()._context.api_key is None
    monkeypatch.setenv("TUNEWRIGHT_BASE_URL", "https://tunes.example/prefix/v1/")
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "secret\n")
    for client in (Tunewright(), AsyncTunewright()):
        assert client.base_url == "https://tunes.example/prefix"
        assert client._context.api_key == "secret"
        assert "secret" not in repr(client) + repr(client._context)
    given = Tunewright("http://other:1", api_key="mine")
    assert (given.base_url, given._context.api_key) == ("http://other:1", "mine")
    assert Tunewright(api_key="")._context.api_key is None


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_base_url_with_or_without_v1(url: str) -> None:
    assert Tunewright(url).base_url == "http://h:1"


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="http://"):
        Tunewright("localhost:8000")
    with pytest.raises(ValueError, match="max_retries"):
        Tunewright(max_retries=-1)


def test_timeouts(server: FakeServer) -> None:
    seen: list[dict[str, float]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return httpx.Response(200, json={"choices": [], "status": "ok"})

    with httpx.Client(transport=httpx.MockTransport(answer)) as http:
        client = Tunewright(http_client=http)
        client.health()
        client.chat.create("m", [])
        client.with_options(timeout=3).health()
        client.close()
        assert not http.is_closed
    assert seen[0] == {"connect": 5, "read": 60, "write": 60, "pool": 60}
    assert seen[1] == {"connect": 5, "read": 660, "write": 660, "pool": 660}
    assert seen[2] == {"connect": 3, "read": 3, "write": 3, "pool": 3}


def test_loopback_is_not_reached_through_a_proxy(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.on("GET", "/health", ok({"status": "ok"}))
    with Tunewright(server.url, max_retries=0) as client:
        assert client.health() == {"status": "ok"}


@pytest.mark.parametrize("module", [tunewright_client, types])
def test_all_is_honest(module: object) -> None:
    names = getattr(module, "__all__")  # noqa: B009
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert list(names) == sorted(names)
    assert set(names) - {"__version__"} == public


def test_every_error_is_exported_and_of_the_tree() -> None:
    from tunewright_client import _errors

    own = {
        name
        for name, value in vars(_errors).items()
        if inspect.isclass(value) and value.__module__ == _errors.__name__
    }
    assert own <= set(tunewright_client.__all__)
    assert all(issubclass(getattr(_errors, name), tunewright_client.TunewrightError) for name in own)
    assert _errors.__doc__ is not None
    assert all(name in _errors.__doc__ for name in own)


def test_the_two_clients_have_one_surface() -> None:
    pairs: list[tuple[type, type]] = [
        (Tunewright, AsyncTunewright),
        (tunewright_client.Job, tunewright_client.AsyncJob),
        (tunewright_client.Export, tunewright_client.AsyncExport),
        (tunewright_client.Deployment, tunewright_client.AsyncDeployment),
    ]
    blocking, other = Tunewright(), AsyncTunewright()
    names = (
        "files",
        "jobs",
        "exports",
        "adapters",
        "models",
        "aliases",
        "deployments",
        "chat",
        "completions",
    )
    for name in names:
        pairs.append((type(getattr(blocking, name)), type(getattr(other, name))))
    for first, second in pairs:
        names = surface(first)
        assert names, first
        assert names == surface(second)
        for name in names:
            one, two = getattr(first, name), getattr(second, name)
            if not callable(one):
                continue
            for (left, a), (right, b) in zip(
                inspect.signature(one).parameters.items(),
                inspect.signature(two).parameters.items(),
                strict=True,
            ):
                assert (left, a.kind, a.default) == (right, b.kind, b.default), f"{first.__name__}.{name}"
            assert one.__doc__, f"{first.__name__}.{name} has no docstring"


def surface(kind: type) -> list[str]:
    """Its public names and those that it has from classes of its own module or one beside it."""
    package = kind.__module__.rpartition(".")[0]
    return [
        name
        for owner in kind.__mro__
        if owner.__module__.rpartition(".")[0] == package
        for name in vars(owner)
        if not name.startswith("_")
    ]


def test_imports_only_what_it_depends_on() -> None:
    root = Path(tunewright_client.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").partition(".")[0])
    assert found - set(sys.stdlib_module_names) == {"httpx", "pydantic"}


def test_a_fresh_import_brings_nothing_heavy() -> None:
    code = "import sys, tunewright_client; print(*{name.partition('.')[0] for name in sys.modules})"
    root = Path(tunewright_client.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tunewright_client" in loaded
    assert not loaded & {"tunewright", "torch", "numpy", "transformers", "vllm", "openai"}


def test_pydantic_and_httpx_are_the_declared_dependencies() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert [name.split(">")[0] for name in project["dependencies"]] == [httpx.__name__, pydantic.__name__]
