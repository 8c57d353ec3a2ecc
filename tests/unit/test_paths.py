"""What the service writes can be read by its user alone, and no id or name leads out of the data folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tunewright.ids import path_name, result_file_id
from tunewright.registry.workspace import Workspace, file_name

BAD = ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\n", " a", "-a", ".a", "a" * 129, "é"]


@pytest.mark.parametrize("id", BAD)
def test_an_id_of_a_database_that_is_no_name_of_a_file_is_refused(data: Workspace, id: str) -> None:
    for path in (data.file, data.job, data.artifacts.local):
        with pytest.raises(ValueError, match="is no id"):
            path(id)


@pytest.mark.parametrize(
    "id",
    ["file-rows", "a" * 64, "ftjob-Zk3mP0aY", "export-sed0WNH9XZK1tBEGQ1naUCYi", result_file_id("ftjob-x")],
)
def test_the_services_own_ids_are_names(id: str) -> None:
    assert path_name(id) == id


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../..", "/etc", "ft:tiny:a:1", "org/model", ".hidden", "a" * 200]
)
def test_whatever_a_model_is_named_its_folder_is_in_the_data_folder(data: Workspace, name: str) -> None:
    folder = data.engine(name)
    assert folder.resolve().parent == data.engines.resolve()
    assert "/" not in file_name(name)


def test_what_a_service_writes_is_its_users_alone(tmp_path: Path) -> None:
    """Also in a data folder that exists already and that others may read."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    program = (
        "import os, sys; from tunewright import serve\n"
        "serve._run = lambda settings, workspace, listener, keep_log: os.mkdir(workspace.path / 'made') or 0\n"
        f"os.umask(0o022); sys.exit(serve.main(['--port', '0', '--data-dir', {str(folder)!r}]))"
    )
    program = program.replace(
        "'--port', '0', ", "'--port', str(__import__('random').randint(20000, 60000)), "
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    written = list(folder.rglob("*"))
    assert folder / "tunewright.db" in written
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode) & 0o077) for path in written} == {
        path.name: "0o0" for path in written
    }
