"""Adapters from a hub: nothing is downloaded before its size is known, and the cache of them has a limit."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from tunewright.errors import InvalidRequest, StorageFull, TooLarge, TooManyRequests
from tunewright.registry import hub_cache
from tunewright.registry.hub_cache import HubCache

FILES = ["adapter_config.json", "adapter_model.safetensors"]
COMMIT = "c" * 40


class Hub:
    """A hub in place of the client's two functions: what it says of a repository's files, and what was downloaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: dict[str, int | None] = {"adapter_config.json": 10, "adapter_model.safetensors": 1000}
        self.down: Exception | None = None
        self.downloads: list[str] = []
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self._info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self._download)

    def _info(self, hub_id: str, **options: Any) -> Any:
        assert options["files_metadata"] is True
        if self.down:
            raise self.down
        return SimpleNamespace(
            siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in self.sizes.items()]
        )

    def _download(self, hub_id: str, **options: Any) -> str:
        repository = Path(options["cache_dir"]) / f"models--{hub_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / COMMIT
        if options["local_files_only"]:
            if not snapshot.exists():
                raise LocalEntryNotFoundError("nothing in the cache")
            return str(snapshot)
        self.downloads.append(hub_id)
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        snapshot.mkdir(parents=True, exist_ok=True)
        for name in options["allow_patterns"]:
            blob = repository / "blobs" / name
            blob.write_bytes(b"x" * (self.sizes[name] or 0))
            (snapshot / name).unlink(missing_ok=True)
            (snapshot / name).symlink_to(blob)
        return str(snapshot)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def cache(tmp_path: Path, largest: int = 10**6, largest_adapter: int = 10**5) -> HubCache:
    return HubCache(tmp_path / "hub", largest, largest_adapter)


def age(cached: HubCache, hub_id: str, seconds: float) -> None:
    path = cached.folder / f"models--{hub_id.replace('/', '--')}"
    os.utime(path, (time.time() - seconds,) * 2)


def test_an_adapter_is_downloaded_into_the_services_own_cache(tmp_path: Path, hub: Hub) -> None:
    found = cache(tmp_path).fetch("org/a", None, FILES)
    assert found.name == COMMIT
    assert found.is_relative_to(tmp_path / "hub")
    assert sorted(path.name for path in found.iterdir()) == FILES


def test_what_is_larger_than_the_limit_is_not_downloaded(tmp_path: Path, hub: Hub) -> None:
    hub.sizes["adapter_model.safetensors"] = 10**12
    with pytest.raises(TooLarge, match="--max-adapter-size"):
        cache(tmp_path).fetch("org/a", None, FILES)
    with pytest.raises(TooLarge, match="--max-hub-cache-size"):
        cache(tmp_path, largest=10, largest_adapter=10**13).fetch("org/a", None, FILES)
    assert hub.downloads == []


def test_only_the_files_that_are_taken_count(tmp_path: Path, hub: Hub) -> None:
    hub.sizes["optimizer.pt"] = 10**12
    cache(tmp_path).fetch("org/a", None, FILES)
    assert hub.downloads == ["org/a"]


def test_files_of_unknown_size_are_not_downloaded(tmp_path: Path, hub: Hub) -> None:
    hub.sizes["adapter_model.safetensors"] = None
    with pytest.raises(InvalidRequest, match="does not say how large"):
        cache(tmp_path).fetch("org/a", None, FILES)
    assert hub.downloads == []


def test_a_full_disk_is_told_before_the_download(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hub_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=hub_cache._SPARE + 1009)
    )
    with pytest.raises(StorageFull):
        cache(tmp_path).fetch("org/a", None, FILES)
    assert hub.downloads == []


def test_without_a_hub_the_cache_is_used_and_nothing_else(tmp_path: Path, hub: Hub) -> None:
    cached = cache(tmp_path)
    found = cached.fetch("org/a", None, FILES)
    hub.down = ConnectionError("no route to host")
    assert cached.fetch("org/a", None, FILES) == found
    with pytest.raises(ConnectionError, match="no route to host"):
        cached.fetch("org/b", None, FILES)
    assert hub.downloads == ["org/a"]


def test_those_used_longest_ago_make_room(tmp_path: Path, hub: Hub) -> None:
    cached = cache(tmp_path, largest=25_000)
    hub.sizes["adapter_model.safetensors"] = 10_000
    for number, name in enumerate(("org/a", "org/b")):
        cached.fetch(name, None, FILES)
        age(cached, name, 10_000 - number)
    cached.fetch("org/a", None, FILES)
    age(cached, "org/a", 2_000)
    hub.sizes["adapter_model.safetensors"] = 12_000
    cached.fetch("org/c", None, FILES)
    left = sorted(path.name for path in cached.folder.glob("models--*"))
    assert left == ["models--org--a", "models--org--c"], "org/b was used longest ago"


def test_what_was_fetched_a_moment_ago_is_not_removed_for_another(tmp_path: Path, hub: Hub) -> None:
    """It may be read at this moment, to be registered."""
    cached = cache(tmp_path, largest=15_000)
    hub.sizes["adapter_model.safetensors"] = 10_000
    cached.fetch("org/a", None, FILES)
    with pytest.raises(TooManyRequests) as refused:
        cached.fetch("org/b", None, FILES)
    assert (refused.value.code, refused.value.retry_after) == ("hub_cache_full", 60)
    age(cached, "org/a", 1_000)
    cached.fetch("org/b", None, FILES)
    assert hub.downloads == ["org/a", "org/b"]
