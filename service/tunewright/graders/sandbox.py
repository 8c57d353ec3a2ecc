"""Runs `python` graders, each answer in a process of its own that `sandboxed.py` confines, where the operator lets it.

What is limited and what is not is in docs/how-to/secure-it.md.
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tunewright.graders.outcome import Outcome, failed
from tunewright.graders.templates import NoJson, Sample

Mode = Literal["off", "sandboxed", "unconfined"]
"""off: no program is run; sandboxed: without files, network and other processes; unconfined: with limits of time and
memory only."""
SECONDS = 5
"""Processor time of a program for one answer."""
_WALL = 3
"""Times the processor time, after which a program is ended that waits."""
_MEMORY = 512 * 2**20
_MOST_RESULT = 65_536
_PROGRAM = Path(__file__).with_name("sandboxed.py")


def refusal(mode: Mode) -> str | None:
    """Why no program is run here; None where it is."""
    if mode == "off":
        return "the operator of this service does not allow these (--python-graders)"
    if mode == "sandboxed":
        return _missing()
    return None


def _missing() -> str | None:
    if platform.machine() not in ("x86_64", "aarch64") or sys.platform != "linux":
        return "this machine has no sandbox for them, which is of Linux on x86_64 and aarch64"
    outcome = run("def grade(sample, item):\n    return 1.0\n", Sample(""), {}, "sandboxed")
    if outcome.errors.names:
        return f"the sandbox for them cannot be set up here: {outcome.errors.describe()}"
    return None


def run(source: str, sample: Sample, item: Mapping[str, Any], mode: Mode) -> Outcome:
    """What `grade(sample, item)` of the program returns."""
    if mode == "off":
        return failed("python_grader_server_error", "off", of="python_grader_server_error_type")
    try:
        parsed = sample.json
    except NoJson:
        parsed = None
    call = {
        "source": source,
        "sample": {"output_text": sample.text, "output_json": parsed},
        "item": item,
        "confined": mode == "sandboxed",
        "seconds": SECONDS,
        "memory": _MEMORY,
    }
    answer = _answer(json.dumps(call).encode())
    if answer is None:
        text = f"the program ended without a result, or took more than {SECONDS} s of processor time"
        return failed("python_grader_runtime_error", text)
    if "unconfined" in answer:
        return failed(
            "python_grader_server_error", str(answer["unconfined"]), of="python_grader_server_error_type"
        )
    if "error" in answer:
        return failed("python_grader_runtime_error", str(answer["error"]))
    reward = answer.get("reward")
    if isinstance(reward, bool | int | float) and math.isfinite(reward):
        return Outcome(float(reward))
    return failed("python_grader_runtime_error", "grade(sample, item) returned no finite number")


def _answer(call: bytes) -> dict[str, Any] | None:
    """What the process has written; None where it wrote nothing that can be read."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the process that starts this one ignores it
    reading, writing = os.pipe()
    try:
        with os.fdopen(reading, "rb") as result:
            process = subprocess.Popen(
                [sys.executable, "-I", str(_PROGRAM), str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[writing],
                env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
            os.close(writing)
            try:
                process.communicate(call, timeout=_WALL * SECONDS)
            except subprocess.TimeoutExpired:
                return None
            finally:
                process.kill()
                process.wait()
            written = result.read(_MOST_RESULT + 1)
    finally:
        signal.signal(signal.SIGCHLD, before)
    try:
        answer = json.loads(written) if len(written) <= _MOST_RESULT else None
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
