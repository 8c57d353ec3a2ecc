"""Registration of adapters over HTTP: what is accepted, what is refused, and that a refusal leaves no files."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapters import CONFIG, adapter_files, lora_tensors, safetensors, write_adapter, zeros
from rows import FILE, create_job, engine_info
from tunewright.apart import call_apart
from tunewright.api.adapters import registration
from tunewright.api.http.app import build
from tunewright.api.http.context import ServiceContext
from tunewright.config import Settings, embedded_base_path
from tunewright.jobs.kinds import JobError
from tunewright.registry import adapter_sources
from tunewright.registry.content import adapter_sha256
from tunewright.registry.workspace import Workspace
from tunewright.store.states import EngineState, JobState, Residency
from tunewright.store.store import Store

pytestmark = pytest.mark.each_database

BASE = "tunewright-tiny"
FINGERPRINT = "f" * 64
Make = Callable[..., TestClient]


class Worker:
    """Records each operation, and answers that it is done."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def control(self, operation: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((operation["op"], operation["model"]))
        return {"state": operation["op"] + "ed"}


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def make(built: dict[str, Any], store: Store, data: Workspace, worker: Worker) -> Make:
    def client(ready: bool = True, **options: Any) -> TestClient:
        settings = Settings(data_dir=data.path, max_upload="2MB", **{"parity": "off", **options})
        store.engines.declare([base.name for base in settings.models.bases])
        for base in settings.models.bases if ready else ():
            info = engine_info(fingerprint=FINGERPRINT, path=base.source, max_model_len=64)
            store.engines.starting(base.name, "/tmp/s", info)
            store.engines.set_state(base.name, EngineState.READY)
        if not built:
            built["server"], _ = build(settings, store)
        built["server"].app.state.context = ServiceContext(settings, store, data, worker.control)
        return TestClient(
            built["server"].app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False
        )

    return client


@pytest.fixture
def api(make: Make) -> TestClient:
    return make()


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return dict(response.json()["error"])


def parts(files: dict[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (name, content)) for name, content in files.items()]


def packed(files: dict[str, bytes], folder: str = "mine/") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def upload(api: TestClient, files: dict[str, bytes] | None = None, **form: Any) -> Any:
    headers = {"Idempotency-Key": form.pop("key")} if "key" in form else {}
    return api.post("/v1/adapters/upload", files=parts(files or adapter_files()), data=form, headers=headers)


def register(api: TestClient, **form: Any) -> dict[str, Any]:
    answer = upload(api, **form)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def nothing_left(data: Workspace, store: Store) -> bool:
    return not any(data.tmp.iterdir()) and not data.artifacts.hashes() and not store.listings.models()


# uploads


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("form", "param", "code"),
    [
        ({"nonsense": "1"}, "nonsense", "unknown_parameter"),
        ({"suffix": ["a", "b"]}, "suffix", "invalid_value"),
    ],
)
def test_a_field_of_an_upload_is_never_ignored(
    api: TestClient, data: Workspace, store: Store, form: dict[str, Any], param: str, code: str
) -> None:
    refused = error(upload(api, **form))
    assert (refused["param"], refused["code"]) == (param, code)
    assert nothing_left(data, store)


def test_an_uploaded_adapter_is_listed_with_its_lineage(api: TestClient, data: Workspace) -> None:
    shown = register(api, suffix="mine")
    assert shown["model"] == f"ft:{BASE}:mine:{shown['id'].removeprefix('adapter-')[:8]}"
    assert (shown["source"], shown["state"], shown["desired"]) == ("upload", "loading", "loaded")
    assert (shown["rank"], shown["alpha"], shown["target_modules"]) == (4, 8.0, ["q_proj", "v_proj"])
    assert (shown["job_id"], shown["method"], shown["error"]) == (None, "lora", None)
    assert shown["lineage"] == {
        "base_fingerprint": FINGERPRINT,
        "origin": "adapter_config.json, adapter_model.safetensors",
        **dict.fromkeys(
            [
                "parent_sha256", "training_file", "training_sha256", "validation_file", "validation_sha256", "mix",
                "seed", "metrics", "revision", "created_by", "models",
            ]
        ),
    }  # fmt: skip
    folder = data.artifacts.local(shown["sha256"])
    assert adapter_sha256(folder) == shown["sha256"]
    assert sum(path.stat().st_size for path in folder.iterdir()) == shown["bytes"]
    assert list(data.tmp.iterdir()) == []
    assert api.get(f"/v1/adapters/{shown['id']}").json() == shown
    model = api.get(f"/v1/models/{shown['model']}").json()
    assert (model["kind"], model["base"], model["adapter_id"]) == ("adapter", BASE, shown["id"])


def test_archives_are_uploads_too(api: TestClient) -> None:
    reference = register(api)["sha256"]
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in adapter_files().items():
            archive.writestr(name, content)
    for name, content in (("my adapter.tar.gz", packed(adapter_files())), ("a.zip", target.getvalue())):
        shown = register(api, files={name: content})
        assert (shown["sha256"], shown["lineage"]["origin"]) == (reference, name)


def test_a_checkpoint_in_an_archive_can_be_named(api: TestClient) -> None:
    files = {f"step-{at}/{name}": content for at in (1, 2) for name, content in adapter_files().items()}
    archive = {"run.tar.gz": packed(files, "run/")}
    refused = error(upload(api, archive))
    assert (refused["param"], refused["code"]) == ("folder", "archive_refused")
    assert register(api, suffix="one")["sha256"] == upload(api, archive, folder="step-2").json()["sha256"]
    assert error(upload(api, folder="step-2"))["param"] == "folder"


def test_an_adapter_of_mlx_is_an_upload_too(api: TestClient) -> None:
    tensors = {
        name.removeprefix("base_model.model.")
        .replace("lora_A.weight", "lora_a")
        .replace("lora_B.weight", "lora_b"): (
            dtype,
            shape[::-1],
            content,
        )
        for name, (dtype, shape, content) in lora_tensors().items()
    }
    config = {
        "fine_tune_type": "lora",
        "model": BASE,
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0},
    }
    files = {"adapter_config.json": json.dumps(config).encode(), "adapters.safetensors": safetensors(tensors)}
    shown = upload(api, files, suffix="apple").json()
    assert (shown["rank"], shown["alpha"], shown["target_modules"]) == (4, 8.0, ["q_proj", "v_proj"])
    again = upload(api, {"a.tar.gz": packed(files)})
    assert again.json()["sha256"] == shown["sha256"]


def test_what_vllm_does_not_serve_is_listed_for_merging(api: TestClient, worker: Worker) -> None:
    tensors = lora_tensors()
    for name in list(tensors):
        if "lora_B" in name:
            magnitude = name.replace("lora_B.weight", "lora_magnitude_vector")
            tensors[magnitude] = zeros(tensors[name][1][0], value=1.0)
    shown = upload(api, adapter_files({"use_dora": True}, tensors)).json()
    assert (shown["state"], shown["desired"], shown["parity"]) == ("merge_only", "unloaded", None)
    assert error(api.post(f"/v1/adapters/{shown['id']}/load"))["code"] == "model_merge_only"
    assert worker.asked == []
    created = api.post("/v1/exports", json={"model": shown["model"], "format": "merged"})
    assert created.status_code == 200, created.text


def test_what_is_downloaded_comes_back_as_the_same(api: TestClient) -> None:
    first = register(api)
    for path in (f"/v1/adapters/{first['id']}/download", f"/v1/models/{first['model']}/download"):
        answer = api.get(path)
        assert answer.headers["content-type"] == "application/x-tar"
        again = register(api, files={"x.tar": answer.content}, load=False)
        assert (again["sha256"], again["state"]) == (first["sha256"], "unloaded")
        assert again["model"] != first["model"]
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        names = sorted(member.name.split("/")[1] for member in archive)
    assert names == ["adapter_config.json", "adapter_model.safetensors"]


def test_two_names_share_one_artifact_until_the_last_is_deleted(
    api: TestClient, data: Workspace, worker: Worker
) -> None:
    first, second = register(api, suffix="a"), register(api, suffix="b")
    folder = data.artifacts.local(first["sha256"])
    assert first["sha256"] == second["sha256"]
    deleted = api.delete(f"/v1/adapters/{first['model']}")
    assert deleted.json() == {"id": first["id"], "object": "adapter", "deleted": True}
    assert worker.asked == [("unload", first["model"])]
    assert folder.exists()
    assert error(api.get(f"/v1/adapters/{first['id']}"), 404)["code"] == "adapter_not_found"
    api.delete(f"/v1/adapters/{second['id']}")
    assert not folder.exists()
    for answer in (api.delete(f"/v1/adapters/{second['id']}"), api.get("/v1/adapters/x/download")):
        assert error(answer, 404)["code"] == "adapter_not_found"


def test_an_adapter_that_a_job_starts_from_stays(api: TestClient, store: Store) -> None:
    shown = register(api)
    job = create_job(store, parent_sha256=shown["sha256"])
    assert error(api.delete(f"/v1/adapters/{shown['id']}"))["code"] == "model_in_use"
    store.jobs.cancel(job.id)
    assert api.delete(f"/v1/adapters/{shown['id']}").status_code == 200


def test_a_repeated_request_gives_the_first_adapter(api: TestClient, store: Store) -> None:
    """As the SDK's retries do: a lost answer must not create a second name."""
    first = register(api, key="k", suffix="a")
    assert register(api, key="k", suffix="a") == first
    assert register(api, files={"x.tgz": packed(adapter_files())}, key="k", suffix="a") == first
    assert error(upload(api, key="k", suffix="b"))["code"] == "idempotency_key_reused"
    other = adapter_files(tensors=lora_tensors(value=0.25))
    assert error(upload(api, other, key="k", suffix="a"))["code"] == "idempotency_key_reused"
    assert register(api, key="other", suffix="a")["id"] != first["id"]
    assert len(store.listings.models()) == 1 + 1


def test_the_same_at_the_same_time_is_listed_once_for_each(api: TestClient, data: Workspace) -> None:
    results: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda key=str(n % 3): results.append(register(api, key=key)))  # type: ignore[misc]
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(results), len({shown["id"] for shown in results})) == (6, 3)
    assert len({shown["sha256"] for shown in results}) == 1
    assert len(data.artifacts.hashes()) == 1


@pytest.mark.one_database
@pytest.mark.parametrize(
    ("files", "code", "message"),
    [
        (adapter_files({"lora_alpha": float("nan")}), "adapter_invalid", "lora_alpha NaN"),
        (adapter_files({"use_dora": True}), "adapter_invalid", "no lora_magnitude_vector"),
        (adapter_files({"init_lora_weights": "lora_ga"}), "adapter_unsupported", "path_initial_model"),
        (adapter_files({"r": 128}, lora_tensors(rank=128)), "adapter_unsupported", "--max-lora-rank"),
        (
            adapter_files(tensors=lora_tensors({"model.layers.0.self_attn.q_proj": (512, 512)})),
            "adapter_does_not_fit",
            "trained on another base",
        ),
        (adapter_files(tensors=lora_tensors(value=float("inf"))), "adapter_invalid", "NaN or infinite"),
        (
            {**adapter_files(), "adapter_model.safetensors": b"\x80\x04pickle"},
            "pickled_weights",
            "never opened",
        ),
        ({"adapter_model.bin": b"x", "adapter_config.json": b"{}"}, "pickled_weights", "adapter_model.bin"),
        ({"adapter_config.json": b"{}"}, "invalid_value", "two files"),
        ({"a.tar": b"x", "b.tar": b"x"}, "invalid_value", "one archive"),
        ({"a.tar": b""}, "archive_refused", "neither .tar"),
        ({"a.tar": packed({"../adapter_config.json": b"x"})}, "archive_refused", "leads out"),
        ({"a.tar": packed(adapter_files({"peft_type": "IA3"}))}, "adapter_unsupported", "only LORA"),
        ({**adapter_files(), "adapter_config.json": b" " * (2**20 + 1)}, "too_large", "1048576"),
    ],
)
def test_a_refusal_says_why_and_leaves_nothing(
    api: TestClient, data: Workspace, store: Store, files: dict[str, bytes], code: str, message: str
) -> None:
    answer = upload(api, files)
    refused = error(answer, 413 if code == "too_large" else 400)
    assert refused["code"] == code
    assert message in refused["message"]
    assert nothing_left(data, store)


def test_three_parts_are_too_many(api: TestClient) -> None:
    assert error(upload(api, {**adapter_files(), "README.md": b"x"}))["param"] == "file"


def test_an_upload_has_a_limit(api: TestClient, data: Workspace, store: Store) -> None:
    large = adapter_files(tensors=lora_tensors() | {"x": zeros(1_000_000)})
    assert error(upload(api, large), 413)["code"] == "too_large"
    assert nothing_left(data, store)


def test_an_archive_that_unpacks_to_too_much_is_refused(make: Make, data: Workspace, store: Store) -> None:
    api = make(max_adapter_size="20KB")
    for files in ({"a.tgz": packed(adapter_files())}, {"a.zip": _zipped(adapter_files())}):
        assert "--max-adapter-size" in error(upload(api, files), 413)["message"]
    assert nothing_left(data, store)


def _zipped(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


@pytest.mark.parametrize("place", ["unpack", "check_and_write"])
def test_a_full_disk_leaves_nothing(
    api: TestClient, data: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*_: Any) -> None:
        next(data.tmp.iterdir()).joinpath("half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    def on_a_full_disk(function: Any, files: Any, *args: Any) -> Any:
        return full() if function.__name__ == place else call_apart(function, files, *args)

    monkeypatch.setattr(registration, "call_apart", on_a_full_disk)
    refused = error(upload(api, {"a.tgz": packed(adapter_files())}), 507)
    assert "disk is full" in refused["message"]
    assert nothing_left(data, store)


# the base


def test_the_base_is_told_or_asked_for(make: Make) -> None:
    api = make(base=[f"a={embedded_base_path()}", f"org/b={embedded_base_path()}"])
    hints = adapter_files({"base_model_name_or_path": "org/b"})
    assert register(api, files=hints)["base"] == "org/b"
    assert register(api, files=hints, base="a")["base"] == "a"
    assert register(api, files=adapter_files({"base_model_name_or_path": None}), base="a")["base"] == "a"
    unknown = error(upload(api, adapter_files({"base_model_name_or_path": "elsewhere"})))
    assert (unknown["param"], unknown["code"]) == ("base", "missing_parameter")
    assert "one of a, org/b" in unknown["message"]
    assert error(upload(api, base="c"))["param"] == "base"


@pytest.mark.parametrize("named", [None, "elsewhere"])
def test_a_deployed_model_without_a_source_is_not_taken_for_the_base(
    make: Make, store: Store, named: str | None
) -> None:
    api = make(base=[f"a={embedded_base_path()}"])
    store.deployments.create("ft:a:full:1", {}, lambda _: {"device": "cpu"})
    assert register(api, files=adapter_files({"base_model_name_or_path": named}))["base"] == "a"


def test_a_base_that_is_not_here_yet_is_waited_for(make: Make) -> None:
    answer = upload(make(ready=False))
    assert error(answer, 503)["code"] == "engine_unavailable"
    assert "retry-after" in answer.headers


def test_a_suffix_is_checked(api: TestClient) -> None:
    for suffix in ("a b", "-x", "x" * 65, "a/b"):
        assert error(upload(api, suffix=suffix))["param"] == "suffix"


# folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    write_adapter(folder / "mine")
    return folder


@pytest.fixture
def open_api(make: Make, root: Path) -> TestClient:
    return make(adapter_root=[str(root)])


def test_a_folder_of_the_server_is_taken(open_api: TestClient, root: Path) -> None:
    body = {"path": str(root / "mine"), "suffix": "f", "load": False}
    shown = open_api.post("/v1/adapters", json=body).json()
    assert (shown["source"], shown["state"]) == ("folder", "unloaded")
    assert shown["lineage"]["origin"] == str(root / "mine")
    (root / "mine" / "adapter_model.safetensors").write_bytes(b"changed later")
    assert open_api.get(f"/v1/adapters/{shown['id']}/download").status_code == 200


def test_a_folder_may_be_linked_within_the_root(open_api: TestClient, root: Path) -> None:
    (root / "link").symlink_to(root / "mine")
    shown = open_api.post("/v1/adapters", json={"path": str(root / "link" / ".." / "mine")}).json()
    assert shown["lineage"]["origin"] == str(root / "mine")
    linked = root / "linked"
    linked.mkdir()
    for name in adapter_files():
        (linked / name).symlink_to(root / "mine" / name)
    assert open_api.post("/v1/adapters", json={"path": str(linked)}).status_code == 200


def test_without_a_root_no_folder_is_taken(api: TestClient, root: Path) -> None:
    refused = error(api.post("/v1/adapters", json={"path": str(root / "mine")}))
    assert "--adapter-root" in refused["message"]
    assert refused["param"] == "path"


@pytest.mark.one_database
@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "/nowhere/at/all",
        "mine",
        "~/mine",
        "{root}/../outside",
        "{root}x",
        "{root}/link",
        "{root}/loop",
    ],
)
def test_nothing_outside_the_roots_is_looked_at(open_api: TestClient, root: Path, path: str) -> None:
    """The answer does not reveal whether a path exists."""
    write_adapter(root.parent / "outside")
    write_adapter(Path(f"{root}x"))
    (root / "link").symlink_to(root.parent / "outside")
    (root / "loop").symlink_to(root / "loop")
    refused = error(open_api.post("/v1/adapters", json={"path": path.format(root=root)}))
    assert ("in no folder that adapters are taken from" in refused["message"]) or path == "{root}/loop"


@pytest.mark.parametrize("name", list(adapter_files()))
def test_a_file_that_leads_out_is_refused(open_api: TestClient, root: Path, name: str) -> None:
    outside = write_adapter(root.parent / "outside")
    (root / "mine" / name).unlink()
    (root / "mine" / name).symlink_to(outside / name)
    assert "leads out" in error(open_api.post("/v1/adapters", json={"path": str(root / "mine")}))["message"]


def test_a_file_that_is_swapped_for_a_link_is_not_read(
    open_api: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opened file is checked, not the file that has its name by then."""
    outside = write_adapter(root.parent / "outside")
    weights = root / "mine" / "adapter_model.safetensors"
    opened = adapter_sources._unblocked

    def swapped(path: str, flags: int) -> int:
        weights.unlink(missing_ok=True)
        weights.symlink_to(outside / weights.name)
        descriptor = opened(path, flags)
        weights.unlink()
        weights.write_bytes(b"innocent")
        return descriptor

    monkeypatch.setattr(adapter_sources, "_unblocked", swapped)
    assert "leads out" in error(open_api.post("/v1/adapters", json={"path": str(root / "mine")}))["message"]


def test_what_is_no_plain_file_is_refused_without_waiting(open_api: TestClient, root: Path) -> None:
    weights = root / "mine" / "adapter_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    began = time.monotonic()
    assert (
        "not a regular file"
        in error(open_api.post("/v1/adapters", json={"path": str(root / "mine")}))["message"]
    )
    assert time.monotonic() - began < 5
    weights.unlink()
    weights.mkdir()
    error(open_api.post("/v1/adapters", json={"path": str(root / "mine")}))


def test_a_folder_without_an_adapter_says_so(open_api: TestClient, root: Path) -> None:
    (root / "empty").mkdir()
    assert (
        "no adapter_config.json"
        in error(open_api.post("/v1/adapters", json={"path": str(root / "empty")}))["message"]
    )
    error(open_api.post("/v1/adapters", json={"path": str(root / "none")}))
    error(open_api.post("/v1/adapters", json={"path": str(root / "mine" / "adapter_config.json")}))
    (root / "mine" / "adapter_model.safetensors").rename(root / "mine" / "adapter_model.bin")
    refused = error(open_api.post("/v1/adapters", json={"path": str(root / "mine")}))
    assert refused["code"] == "pickled_weights"


def test_a_folder_above_the_limit_is_refused(make: Make, root: Path) -> None:
    api = make(adapter_root=[str(root)], max_adapter_size="1KB")
    answer = api.post("/v1/adapters", json={"path": str(root / "mine")})
    assert "--max-adapter-size" in error(answer, 413)["message"]


# the hub


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a real one; `test_hub_cache.py` tests what is asked."""

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)


def test_a_repository_of_the_hub_is_taken(
    api: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    snapshot = write_adapter(tmp_path / "snapshots" / ("c" * 40))

    def download(*args: Any, **options: Any) -> str:
        asked.append((args, options))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    shown = api.post("/v1/adapters", json={"hub_id": "org/lora.v1", "revision": "main"}).json()
    assert shown["source"] == "hub"
    assert (shown["lineage"]["origin"], shown["lineage"]["revision"]) == ("org/lora.v1", "c" * 40)
    ((args, options),) = asked
    assert args == ("org/lora.v1",)
    assert options["revision"] == "main"
    assert options["allow_patterns"] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapters.safetensors",
    ]


def test_a_hub_that_cannot_be_reached_says_what_else_can_be_done(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    refused = error(api.post("/v1/adapters", json={"hub_id": "org/lora"}))
    assert (refused["code"], refused["param"]) == ("hub_failed", "hub_id")
    assert "no route to host. " in refused["message"]
    assert "upload it" in refused["message"]


def test_a_hub_that_never_answers_is_given_up(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: let_go.wait(30))
    monkeypatch.setattr(registration, "_HUB_SECONDS", 0.2)
    began = time.monotonic()
    assert error(api.post("/v1/adapters", json={"hub_id": "org/lora"}))["code"] == "hub_failed"
    assert time.monotonic() - began < 5
    let_go.set()


def test_a_repository_with_pickled_weights_only_is_refused(
    api: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    refused = error(api.post("/v1/adapters", json={"hub_id": "org/lora"}))
    assert "no adapter_model.safetensors" in refused["message"]


@pytest.mark.one_database
@pytest.mark.parametrize(
    "hub_id",
    ["lora", "a/b/c", "../x", "org/..", "https://x/y", "org/lo ra", "", "a--b/c", "a/b.git", "a/-b", "a/b\n"],
)
def test_a_hub_id_is_checked_here(api: TestClient, monkeypatch: pytest.MonkeyPatch, hub_id: str) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    assert error(api.post("/v1/adapters", json={"hub_id": hub_id}))["param"] == "hub_id"


@pytest.mark.one_database
@pytest.mark.parametrize(
    "revision",
    [
        "/dev/zero",
        "../..",
        "a/../../b",
        "..",
        ".hidden",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        "a b",
        "-x",
        "x.lock",
        "x.",
        "refs\\heads",
        "~",
        "x" * 201,
        "",
    ],
)
def test_a_revision_is_no_path_on_the_server(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    """The hub's library opens `<cache>/refs/<revision>` where it cannot reach the hub."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    assert (
        error(api.post("/v1/adapters", json={"hub_id": "org/lora", "revision": revision}))["param"]
        == "revision"
    )


@pytest.mark.one_database
@pytest.mark.parametrize(
    "revision", ["main", "v1.0", "refs/pr/3", "a-b_c/d+e", "3f2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a4b", None]
)
def test_branches_tags_and_commits_are_revisions(
    api: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    snapshot = write_adapter(tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    body = {"hub_id": "org/lora", "revision": revision}
    assert api.post("/v1/adapters", json=body).status_code == 200


def test_hanging_downloads_are_limited_until_their_threads_end(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: let_go.wait(30))
    monkeypatch.setattr(registration, "_HUB_SECONDS", 0.05)
    answers = [api.post("/v1/adapters", json={"hub_id": "org/lora"}) for _ in range(6)]
    let_go.set()
    assert [answer.status_code for answer in answers] == [400] * 4 + [429] * 2
    assert answers[-1].headers["retry-after"]
    assert error(answers[-1], 429)["code"] == "too_many_registrations"


@pytest.mark.one_database
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"path": "/a", "hub_id": "a/b"},
        {"path": "/a", "revision": "x"},
        {"path": 1},
        {"hub_id": "a/b", "load": "no"},
    ],
)
def test_one_way_in_at_a_time(api: TestClient, body: dict[str, Any]) -> None:
    error(api.post("/v1/adapters", json=body))


# lists


def test_lists_are_narrowed(api: TestClient, store: Store) -> None:
    loaded, unloaded = (
        register(api),
        register(api, load=False, files=adapter_files(tensors=lora_tensors(value=0.25))),
    )
    engine = store.engines.get(BASE)
    assert engine is not None
    store.engines.set_residency(engine, loaded["sha256"], Residency.LOADED)

    def ids(**query: Any) -> list[str]:
        return [shown["id"] for shown in api.get("/v1/adapters", params=query).json()["data"]]

    assert ids() == [unloaded["id"], loaded["id"]]
    assert ids(state="loaded") == ids(loaded=True) == [loaded["id"]]
    assert ids(state="unloaded") == ids(loaded=False) == [unloaded["id"]]
    assert ids(base=BASE, limit=1) == [unloaded["id"]]
    assert ids(base="other") == ids(job="ftjob-none") == []
    assert ids(after=unloaded["id"]) == [loaded["id"]]
    assert error(api.get("/v1/adapters", params={"state": "odd"}))["param"] == "state"
    listed = api.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [BASE, unloaded["model"], loaded["model"]]
    assert [model["state"] for model in listed] == ["ready", "unloaded", "ready"]


def test_what_is_not_checked_yet_is_not_listed(make: Make, store: Store) -> None:
    api = make(parity="on")
    shown = register(api)
    assert (shown["state"], shown["parity"]) == ("checking", None)
    assert [model["id"] for model in api.get("/v1/models").json()["data"]] == [BASE]
    assert api.get(f"/v1/models/{shown['model']}").json()["state"] == "checking"
    assert store.models.wanted_adapters(BASE).keys() == {shown["sha256"]}, "the engine is asked about it"


def test_a_quarantined_adapter_is_served_only_by_force(api: TestClient, store: Store, worker: Worker) -> None:
    shown = register(api)
    url = f"/v1/adapters/{shown['id']}"
    assert api.post(f"{url}/load", params={"force": True}).json()["parity"] is None, "nothing to force"
    asked = api.post(f"{url}/check").json()
    assert (asked["parity"]["verdict"], asked["parity"]["check_pending"]) == (None, True)
    found = {"verdict": "fail", "reason": "No parity.", "checked_at": 1.0, "slope": 0.5}
    failed = {"level": "warn", "type": "message", "message": "No parity.", "data": None}
    store.checks.record(
        shown["id"], found, failure=JobError(code="parity_failed", message="No parity."), event=failed
    )
    current = api.get(url).json()
    assert (current["state"], current["parity"]["slope"], current["parity"]["check_pending"]) == (
        "quarantined",
        0.5,
        False,
    )
    assert api.get(f"/v1/models/{shown['model']}").json()["state"] == "quarantined"
    assert [model["id"] for model in api.get("/v1/models").json()["data"]] == [BASE]
    worker.asked.clear()
    for operation in ("load", "pin"):
        assert error(api.post(f"{url}/{operation}"))["code"] == "model_quarantined"
    assert worker.asked == []
    forced = api.post(f"{url}/load", params={"force": True}, headers={"X-Tunewright-User": "ann"}).json()
    assert (forced["parity"]["verdict"], forced["parity"]["forced"]["who"]) == ("fail", "ann")
    assert worker.asked == [("load", shown["model"])]
    assert shown["model"] in [model["id"] for model in api.get("/v1/models").json()["data"]]


def test_a_job_goes_on_from_a_registered_adapter(api: TestClient, store: Store) -> None:
    shown = register(api)
    body = {"model": shown["model"], "training_file": FILE["id"]}
    job = api.post("/v1/fine_tuning/jobs", json=body).json()
    assert (job["tuning"]["rank"], job["tuning"]["alpha"], job["tuning"]["dropout"]) == (4, 8.0, 0.0)
    kept = store.jobs.get(job["id"])
    assert kept is not None
    assert (kept.weights("parent"), kept.state) == ([shown["sha256"]], JobState.VALIDATING_FILES)


def test_a_download_of_what_is_deleted_meanwhile_is_a_404(api: TestClient, data: Workspace) -> None:
    shown = register(api)
    for path in data.artifacts.local(shown["sha256"]).iterdir():
        path.unlink()
    data.artifacts.local(shown["sha256"]).rmdir()
    error(api.get(f"/v1/adapters/{shown['id']}/download"), 404)
