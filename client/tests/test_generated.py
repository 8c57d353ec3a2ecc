"""The generated blocking client is what the generator makes of the asyncio client."""

from __future__ import annotations

import io
import shutil
import tokenize
from pathlib import Path

import pytest

import generate_sync


def test_the_blocking_client_is_what_the_generator_makes() -> None:
    assert generate_sync.changed_files() == [], "run `python client/generate_sync.py`"


def test_an_edited_missing_or_left_over_generated_file_is_noticed(tmp_path: Path) -> None:
    copy = shutil.copytree(generate_sync.TARGET, tmp_path / "_sync")
    assert generate_sync.changed_files(copy) == []
    edited = copy / "jobs.py"
    edited.write_text(edited.read_text().replace("suffix=", "suffix =", 1) + "# edited\n")
    (copy / "pages.py").unlink()
    (copy / "old.py").write_text("")
    assert generate_sync.changed_files(copy) == ["jobs.py", "old.py", "pages.py"]


def test_a_change_of_the_source_changes_the_generated_code() -> None:
    source = (generate_sync.SOURCE / "jobs.py").read_text()
    changed = source.replace("async def create(", "async def make(")
    assert changed != source
    assert "    def make(" in generate_sync.blocking(changed)


@pytest.mark.parametrize("name", sorted(generate_sync.generated_files()))
def test_the_generated_code_has_nothing_asynchronous(name: str) -> None:
    content = generate_sync.generated_files()[name]
    tokens = tokenize.generate_tokens(io.StringIO(content).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    assert not names & {"async", "await", "asyncio", "anext", "aclose", "aread", "Awaitable"}
    assert not [found for found in names if "Async" in found]
    assert "sync-only" not in content
    assert "async-only" not in content


def test_a_generated_file_names_its_source() -> None:
    for name, content in generate_sync.generated_files().items():
        first = content.partition("\n")[0]
        assert "generate_sync.py" in first
        assert name == "__init__.py" or f"_async/{name}" in first


def test_the_markers_select_lines_for_one_client() -> None:
    source = """\
async def page(self) -> AsyncPager[T]:
    # async-only begin
    return AsyncPager(self)
    # async-only end
    # sync-only: return Page(self.fetch())
"""
    expected = """\
def page(self) -> Page[T]:
    return Page(self.fetch())
"""
    assert generate_sync.blocking(source) == expected
