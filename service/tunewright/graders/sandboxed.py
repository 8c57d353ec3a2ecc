"""The process of one `python` grader: confines itself, and calls the program. Run by path; it imports nothing of ours.

Its input is a JSON object on stdin, and its answer one on the descriptor that it gets as its argument. Landlock takes
its files and its TCP ports away, but for reading Python's own files; a filter of system calls (seccomp) all other
sockets, new processes and programs, signals to others and tracing; capabilities are dropped, and limits of time and
memory are set. What of it the kernel does not have is an error: nothing is run then.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import traceback
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 1, 22, 38, 24
_SIGKILL = 9
_CAPSET = {"x86_64": 126, "aarch64": 91}
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many kinds of access to files each version of Landlock controls; later ones as many as the last."""

_ALLOW, _REFUSE, _ABSENT, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM, ENOSYS
_CLONE_THREAD = 0x00010000
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS: dict[str, dict[str, int]] = {
    "x86_64": {
        "socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "fork": 57, "vfork": 58, "execve": 59,
        "execveat": 322, "kill": 62, "tkill": 200, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438,
        "io_uring_setup": 425, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "unshare": 272,
        "setns": 308, "mount": 165, "umount2": 166, "keyctl": 250, "add_key": 248, "request_key": 249,
        "prlimit64": 302, "setpriority": 141, "sched_setaffinity": 203, "sched_setscheduler": 144,
        "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64, "mq_open": 240, "open_by_handle_at": 304,
        "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "sched_setattr": 314, "sched_setparam": 142,
        "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279, "process_madvise": 440, "process_mrelease": 448,
        "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
        "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188,
        "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463, "removexattr": 197, "lremovexattr": 198,
        "fremovexattr": 199, "removexattrat": 466, "file_setattr": 469, "inotify_init": 253, "inotify_init1": 294,
        "fanotify_init": 300, "kcmp": 312, "chroot": 161, "pivot_root": 155,
        "clone": 56, "clone3": 435, "fcntl": 72,
    },
    "aarch64": {
        "socket": 198, "socketpair": 199, "connect": 203, "bind": 200, "execve": 221, "execveat": 281,
        "kill": 129, "tkill": 130, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271,
        "pidfd_open": 434, "pidfd_send_signal": 424, "pidfd_getfd": 438, "io_uring_setup": 425, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "unshare": 97, "setns": 268, "mount": 40, "umount2": 39,
        "keyctl": 219, "add_key": 217, "request_key": 218, "prlimit64": 261, "setpriority": 140,
        "sched_setaffinity": 122, "sched_setscheduler": 119, "shmget": 194, "shmat": 196, "msgget": 186,
        "semget": 190, "mq_open": 180, "open_by_handle_at": 265,
        "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "sched_setattr": 274, "sched_setparam": 118,
        "ioprio_set": 30, "migrate_pages": 238, "move_pages": 239, "process_madvise": 440, "process_mrelease": 448,
        "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "fchownat": 54, "fchown": 55, "utimensat": 88, "setxattr": 5,
        "lsetxattr": 6, "fsetxattr": 7, "setxattrat": 463, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
        "removexattrat": 466, "file_setattr": 469, "inotify_init1": 26, "fanotify_init": 262, "kcmp": 272,
        "chroot": 51, "pivot_root": 41,
        "clone": 220, "clone3": 435, "fcntl": 25,
    },
}  # fmt: skip
"""The calls that are refused. `clone` still makes threads; `clone3` is said to be absent, so that the C library uses
`clone`, whose flags can be seen. `fcntl` does all but have others told of a file by a signal. Landlock controls neither
the modes, owners, times and attributes of files nor the watching of folders, and signals only since Linux 6.12."""
_SIGNALLING = (8, 10, 15, 1026)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX, F_NOTIFY of `fcntl`."""


class _Missing(Exception):
    """The kernel lacks what confines the program."""


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    call = json.loads(sys.stdin.buffer.read())
    descriptor = int(sys.argv[1])
    _limit(call["seconds"], call["memory"])
    try:
        if call["confined"]:
            _confine(libc)
        answer = _called(call["source"], call["sample"], call["item"])
    except _Missing as error:
        answer = {"unconfined": str(error)}
    os.write(descriptor, json.dumps(answer).encode()[:65536])
    os._exit(0)


def _called(source: str, sample: Any, item: Any) -> dict[str, Any]:
    try:
        namespace: dict[str, Any] = {"__name__": "grader"}
        exec(compile(source, "grader.py", "exec", dont_inherit=True), namespace)
        reward = namespace["grade"](sample, item)
        return {"reward": float(reward)}
    except BaseException as error:
        own = error.__traceback__.tb_next if error.__traceback__ else None  # without the frame of this file
        return {"error": "".join(traceback.format_exception(type(error), error, own))[-1800:]}


def _limit(seconds: int, memory: int) -> None:
    with open("/proc/self/statm") as file:
        memory += int(file.read().split()[0]) * resource.getpagesize()
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _confine(libc: ctypes.CDLL) -> None:
    machine = platform.machine()
    if machine not in _CALLS:
        raise _Missing(f"no sandbox for {machine}")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _Missing("no_new_privs")
    _take_files(libc)
    _drop_capabilities(libc, machine)
    _filter_calls(libc, machine)


def _take_files(libc: ctypes.CDLL) -> None:
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise _Missing("the kernel has no Landlock")
    files = (1 << _FILE_RIGHTS.get(version, max(_FILE_RIGHTS.values()))) - 1
    attributes = struct.pack("=QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, size, 0)
    if ruleset < 0:
        raise _Missing("Landlock")
    for path in _readable():
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rights = _READ_FILE | (_READ_DIRECTORY if os.path.isdir(path) else 0)
        rule = struct.pack("=Qi", rights, place)
        failed = libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0)
        os.close(place)
        if failed:
            raise _Missing("Landlock's rules")
    if libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0):
        raise _Missing("Landlock's restriction")
    os.close(ruleset)


def _readable() -> list[str]:
    """Python's own files and libraries, which the program may import."""
    places = [os.path.dirname(os.__file__), *(path for path in sys.path if path.endswith("-packages"))]
    return [
        *places, os.path.join(sys.prefix, "pyvenv.cfg"), "/usr/lib", "/usr/lib64", "/lib", "/lib64",
        "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom",
    ]  # fmt: skip


def _drop_capabilities(libc: ctypes.CDLL, machine: str) -> None:
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    if libc.syscall(_CAPSET[machine], header, nothing):
        raise _Missing("dropping capabilities")


def _filter_calls(libc: ctypes.CDLL, machine: str) -> None:
    calls = _CALLS[machine]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, _ARCHITECTURES[machine]),
        (answer, 0, 0, _KILL),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),  # x86's other tables of calls
        (answer, 0, 0, _KILL),
        (equal, 0, 1, calls["clone3"]),
        (answer, 0, 0, _ABSENT),
        (equal, 0, 4, calls["clone"]),
        (load, 0, 0, 16),
        (any_bit, 0, 1, _CLONE_THREAD),
        (answer, 0, 0, _ALLOW),
        (answer, 0, 0, _REFUSE),
        (equal, 0, 4, calls["prlimit64"]),  # allowed on itself, without raising: the limits are hard ones
        (load, 0, 0, 16),
        (equal, 0, 1, 0),
        (answer, 0, 0, _ALLOW),
        (answer, 0, 0, _REFUSE),
    ]
    program += [(equal, 0, 3 + len(_SIGNALLING), calls["fcntl"]), (load, 0, 0, 24)]
    left = len(_SIGNALLING)
    for command in _SIGNALLING:
        program.append((equal, left, 0, command))  # to the refusal behind the last of them
        left -= 1
    program += [(answer, 0, 0, _ALLOW), (answer, 0, 0, _REFUSE)]
    for name, number in calls.items():
        if name not in ("clone", "clone3", "prlimit64", "fcntl"):
            program += [(equal, 0, 1, number), (answer, 0, 0, _REFUSE)]
    program.append((answer, 0, 0, _ALLOW))
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    whole = Program(len(program), ctypes.addressof(instructions))
    if libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(whole), 0, 0):
        raise _Missing("the kernel takes no filter of system calls")


if __name__ == "__main__":
    main()
