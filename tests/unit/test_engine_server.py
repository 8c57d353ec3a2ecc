"""An engine's server is run as `python -m` runs it, with its imports left alone by the garbage collector."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc, json, sys
state = {"name": __name__, "argv": sys.argv[1:], "collects": gc.isenabled(), "frozen": gc.get_freeze_count() > 0}
if __name__ == "__main__":
    print(json.dumps({**state, "spec": __spec__.name, "file": sys.argv[0]}))
    sys.exit(7)
print(json.dumps(state))
"""


def test_a_server_runs_as_the_main_module_and_is_imported_without_collecting(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    program = tmp_path / "served" / "program.py"
    program.write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tunewright.engine.server", "served.program", "--model", "m"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )
    assert ended.returncode == 7, ended.stderr
    imported, run = map(json.loads, ended.stdout.splitlines())
    expected = {"argv": ["--model", "m"], "name": "served.program", "collects": False, "frozen": False}
    assert imported == expected
    whole = {
        "name": "__main__",
        "collects": True,
        "frozen": True,
        "spec": "served.program",
        "file": str(program),
    }
    assert run == {**expected, **whole}, "spec: processes that it spawns import it by this name"
