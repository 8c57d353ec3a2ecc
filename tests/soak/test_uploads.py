"""2 GB sent to a real service: refused while it comes, or kept where that is allowed, and memory stays flat."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from uploads import BLOCK, MIB, memory, peak_memory, started, traces, upload

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
BLOCKS = 2 * 10**9 // len(BLOCK)
FLAT = 24 * MIB


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_2_gb_over_the_default_limit_are_refused(tmp_path: Path, chunked: bool) -> None:
    service = started(tmp_path / "data")
    try:
        upload(service, 2)
        before, began = memory(service), time.monotonic()
        answer = upload(service, BLOCKS, chunked=chunked, reads_early=False)
        took, after = time.monotonic() - began, peak_memory(service)
        assert (answer.status, answer.body["error"]["code"]) == (413, "too_large")
        assert len(traces(service)) == 1, "of the small one before"
    finally:
        service.stop()
    print(
        f"\n413 for {answer.sent / 1e9:.2f} GB in {took:.1f} s; peak of the api: {before / MIB:.0f} MiB before, "
        f"{after / MIB:.0f} MiB after"
    )
    assert after - before < FLAT


def test_2_gb_within_the_limit_are_kept(tmp_path: Path) -> None:
    service = started(tmp_path / "data", "--max-upload", "4GiB")
    try:
        upload(service, 2)
        before, began = memory(service), time.monotonic()
        answer = upload(service, BLOCKS, chunked=True)
        took, after = time.monotonic() - began, peak_memory(service)
        digest = hashlib.sha256()
        for _ in range(BLOCKS):
            digest.update(BLOCK)
        assert answer.status == 200, answer.body
        assert (answer.body["bytes"], answer.body["sha256"]) == (BLOCKS * len(BLOCK), digest.hexdigest())
        kept = service.data_dir / "files" / answer.body["id"]
        assert kept.stat().st_size == BLOCKS * len(BLOCK)
        kept.unlink()
    finally:
        service.stop()
    print(
        f"\n{answer.sent / 1e9:.2f} GB kept in {took:.1f} s; peak of the api: {before / MIB:.0f} MiB before, "
        f"{after / MIB:.0f} MiB after"
    )
    assert after - before < FLAT
