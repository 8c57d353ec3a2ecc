"""A prefix of a bucket is one database's: another service, a copy of the database, an archive change nothing there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_remote_artifacts import adapter

from backups import new_job, new_store, publish_adapter, url_of
from postgres import Server, missing
from s3 import S3
from tunewright import serve
from tunewright.backup.create import make_backup
from tunewright.backup.restore import restore_archive
from tunewright.config import RetentionOptions, StorageOptions
from tunewright.errors import ArtifactsUnavailable
from tunewright.registry.bucket_owner import MARK, UNMARKED, BucketIdentity, Ownership, read_mark
from tunewright.registry.bucket_state import BucketState
from tunewright.registry.remote_artifacts import RemoteArtifacts
from tunewright.registry.workspace import Workspace
from tunewright.scheduler.bucket import BucketKeeper
from tunewright.scheduler.retention import Retention
from tunewright.store.states import JobState
from tunewright.store.store import Store


def silent(*_: object) -> None:
    pass


@dataclass
class OnBucket:
    """A data folder and a database whose artifacts are in a bucket."""

    data: Workspace
    store: Store
    options: StorageOptions

    @property
    def artifacts(self) -> RemoteArtifacts:
        assert self.data.remote is not None
        return self.data.remote

    @property
    def owner(self) -> str:
        return self.store.bucket_owners.of(self.artifacts.bucket.url).owner

    def start(self, take_over: str | None = None) -> BucketKeeper:
        """What a start of the service does with the bucket."""
        serve._require_bucket(self.data, self.store, take_over)
        return BucketKeeper(self.options, self.store, self.data)

    def tidy(self, keeper: BucketKeeper) -> BucketState | None:
        """A round ten minutes later."""
        keeper._tidy_due = 0.0
        keeper.round(self.artifacts)
        return BucketState.read(self.data.bucket_state)

    def publish(self) -> str:
        """An adapter that the database lists."""
        publish_adapter(
            self.data, self.store, new_job(self.store, JobState.RUNNING), "ft:missing::1", b"weights"
        )
        (sha256,) = self.store.models.weights_in_use()
        return sha256


@pytest.fixture(autouse=True)
def _one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is stopped is not asked again and again."""
    monkeypatch.setattr("tunewright.registry.bucket._ATTEMPTS", 1)
    monkeypatch.setattr("tunewright.registry.bucket._ATTEMPTS_OF_A_STREAM", 1)


@pytest.fixture
def make(tmp_path: Path, s3: S3) -> Iterator[Callable[[str], OnBucket]]:
    """Makes a service of one bucket and prefix, or finds the one that has its data there."""
    place, made = s3.bucket(), list[OnBucket]()

    def service(name: str) -> OnBucket:
        if not (tmp_path / name).exists():
            new_store(tmp_path / name)[1].close()
        options = StorageOptions(data_dir=tmp_path / name, artifacts=place, artifacts_endpoint=s3.endpoint)
        data = Workspace.of(options)
        data.create()
        made.append(OnBucket(data, Store.open(url_of(data)), options))
        return made[-1]

    yield service
    for one in made:
        one.store.close()


def copied(source: OnBucket, name: str, make: Callable[[str], OnBucket]) -> OnBucket:
    """A copy of the data folder, while nothing writes."""
    shutil.copytree(source.data.path, source.data.path.parent / name)
    return make(name)


def test_a_second_service_is_refused_and_takes_over_where_it_is_told_to(
    tmp_path: Path, make: Callable[[str], OnBucket]
) -> None:
    first, second = make("first"), make("second")
    keeper = first.start()
    sha256 = first.publish()
    with pytest.raises(ArtifactsUnavailable, match=f"another service .*first.*{first.owner}") as refused:
        second.start()
    assert refused.value.is_refusal
    acts: list[Callable[[], object]] = [
        lambda: second.artifacts.put(adapter(tmp_path / "b", 2.0)),
        lambda: second.artifacts.put(first.artifacts.local(sha256)),
        lambda: second.artifacts.upload_missing({sha256}),
        lambda: second.artifacts.remove_leftovers(2e10),
    ]
    for act in acts:
        with pytest.raises(ArtifactsUnavailable, match=r"are another service's"):
            act()
    assert not second.artifacts.remove(sha256, lambda: False)
    assert second.artifacts.fetch(sha256).is_dir(), "what is read harms nobody"
    with pytest.raises(ArtifactsUnavailable, match="--take-over-artifacts"):
        second.start("0" * 32)
    assert first.tidy(keeper) == BucketState(True)

    was = first.owner
    after = second.start(was)
    assert second.tidy(after) == BucketState(True)
    assert second.owner != was
    assert second.start(was) is not None, "it may be told again"
    state = first.tidy(keeper)
    assert state is not None
    assert (state.is_available, second.owner in (state.reason or "")) == (False, True)
    with pytest.raises(ArtifactsUnavailable, match="is still served"):
        first.artifacts.put(adapter(tmp_path / "c", 3.0))
    with pytest.raises(ArtifactsUnavailable, match="another service"):
        first.start(was)


def test_what_was_taken_over_is_not_removed_at_once(tmp_path: Path, make: Callable[[str], OnBucket]) -> None:
    first, second = make("first"), make("second")
    first.start()
    sha256 = first.publish()
    manifest = f"manifests/{sha256}.json"
    old = {**json.loads(first.artifacts.bucket.read(manifest)), "stored_at": 1.0}  # long ago
    first.artifacts.bucket.write(manifest, json.dumps(old).encode())
    second.start(first.owner)
    Retention(RetentionOptions(), second.store, second.data)._unused_artifacts()
    assert sha256 in second.artifacts.hashes()
    Retention(
        RetentionOptions(keep_unused_artifacts_days=1e-9), second.store, second.data
    )._unused_artifacts()
    assert sha256 not in second.artifacts.hashes()


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_copies_of_a_database_one_goes_on(
    tmp_path: Path, make: Callable[[str], OnBucket], is_first: bool
) -> None:
    first = make("first")
    keeper = first.start()
    first.publish()
    copy = copied(first, "copy", make)
    assert copy.owner == first.owner
    if is_first:  # the one that goes on is seen to by the copy
        assert first.tidy(keeper) == BucketState(True)
        with pytest.raises(ArtifactsUnavailable, match="is a copy of this one"):
            copy.start()
        copy.start(first.owner)
        assert copy.owner != first.owner
    else:
        copy.start()
    state = first.tidy(keeper)
    assert state is not None
    assert not state.is_available
    before = first.artifacts.hashes()
    with pytest.raises(ArtifactsUnavailable, match=r"another service|a copy of this one"):
        first.artifacts.put(adapter(tmp_path / "b", 2.0))
    with pytest.raises(ArtifactsUnavailable):
        BucketKeeper(first.options, first.store, first.data)._keep(first.artifacts, True)  # another scheduler
    assert first.artifacts.hashes() == before


def test_a_kill_at_any_step_of_a_turn_leaves_it_the_owner(
    make: Callable[[str], OnBucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make("first")
    bucket = service.artifacts.bucket
    write = type(bucket).write

    def killed_before(*_: object) -> None:
        raise KeyboardInterrupt

    def killed_after(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    for _ in range(2):
        for killed in (killed_before, killed_after, killed_before, killed_before, killed_after, killed_after):
            with monkeypatch.context() as patched:
                patched.setattr(type(bucket), "write", killed)
                with pytest.raises(KeyboardInterrupt):
                    service.start()
        service.start()
    mark = read_mark(bucket)
    assert mark is not None
    assert mark.owner == service.owner


def test_a_prefix_without_a_mark_is_claimed_by_the_database_that_knows_it(
    tmp_path: Path, make: Callable[[str], OnBucket]
) -> None:
    earlier, stranger = make("earlier"), make("stranger")
    earlier.publish()  # as a service of an earlier version
    with pytest.raises(ArtifactsUnavailable, match=rf"1 artifacts, of which .* none.*{UNMARKED}"):
        stranger.start()
    with pytest.raises(ArtifactsUnavailable, match="not this service's yet"):
        stranger.artifacts.put(adapter(tmp_path / "b", 2.0))
    stranger.start(UNMARKED)
    stranger.artifacts.bucket.remove([MARK])
    assert earlier.tidy(earlier.start()) == BucketState(True)
    earlier.artifacts.bucket.write(MARK, b'{"format": 2}')
    with pytest.raises(ArtifactsUnavailable, match="cannot be read"):
        earlier.start()


def test_a_service_that_starts_while_the_bucket_does_not_answer_claims_it_later(
    tmp_path: Path, make: Callable[[str], OnBucket], s3: S3
) -> None:
    service = make("first")
    s3.stop()
    try:
        keeper = service.start()
        with pytest.raises(ArtifactsUnavailable, match="does not answer"):
            service.artifacts.put(adapter(tmp_path / "made"))
    finally:
        s3.start_again()
    assert service.tidy(keeper) == BucketState(True)
    service.artifacts.put(adapter(tmp_path / "b", 2.0))


def test_a_restore_keeps_what_the_database_owns_and_brings_nothing(
    tmp_path: Path, make: Callable[[str], OnBucket]
) -> None:
    service = make("first")
    service.start()
    archive = tmp_path / "first.tar"
    make_backup(service.data, url_of(service.data), archive, silent)
    keeper = service.start()
    service.tidy(keeper)
    owned = service.store.bucket_owners.of(service.artifacts.bucket.url)
    service.store.close()
    restore_archive(service.data, url_of(service.data), archive, replace=True, on_progress=silent)
    again = make("first")
    found = again.store.bucket_owners.of(again.artifacts.bucket.url)
    assert (found.owner, found.turns) == (owned.owner, owned.turns)
    assert found.since > owned.since, "what the archive does not list has a day from the restore on"
    again.start()
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    elsewhere = Workspace(tmp_path / "elsewhere")
    restore_archive(elsewhere, url_of(elsewhere), archive, replace=False, on_progress=silent)
    with pytest.raises(ArtifactsUnavailable, match="another service"):
        make("elsewhere").start()


@pytest.mark.skipif(missing() is not None, reason=f"PostgreSQL is left out: {missing()}")
def test_a_restore_into_postgresql_takes_over_where_it_is_told_to(
    tmp_path: Path, make: Callable[[str], OnBucket], postgres: Server
) -> None:
    service = make("first")
    service.start()
    archive = tmp_path / "first.tar"
    make_backup(service.data, url_of(service.data), archive, silent)
    with postgres.database() as url:
        moved = Workspace.of(service.options.model_copy(update={"data_dir": tmp_path / "moved"}))
        restore_archive(moved, url, archive, replace=False, on_progress=silent)
        moved.create()
        there = OnBucket(moved, Store.open(url), service.options)
        try:
            with pytest.raises(ArtifactsUnavailable, match="another service"):
                there.start()
            there.start(service.owner)
            owned: BucketIdentity = there.store.bucket_owners.of(there.artifacts.bucket.url)
            there.store.close()
            restore_archive(moved, url, archive, replace=True, on_progress=silent)
            there.store = Store.open(url)
            found = there.store.bucket_owners.of(there.artifacts.bucket.url)
            assert (found.owner, found.turns, found.since > owned.since) == (owned.owner, owned.turns, True)
            there.start()
        finally:
            there.store.close()


def test_two_that_begin_at_once_are_not_both_the_owner(make: Callable[[str], OnBucket]) -> None:
    first, second = make("first"), make("second")
    owners = [
        Ownership(one.artifacts.bucket, one.store.bucket_owners, one.data.path, one.data.bucket_note)
        for one in (first, second)
    ]

    def meanwhile() -> set[str]:
        owners[1].claim(None, set, set)
        return set()

    owners[0].claim(None, meanwhile, set)  # both have found no mark; the last one's stays
    assert owners[0].keep(next_turn=True)
    with pytest.raises(ArtifactsUnavailable, match="another service"):
        owners[1].keep(next_turn=True)
