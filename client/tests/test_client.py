"""Settings, public names, imports, and the common interface of the two clients."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import ssl
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx2
import pydantic
import pytest
from fake_server import FakeServer, ok

import tunewright_client
from tunewright_client import AsyncTunewright, Tunewright, types
from tunewright_client._core.call import Settings

ROOT = Path(tunewright_client.__file__).parent
RESOURCES = (
    "files",
    "jobs",
    "exports",
    "cleanings",
    "evaluations",
    "syntheses",
    "adapters",
    "models",
    "aliases",
    "deployments",
    "chat",
    "completions",
)


def test_arguments_override_the_environment_and_the_environment_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Tunewright().base_url == "http://127.0.0.1:8000"
    assert Tunewright()._http.settings.api_key is None
    monkeypatch.setenv("TUNEWRIGHT_BASE_URL", "https://tunes.example/prefix/v1/")
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "secret\n")
    for client in (Tunewright(), AsyncTunewright()):
        assert client.base_url == "https://tunes.example/prefix"
        assert client._http.settings.api_key == "secret"
        assert "secret" not in repr(client) + repr(client._http.settings)
    given = Tunewright("http://other:1", api_key="mine")
    assert (given.base_url, given._http.settings.api_key) == ("http://other:1", "mine")
    assert Tunewright(api_key="")._http.settings.api_key is None


def test_a_function_is_asked_for_a_key_before_each_request(server: FakeServer) -> None:
    tokens = iter(["first", "second"])
    server.on("GET", "/health", ok({"status": "ok"}))
    with Tunewright(server.url, api_key=lambda: next(tokens)) as client:
        for _ in range(2):
            client.health()
    assert [one.headers["authorization"] for one in server.requests] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_base_url_may_end_with_v1(url: str) -> None:
    assert Tunewright(url).base_url == "http://h:1"


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="http://"):
        Tunewright("localhost:8000")
    with pytest.raises(ValueError, match="max_retries"):
        Tunewright(max_retries=-1)


def test_slow_requests_have_a_longer_default_timeout(server: FakeServer) -> None:
    seen: list[dict[str, float]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.extensions["timeout"])
        return httpx2.Response(200, json={"choices": [], "status": "ok"})

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        client = Tunewright(http_client=http)
        client.health()
        client.chat.create("m", [])
        client.with_options(timeout=3).health()
        client.close()
        assert not http.is_closed
    assert seen[0] == {"connect": 5, "read": 60, "write": 60, "pool": 60}
    assert seen[1] == {"connect": 5, "read": 660, "write": 660, "pool": 660}
    assert seen[2] == {"connect": 3, "read": 3, "write": 3, "pool": 3}


def test_a_loopback_address_is_not_reached_through_a_proxy(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.on("GET", "/health", ok({"status": "ok"}))
    with Tunewright(server.url, max_retries=0) as client:
        assert client.health() == {"status": "ok"}


@pytest.mark.parametrize(
    "address",
    ["https://localhost", "https://127.0.0.1:8000", "http://models.example", "http://localhost.example"],
)
def test_certificates_are_those_of_the_system(address: str) -> None:
    assert Settings.build(address, None, None, 0).certificates() is True


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000/v1", "http://LOCALHOST", "http://[::1]:8000"])
def test_on_this_machine_without_tls_nobody_is_trusted_and_nothing_is_read(address: str) -> None:
    trusted = Settings.build(address, None, None, 0).certificates()
    assert isinstance(trusted, ssl.SSLContext)
    assert trusted.verify_mode == ssl.CERT_REQUIRED
    assert trusted.get_ca_certs() == []


@pytest.mark.parametrize("module", [tunewright_client, types])
def test_all_lists_every_public_name(module: object) -> None:
    names = getattr(module, "__all__")  # noqa: B009
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert list(names) == sorted(names)
    assert set(names) - {"__version__"} == public


def test_every_error_is_public_and_in_the_documented_tree() -> None:
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


def test_the_two_clients_have_the_same_methods_and_parameters() -> None:
    pairs: list[tuple[type, type]] = [
        (Tunewright, AsyncTunewright),
        (tunewright_client.Job, tunewright_client.AsyncJob),
        (tunewright_client.Export, tunewright_client.AsyncExport),
        (tunewright_client.Cleaning, tunewright_client.AsyncCleaning),
        (tunewright_client.Evaluation, tunewright_client.AsyncEvaluation),
        (tunewright_client.Synthesis, tunewright_client.AsyncSynthesis),
        (tunewright_client.Deployment, tunewright_client.AsyncDeployment),
    ]
    blocking, other = Tunewright(), AsyncTunewright()
    for name in RESOURCES:
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


def classes(package: str) -> set[str]:
    """The names of the classes that are defined in the modules of a package."""
    found: set[str] = set()
    for module in pkgutil.iter_modules([str(ROOT / package)]):
        name = f"tunewright_client.{package}.{module.name}"
        members = vars(importlib.import_module(name)).items()
        found |= {key for key, value in members if inspect.isclass(value) and value.__module__ == name}
    return found


def test_every_class_of_the_asyncio_client_has_the_prefix_async() -> None:
    found = classes("_async")
    assert len(found) > 15
    assert {name for name in found if not name.lstrip("_").startswith("Async")} == set()


def test_the_clients_have_the_same_classes_apart_from_the_prefix() -> None:
    assert {name.replace("Async", "") for name in classes("_async")} - classes("_sync") == {"Pager"}


def test_a_client_or_timeout_of_another_library_is_refused() -> None:
    class Other:
        """Stands for httpx.Client, httpx.AsyncClient and httpx.Timeout."""

    Other.__module__ = "httpx._client"
    other: Any = Other()
    with pytest.raises(TypeError, match=r"must be an httpx2\.Client, not httpx\.Other"):
        Tunewright(http_client=other)
    with pytest.raises(TypeError, match=r"must be an httpx2\.AsyncClient, not httpx\.Other"):
        AsyncTunewright(http_client=other)
    with pytest.raises(TypeError, match=r"or an httpx2\.Timeout, not httpx\.Other"):
        Tunewright(timeout=other)
    with pytest.raises(TypeError, match=r"httpx2\.Timeout"):
        Tunewright().with_options(timeout=other)


def test_a_user_program_passes_mypy_in_strict_mode() -> None:
    pytest.importorskip("mypy")
    program = Path(__file__).with_name("typed_program.py")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(program)]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def surface(kind: type) -> list[str]:
    """The public names that a class has from classes of its own package."""
    package = kind.__module__.rpartition(".")[0]
    return [
        name
        for owner in kind.__mro__
        if owner.__module__.rpartition(".")[0] == package
        for name in vars(owner)
        if not name.startswith("_")
    ]


def test_the_package_imports_only_its_dependencies() -> None:
    found: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").partition(".")[0])
    assert found - set(sys.stdlib_module_names) == {"httpx2", "pydantic"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tunewright_client; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "tunewright_client" in loaded
    assert not loaded & {"tunewright", "torch", "numpy", "transformers", "vllm", "openai"}


def test_httpx2_and_pydantic_are_the_only_dependencies() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert [name.split(">")[0] for name in project["dependencies"]] == [httpx2.__name__, pydantic.__name__]
