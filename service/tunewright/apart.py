"""Calls functions on what strangers sent in processes with limits of time and memory.

A parser that takes for ever, or all memory, must not do so in the process that answers everybody. The processes are
forked by one helper that has imported the parsers, so that each call costs milliseconds. Results come back pickled.

`python -m tunewright.apart FD` is the helper; for each socket that it gets over FD, it forks a process that
reads a call from there and answers it. It ends when the other end of FD is closed.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, BinaryIO, NamedTuple, TypeVar

from tunewright.errors import EngineUnavailable, TunewrightError

T = TypeVar("T")

_MODULES = (
    "numpy",
    "tunewright.graders.calling",
    "tunewright.metrics.structured",
    "tunewright.registry.adapter_archive",
    "tunewright.registry.adapter_intake",
    "tunewright.rows.templates",
)
"""What the helper imports before the first call, so that no call has to."""
_AT_ONCE = 4
_MEMORY = 512 * 2**20
"""Bytes that a call may take beside what the helper has."""
_SECONDS, _BYTES_PER_SECOND = 10, 5 * 2**20
"""Processor time that each call may take, and beside it a second for so many bytes of its files."""
_WALL = 3
"""Times the processor time, after which a call is ended that waits: for a disk or for a processor."""
_NICENESS = 10
"""The processes that answer everybody come first."""
_LENGTH = 8
_MOST_FILES = 64
"""More than a job has: 33 to train on, and those that it is measured on."""

_START_SECONDS = 30.0
"""In which the helper has imported everything and forked."""


class CutOff(Exception):
    """A call that was ended, since it took longer than `seconds` of processor time, or crashed."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"it took more than {seconds} s, or crashed")
        self.seconds = seconds


class OutOfMemory(Exception):
    """A call that needed more memory than a call may take."""

    def __init__(self) -> None:
        super().__init__(f"it takes more than {self.mebibytes} MiB of memory")

    mebibytes = _MEMORY // 2**20


class _Helper(NamedTuple):
    process: subprocess.Popen[bytes]
    control: socket.socket


_places = threading.Semaphore(_AT_ONCE)
_changing = threading.Lock()
_helper: _Helper | None = None


def call_apart(
    function: Callable[..., T], files: Sequence[BinaryIO], *args: Any, seconds: int | None = None
) -> T:
    """`function(*files, *args)` in a process of its own; the files have descriptors, and the rest can be pickled.
    `seconds`: processor time that it may take, if not what is usual for the size of the files.

    Blocks until it has ended, or others have. Raises what it raises if that is an OSError or of the service's own
    errors; CutOff where it took too long or crashed, and OutOfMemory where it took too much memory.
    """
    descriptors = [file.fileno() for file in files]
    size = sum(os.fstat(descriptor).st_size for descriptor in descriptors)
    seconds = seconds or _SECONDS + size // _BYTES_PER_SECOND
    call = pickle.dumps((function, args, seconds))
    with _places, _connect() as connection:
        connection.settimeout(_WALL * seconds + 10)
        try:
            socket.send_fds(connection, [len(call).to_bytes(_LENGTH, "big")], descriptors)
            connection.sendall(call)
            answer = _read_all(connection)
        except OSError:  # it was ended before it had read everything
            answer = b""
    if not answer:
        raise CutOff(seconds)
    succeeded, value = pickle.loads(answer)
    if succeeded:
        return value  # type: ignore[no-any-return]
    if isinstance(value, MemoryError):
        raise OutOfMemory
    raise value


def _connect() -> socket.socket:
    """A connection to a new process of the helper, which is started first where there is none."""
    for _ in range(3):
        helper = _running_helper()
        ours, theirs = socket.socketpair()
        ours.settimeout(_START_SECONDS)
        try:
            with theirs:
                socket.send_fds(helper.control, [b"."], [theirs.fileno()])
            if ours.recv(1):
                return ours
        except OSError:
            pass
        ours.close()
        _end(helper)  # it was killed, or hangs
    raise EngineUnavailable("The process that checks what is sent could not be started: try again.")


def _running_helper() -> _Helper:
    from tunewright.config import child_environment  # here, since the helper does without it

    global _helper
    with _changing:
        if _helper is None:
            ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tunewright.apart", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=child_environment({"OPENBLAS_NUM_THREADS": "1"}),  # a fork would not copy threads
                )
            _helper = _Helper(process, ours)
        return _helper


def _end(helper: _Helper) -> None:
    global _helper
    with _changing:
        if _helper is helper:
            _helper = None
            helper.control.close()
            helper.process.kill()
            helper.process.wait()


def _read_all(connection: socket.socket) -> bytes:
    blocks = []
    while block := connection.recv(2**20):
        blocks.append(block)
    return b"".join(blocks)


# the helper and its processes


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    _prepare()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _answer(socket.socket(fileno=descriptors[0]))
            os._exit(0)
        os.close(descriptors[0])


def _prepare() -> None:
    """Import what the calls need, before the first of them."""
    from setproctitle import setproctitle

    for module in _MODULES:
        import_module(module)
    setproctitle("tunewright: checks")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody has to wait for the processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()


def _answer(connection: socket.socket) -> None:
    connection.sendall(b".")
    length, descriptors, _, _ = socket.recv_fds(connection, _LENGTH, _MOST_FILES)
    call = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
    function, args, seconds = pickle.loads(call)
    del call
    os.nice(_NICENESS)
    _limit(seconds)
    try:
        files = [os.fdopen(descriptor, "rb") for descriptor in descriptors]
        outcome: tuple[bool, object] = (True, function(*files, *args))
    except (TunewrightError, OSError) as error:
        outcome = (False, error)
    except MemoryError:
        outcome = (False, MemoryError())
    except Exception:
        outcome = (False, RuntimeError(traceback.format_exc()))
    connection.sendall(pickle.dumps(outcome))


def _limit(seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    signal.setitimer(signal.ITIMER_REAL, _WALL * seconds)  # the signal ends the process
    limit_memory(_MEMORY)


def limit_memory(more: int) -> None:
    """Let this process take so many bytes of address space beside what it has, and leave no core where it ends."""
    with open("/proc/self/statm") as file:
        there = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (there + more, there + more))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
