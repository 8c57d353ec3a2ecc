"""Artifacts in a bucket: whole or absent after a kill at any instant, a cache of limited size, a bucket that fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import update

from adapters import safetensors, zeros
from rows import Publish, create_job, engine_info
from s3 import S3
from tunewright.config import StorageOptions
from tunewright.errors import ArtifactsUnavailable
from tunewright.registry.bucket import Bucket
from tunewright.registry.bucket_state import BucketState
from tunewright.registry.content import artifact_sha256
from tunewright.registry.remote_artifacts import RemoteArtifacts
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.bucket import BucketKeeper
from tunewright.store.states import JobState, Residency
from tunewright.store.store import Store
from tunewright.store.tables import models

DAY = 86_400.0
Killed = Callable[[str, object, int], bool]


class Machine:
    """A data folder whose artifacts are in a bucket, which other machines may have too."""

    def __init__(self, path: Path, url: str, s3: S3) -> None:
        self.options = StorageOptions(data_dir=path, artifacts=url, artifacts_endpoint=s3.endpoint)
        self.data = Workspace.of(self.options)
        self.data.create()
        assert self.data.remote is not None
        self.artifacts: RemoteArtifacts = self.data.remote
        self.bucket: Bucket = self.artifacts.bucket

    def is_cached(self, sha256: str) -> bool:
        return self.artifacts.local(sha256).exists()

    def lose_cache(self) -> None:
        shutil.rmtree(self.data.path / "artifacts", ignore_errors=True)

    def rests(self, sha256: str, seconds: float = 3600.0) -> None:
        """The artifact was last used so long ago."""
        used_at = time.time() - seconds
        os.utime(self.artifacts.local(sha256), (used_at, used_at))


@pytest.fixture
def place(s3: S3) -> str:
    return s3.bucket()


@pytest.fixture
def here(tmp_path: Path, place: str, s3: S3) -> Machine:
    return Machine(tmp_path / "here", place, s3)


@pytest.fixture
def elsewhere(tmp_path: Path, place: str, s3: S3) -> Machine:
    return Machine(tmp_path / "elsewhere", place, s3)


def adapter(folder: Path, value: float = 1.0, size: int = 1) -> Path:
    folder.mkdir(parents=True)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors({"t": zeros(size, value=value)}))
    return folder


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "a name [with] spaces?.txt"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("make", [adapter, model])
def test_what_one_machine_stores_another_fetches(
    make: Callable[[Path], Path], tmp_path: Path, here: Machine, elsewhere: Machine
) -> None:
    source = make(tmp_path / "made")
    with ExitStack() as kept:
        sha256 = here.artifacts.put(source, kept)
    assert sha256 == artifact_sha256(source)
    assert here.artifacts.put(source) == sha256, "again changes nothing"
    assert len(here.bucket.find("manifests/")) == 1
    assert len(here.bucket.find("objects/")) == len(list(source.iterdir()))

    assert elsewhere.artifacts.hashes() == {sha256}
    assert elsewhere.artifacts.stat(sha256).bytes == sum(file.stat().st_size for file in source.iterdir())
    assert not elsewhere.is_cached(sha256), "nothing is fetched before it is asked for"
    folder = elsewhere.artifacts.fetch(sha256)
    assert folder == elsewhere.artifacts.local(sha256)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in source.iterdir()
    }

    assert not here.artifacts.remove(sha256, lambda: True)
    assert here.artifacts.remove(sha256, lambda: False)
    assert not here.is_cached(sha256)
    assert here.bucket.find("") == {}
    assert not here.artifacts.remove(sha256, lambda: False)
    here.lose_cache()
    with pytest.raises(FileNotFoundError):
        here.artifacts.fetch(sha256)


def test_a_folder_with_the_same_hash_does_not_change_what_is_stored(
    tmp_path: Path, here: Machine, elsewhere: Machine
) -> None:
    first, second = adapter(tmp_path / "first"), adapter(tmp_path / "second")
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps({**config, "lora_dropout": 0.5}))
    sha256 = here.artifacts.put(first)
    assert elsewhere.artifacts.put(second) == sha256, "the hash leaves the dropout out"
    stored = elsewhere.artifacts.fetch(sha256) / "adapter_config.json"
    assert json.loads(stored.read_text())["lora_dropout"] == 0.0


def test_damage_in_the_bucket_is_found(tmp_path: Path, here: Machine, elsewhere: Machine) -> None:
    sha256 = here.artifacts.put(adapter(tmp_path / "made"))
    (weights,) = (name for name in here.bucket.find("objects/") if name.endswith(".safetensors"))
    good = here.bucket.read(weights)
    for bad in (good[:-1], good[:-1] + b"x"):
        here.bucket.write(weights, bad)
        with pytest.raises(ArtifactsUnavailable, match=f"{sha256} .* is damaged"):
            elsewhere.artifacts.fetch(sha256)
        assert not elsewhere.is_cached(sha256)
    here.bucket.write(f"manifests/{sha256}.json", b'{"files": {"../x": 1}}')
    with pytest.raises(ArtifactsUnavailable, match="its manifest cannot be read"):
        elsewhere.artifacts.fetch(sha256)
    assert list(elsewhere.data.tmp.iterdir()) == []
    assert here.artifacts.remove(sha256, lambda: False), "what is damaged can be removed"
    assert here.bucket.find("") == {}


KILLED = """
import os, signal, sys
from pathlib import Path
import s3fs
from tunewright.config import StorageOptions
from tunewright.registry import artifacts, remote_artifacts
from tunewright.registry.bucket import Bucket
from tunewright.registry.workspace import Workspace

print("ready", flush=True)
for line in sys.stdin:
    url, endpoint, path, what, argument, steps = line.split()
    if os.fork() == 0:
        left = int(steps)
        def counted(method):
            def call(*arguments, **named):
                global left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return method(*arguments, **named)
            return call
        for name in ("upload", "write", "download"):
            setattr(Bucket, name, counted(getattr(Bucket, name)))
        for module in (artifacts, remote_artifacts):
            module.publish_folder = counted(module.publish_folder)
        data = Workspace.of(StorageOptions(data_dir=Path(path), artifacts=url, artifacts_endpoint=endpoint))
        data.artifacts.put(Path(argument)) if what == "put" else data.artifacts.fetch(argument)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
"""Each line of its input is done by a process of its own, which is killed before its step of this number."""


@pytest.fixture(scope="module")
def killer(s3_server: S3) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, **s3_server.keys, "PYTHONPATH": path}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", KILLED], env=environment, text=True, **pipes) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        yield started
        started.stdin.close()


@pytest.fixture
def killed(here: Machine, place: str, s3: S3, killer: subprocess.Popen[str]) -> Killed:
    """Calls `put` or `fetch` in a process that is killed before a step; returns whether it was."""

    def run(what: str, argument: object, steps: int) -> bool:
        assert killer.stdout is not None
        print(place, s3.endpoint, here.data.path, what, argument, steps, file=killer.stdin, flush=True)
        code = int(killer.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code != 0

    return run


def test_a_put_that_is_killed_anywhere_leaves_nothing_half(
    tmp_path: Path, here: Machine, elsewhere: Machine, killed: Killed
) -> None:
    source = adapter(tmp_path / "made")
    sha256 = artifact_sha256(source)
    steps = 0
    while killed("put", source, steps):
        if here.bucket.find("manifests/"):  # only the cache is missing
            assert artifact_sha256(elsewhere.artifacts.fetch(sha256)) == sha256
        else:
            assert elsewhere.artifacts.hashes() == set()
            with pytest.raises(FileNotFoundError):
                elsewhere.artifacts.fetch(sha256)
        assert not here.is_cached(sha256)
        steps += 1
        here.bucket.remove(list(here.bucket.find("manifests/")))
        elsewhere.lose_cache()
    assert steps == 4, "killed before each of two files, the manifest, and its place in the cache"
    assert here.is_cached(sha256), "the next one finishes"
    assert artifact_sha256(elsewhere.artifacts.fetch(sha256)) == sha256
    before = here.bucket.find("objects/")
    assert len(before) == 1 + 2 + 2 + 2, "what was killed is left"
    here.bucket._call("create_multipart_upload", Key=here.bucket._key(f"objects/{sha256}/x/y"))
    assert here.artifacts.remove_leftovers(time.time()) == 0, "an upload may still be running"
    assert here.artifacts.remove_leftovers(time.time() + 2 * DAY) == 5
    assert here.bucket.unfinished_uploads() == []
    elsewhere.lose_cache()
    assert artifact_sha256(elsewhere.artifacts.fetch(sha256)) == sha256


def test_a_fetch_that_is_killed_anywhere_leaves_nothing_half(
    tmp_path: Path, here: Machine, elsewhere: Machine, killed: Killed
) -> None:
    sha256 = elsewhere.artifacts.put(adapter(tmp_path / "made"))
    steps = 0
    while killed("fetch", sha256, steps):
        assert not here.is_cached(sha256)
        steps += 1
    assert steps == 3, "killed before each of two files, and its place in the cache"
    assert artifact_sha256(here.artifacts.fetch(sha256)) == sha256, "the next one finishes"
    assert here.artifacts.hashes() == {sha256}
    left = list(here.data.tmp.glob("fetch-*"))
    assert len(left) == steps
    for folder in left:
        os.utime(folder, (0, 0))
    here.lose_cache()
    here.artifacts.fetch(sha256)
    assert list(here.data.tmp.iterdir()) == [], "and removes what is left"


def test_the_cache_keeps_to_its_size(tmp_path: Path, here: Machine) -> None:
    hashes = [
        here.artifacts.put(adapter(tmp_path / str(value), value, size=1000)) for value in (1.0, 2.0, 3.0, 4.0)
    ]
    size = here.artifacts.stat(hashes[0]).bytes
    for age, sha256 in enumerate(reversed(hashes)):
        here.rests(sha256, 1000.0 + age)
    here.artifacts.fetch(hashes[0])
    with here.artifacts.keeping(hashes[1]):
        assert here.artifacts.shrink_cache(4 * size, list) == 4 * size
        assert here.artifacts.shrink_cache(2 * size, lambda: {hashes[2]}) == 3 * size
    assert [here.is_cached(sha256) for sha256 in hashes] == [True, True, True, False], (
        "held, in use, just used: kept"
    )
    assert here.artifacts.shrink_cache(size, list) == size
    assert [here.is_cached(sha256) for sha256 in hashes] == [True, False, False, False]
    assert here.artifacts.hashes() == set(hashes), "the bucket has them all"
    assert artifact_sha256(here.artifacts.fetch(hashes[3])) == hashes[3]


def test_what_was_stored_before_there_was_a_bucket_is_uploaded(
    tmp_path: Path, here: Machine, elsewhere: Machine
) -> None:
    local = Workspace(here.data.path)
    used, unused = (local.artifacts.put(adapter(tmp_path / str(value), value)) for value in (1.0, 2.0))
    for sha256 in (used, unused):
        here.rests(sha256)
    assert here.artifacts.shrink_cache(0, list) > 0
    assert here.is_cached(used), "there is no other copy"
    assert here.artifacts.upload_missing({used, "e" * 64}) == 1
    assert here.artifacts.upload_missing({used, "e" * 64}) == 0
    assert elsewhere.artifacts.hashes() == {used}
    assert artifact_sha256(elsewhere.artifacts.fetch(used)) == used


def test_a_bucket_that_does_not_answer(tmp_path: Path, here: Machine, s3: S3, store: Store) -> None:
    keeper = BucketKeeper(here.options, store, here.data)
    keeper.round(here.artifacts)
    cached = here.artifacts.put(adapter(tmp_path / "made"))
    assert BucketState.read(here.data.bucket_state) == BucketState(True)
    s3.stop()
    try:
        assert here.artifacts.fetch(cached).is_dir(), "what is cached is there"
        with pytest.raises(
            ArtifactsUnavailable, match=r"of/a-service at http://.* does not answer"
        ) as refused:
            here.artifacts.put(adapter(tmp_path / "other", 2.0))
        assert (refused.value.status, refused.value.code) == (503, "artifacts_unavailable")
        assert not refused.value.is_refusal
        assert not here.artifacts.remove(cached, lambda: False), "it is removed when the bucket answers"
        assert here.is_cached(cached)
        keeper.round(here.artifacts)
        found = BucketState.read(here.data.bucket_state)
        assert found is not None
        assert not found.is_available
        assert "does not answer" in (found.reason or "")
    finally:
        s3.start_again()
    keeper.round(here.artifacts)
    assert BucketState.read(here.data.bucket_state) == BucketState(True)
    assert here.artifacts.remove(cached, lambda: False)


def test_a_bucket_that_refuses_says_why(s3: S3, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactsUnavailable, match=r"refuses .*bucket does not exist") as refused:
        Bucket("s3://not-there/x", s3.endpoint).check()
    assert refused.value.is_refusal
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ArtifactsUnavailable, match="Unable to locate credentials") as refused:
        Bucket(place, s3.endpoint).check()
    assert refused.value.is_refusal


@pytest.mark.each_database
def test_what_is_at_work_stays_in_the_cache(store: Store, publish_model: Publish) -> None:
    names = [
        "a started from",
        "b being checked",
        "c in an engine",
        "d full and served",
        "e full",
        "f evicted",
    ]
    hashes = {name[0]: name[0] * 64 for name in names}
    publish_model(
        *(
            {
                "name": name, "sha256": hashes[name[0]], "kind": "full" if "full" in name else "adapter",
                "checkpoint_step": number or None,
            }
            for number, name in enumerate(names)
        )
    )  # fmt: skip
    with store.database.begin() as connection:
        connection.execute(update(models).where(models.c.name == names[1]).values(state="checking"))
    create_job(store, state=JobState.PAUSED, parent_sha256=hashes["a"])
    create_job(store, state=JobState.FAILED, parent_sha256=hashes["f"])
    store.engines.declare(["tiny", names[3]])
    store.engines.starting(names[3], "a.sock", engine_info())
    store.engines.starting("tiny", "b.sock", engine_info())
    engine = store.engines.get("tiny")
    assert engine is not None
    store.engines.set_residency(engine, hashes["c"], Residency.LOADED, number=1)
    assert {sha256[0] for sha256 in store.models.weights_at_work()} == set("abcd")
