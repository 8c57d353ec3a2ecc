"""`python -m tunewright.supervisor.forks FD TITLE MODULE...`: imports modules, and forks for each request on socket FD.

A process that trains, exports or measures imports torch, transformers, peft and TRL first, which takes longer than what
many of them do; and so does vLLM's server. A fork of a process that has imported them has them at once.

Messages are JSON, one for each packet (SOCK_SEQPACKET). A request is a `Request` with the descriptor that takes the
output; the answer is {"pid"}. {"ready": true} is sent when the modules are imported, and {"pid", "exit"} when a fork
has ended (negative: the signal that ended it). The process ends when the other end of the socket is closed; its forks
go on, each in the process group that was asked for.
"""

from __future__ import annotations

import gc
import json
import os
import random
import runpy
import selectors
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from setproctitle import setproctitle

from tunewright.imports import prepare_environment, quick_imports

LARGEST_MESSAGE = 1 << 17
"""Bytes; a packet that is larger than what the system's sockets take is refused."""


@dataclass(frozen=True)
class Request:
    """A process to start."""

    command: Sequence[str]
    """The command line of an interpreter that runs a module: [..., "-m", MODULE, ARGUMENT...]."""
    environment: dict[str, str]
    group: int
    """The process group."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def main() -> None:
    descriptor, title, *modules = sys.argv[1:]
    channel = socket.socket(fileno=int(descriptor))
    setproctitle(title)
    prepare_environment()
    # Asking a GPU's driver for devices in this process would make its forks unable to use them.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    before = dict(os.environ)
    with quick_imports():
        for module in modules:
            import_module(module)
    by_imports = {name: value for name, value in os.environ.items() if before.get(name) != value}
    gc.freeze()  # the collector would write to pages that the forks share
    channel.send(b'{"ready": true}')
    with warnings.catch_warnings():
        # Python warns of forks where there are threads; those here are numpy's and pyarrow's, which are made for it
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*use of fork")
        forked = _serve(channel)
    if forked is not None:
        _become(*forked, by_imports)


def _serve(channel: socket.socket) -> tuple[Request, int] | None:
    """Answer requests until the other end is closed. Returns in each fork, with its request and its output."""
    running: dict[int, int] = {}  # process id by the descriptor that tells its end
    with selectors.DefaultSelector() as ready:
        ready.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is channel:
                    request, output = _receive(channel)
                    if request is None or output is None:
                        return None
                    pid = os.fork()
                    if pid == 0:
                        for descriptor in running:
                            os.close(descriptor)
                        channel.close()
                        return request, output
                    os.close(output)
                    with suppress(OSError):  # the fork does the same; whichever comes first
                        os.setpgid(pid, request.group)
                    ended = os.pidfd_open(pid)
                    running[ended] = pid
                    ready.register(ended, selectors.EVENT_READ)
                    _send(channel, {"pid": pid})
                else:
                    pid = running.pop(key.fd)
                    ready.unregister(key.fd)
                    os.close(key.fd)
                    status = os.waitpid(pid, 0)[1]
                    _send(channel, {"pid": pid, "exit": os.waitstatus_to_exitcode(status)})


def _receive(channel: socket.socket) -> tuple[Request | None, int | None]:
    data, descriptors, _, _ = socket.recv_fds(channel, LARGEST_MESSAGE, 1)
    if not data or not descriptors:
        return None, None
    return Request(**json.loads(data)), descriptors[0]


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    try:
        channel.send(json.dumps(message).encode())
    except BrokenPipeError:
        pass  # nobody asks any more; the next read ends the loop


def _become(request: Request, output: int, by_imports: dict[str, str]) -> None:
    """Run the module of the request as `python -m` would, and exit as it does. `by_imports`: environment variables that
    the imports have set, as they would in the process itself."""
    os.setpgid(0, request.group)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    os.environ.clear()
    os.environ.update(request.environment | by_imports)
    random.seed()
    command = list(request.command)
    start = command.index("-m") + 1
    sys.orig_argv, sys.argv = command, command[start:]
    setproctitle(" ".join(command))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
