"""What an engine has outside of the data folder: shared memory, and the sockets of its processes. vLLM removes both
where it ends in an orderly way, and leaves them where it is killed.

Each start of an engine gets a random tag, which is on record in the engine's folder before the process exists: the name
of a folder for the sockets, and the beginning of the names of all its shared memory (`TaggedSharedMemory`). So what
carries the tag is that start's alone, whatever else runs on the machine, and is removed when its processes have ended.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from secrets import token_hex
from typing import Any

_TAG = "TUNEWRIGHT_ENGINE_TAG"
"""The environment variable that vLLM's processes read the tag from."""
_RECORD = "leftovers"
_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "tunewright-"
_IS_TAG = re.compile(rf"{_PREFIX}\w+")


def prepare(record_folder: Path, sockets: Path) -> dict[str, str]:
    """Remove what is left of an earlier start, and make a tag for the next one. `sockets` is where its folder of
    sockets is made. Returns environment variables for the engine. Raises OSError; then nothing was made."""
    remove(record_folder)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=sockets))
    try:
        record_folder.mkdir(parents=True, exist_ok=True)
        (record_folder / _RECORD).write_text(str(folder))
    except OSError:
        folder.rmdir()
        raise
    return {_TAG: folder.name, "VLLM_RPC_BASE_PATH": str(folder)}


def remove(record_folder: Path) -> None:
    """Remove what is left of the start on record, whose processes have ended. Nothing is on record: nothing happens."""
    record = record_folder / _RECORD
    try:
        folder = Path(record.read_text())
    except FileNotFoundError:
        return
    if _IS_TAG.fullmatch(folder.name):
        for memory in _SHARED_MEMORY.glob(f"{folder.name}-*"):
            memory.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink(missing_ok=True)


class TaggedSharedMemory(SharedMemory):
    """Python's shared memory, which gives what it creates a name with the tag in the environment."""

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0, **options: Any) -> None:
        if create and name is None:
            name = f"{os.environ[_TAG]}-{token_hex(8)}"
        super().__init__(name, create, size, **options)


def tag_shared_memory(module: Any) -> None:
    """Let `module`, Python's multiprocessing.shared_memory, tag what is created in this process and its forks, where
    the environment has a tag."""
    if _TAG in os.environ:
        module.SharedMemory = TaggedSharedMemory
