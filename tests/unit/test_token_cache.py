"""Tokenized files: the same examples as were encoded, made once, whole or not at all, and removed by a stated rule."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rows import resolved

transformers = pytest.importorskip("transformers")

from tunewright.config import embedded_base_path  # noqa: E402
from tunewright.jobs.failure import TrainingFailed  # noqa: E402
from tunewright.jobs.folder import EventLog, JobFolder  # noqa: E402
from tunewright.rows import cache as module  # noqa: E402
from tunewright.rows import dataset  # noqa: E402
from tunewright.rows.cache import ROWS_FILE, TOTALS_FILE, TokenCache, cache_key  # noqa: E402
from tunewright.rows.dataset import Block, encoded_blocks, labels  # noqa: E402
from tunewright.rows.examples import IGNORED, Example, encode_text  # noqa: E402
from tunewright.rows.mixture import Mixture, Part  # noqa: E402
from tunewright.rows.tokenized import TokenizedFile, tokenize_file  # noqa: E402
from tunewright.rows.totals import Totals  # noqa: E402
from tunewright.trainer.data import tell_data  # noqa: E402

TOTALS = Totals(
    source="s", max_length=8, rows=1, examples=1, tokens=3, learnt=2, truncated=0, dropped=0, lost=0, longest=3,
    lengths={3: 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(embedded_base_path())


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(tmp_path / "cache")


@pytest.fixture
def several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size are encoded by three processes."""
    monkeypatch.setattr(dataset, "_LARGE", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})


def written(folder: Path) -> None:
    """An entry's files, without a tokenizer."""
    (folder / ROWS_FILE).write_bytes(b"rows")
    (folder / TOTALS_FILE).write_text(TOTALS.model_dump_json())


def text_file(path: Path, rows: int) -> Path:
    path.write_text(
        "".join(json.dumps({"prompt": f"{n} and", "completion": f" {n}"}) + "\n" for n in range(rows))
    )
    return path


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# the examples


@given(st.data())
def test_labels_are_what_they_were(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
    has_loss = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    cut = data.draw(st.integers(1, 45))
    example = Example(ids, [token if one else IGNORED for token, one in zip(ids, has_loss, strict=True)])
    block = Block()
    block.add(7, [example], cut)
    trained = sum(has_loss[1:cut])
    assert (block.rows, block.truncated, block.longest) == (1, int(len(ids) > cut), len(ids))
    assert (block.learnt, block.lost) == (trained, sum(has_loss[1:]) - trained)
    assert block.too_long == ({7: len(ids)} if len(ids) > cut else {})
    assert block.dropped == (trained == 0) == (not block.ids)
    for kept, edges in zip(block.ids, block.edges, strict=True):
        assert kept.tolist() == ids[:cut]
        assert labels(kept.tolist(), edges.tolist()) == example.labels[:cut]


def test_the_examples_and_the_totals_of_a_file_are_those_of_its_rows(
    cache: TokenCache, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [("a b c", " x y"), ("a", " x" * 30), ("a b c d e f g h i j k l m", " x"), ("b", " z")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    encoded = [encode_text(tokenizer, *row) for row in rows]
    file = tokenize_file(path, tokenizer, 9, cache=cache, key="k", source="s")
    cut = [Example(one.input_ids[:9], one.labels[:9]) for one in encoded]
    kept = [one for one in cut if any(label != IGNORED for label in one.labels[1:])]
    assert list(file.dataset()) == [{"input_ids": one.input_ids, "labels": one.labels} for one in kept]
    lengths = [len(one.input_ids) for one in kept]
    learnt = [sum(label != IGNORED for label in one.labels[1:]) for one in kept]
    all_learnt = sum(label != IGNORED for one in encoded for label in one.labels[1:])
    assert file.totals == Totals(
        source="s", max_length=9, rows=4, examples=3, tokens=sum(lengths), learnt=sum(learnt), truncated=2,
        dropped=1, lost=all_learnt - sum(learnt), longest=max(len(one.input_ids) for one in encoded),
        lengths={length: lengths.count(length) for length in lengths},
        whole_lengths=Counter(len(one.input_ids) for one in encoded),
        too_long={line: len(one.input_ids) for line, one in enumerate(encoded, 1) if len(one.input_ids) > 9},
    )  # fmt: skip


@pytest.mark.parametrize(("cut", "levels"), [(0, ["info"]), (1, ["info", "warn"])])
def test_the_events_of_a_job_warn_of_rows_that_are_cut(cut: int, levels: list[str], tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    file: Any = SimpleNamespace(totals=TOTALS.model_copy(update={"truncated": cut}))
    tell_data(EventLog(folder), Mixture([Part("a", file)], seed=1), resolved())
    events, _ = folder.read_events(0)
    assert [event["level"] for event in events] == levels
    assert ("raise tuning.max_length" in events[-1]["message"]) == bool(cut)


def test_batches_are_those_of_examples_in_memory_bit_for_bit(
    cache: TokenCache, tokenizer: Any, tmp_path: Path
) -> None:
    """As TRL's collator made them of a `Dataset` of whole examples: the same numbers, shapes and types."""
    datasets, torch = pytest.importorskip("datasets"), pytest.importorskip("torch")
    trl = pytest.importorskip("trl.trainer.sft_trainer")
    path = text_file(tmp_path / "rows.jsonl", 200)
    rows = map(json.loads, path.read_text().splitlines())
    encoded = [asdict(encode_text(tokenizer, row["prompt"], row["completion"])) for row in rows]
    before = datasets.Dataset.from_list(encoded)
    now = tokenize_file(path, tokenizer, 64, cache=cache, key="k", source="s").dataset()
    collate = trl.DataCollatorForLanguageModeling(pad_token_id=0)
    for indices in torch.randperm(200).split(7):
        expected, found = (collate(data.__getitems__(indices.tolist())) for data in (before, now))
        assert expected.keys() == found.keys() == {"input_ids", "labels", "attention_mask"}
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_what_is_read_ahead_of_the_encoded_rows_is_bounded(
    tokenizer: Any, tmp_path: Path, several_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def rows(*_: object) -> Iterator[tuple[int, dict[str, str]]]:
        nonlocal read
        for read in range(1, 10**9):
            yield read, {"prompt": "a", "completion": "b"}

    monkeypatch.setattr(dataset, "read_rows", rows)
    blocks = encoded_blocks(text_file(tmp_path / "rows.jsonl", 1), tokenizer, 8)
    taken = sum(next(blocks).rows for _ in range(3))
    blocks.close()
    assert read - taken <= 64 * (3 * 4 + 1)


def test_large_rows_make_small_blocks(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"prompt": "a" * 300_000, "completion": " b"}) + "\n") * 5)
    assert [block.rows for block in encoded_blocks(path, tokenizer, 8)] == [4, 1]


def test_the_first_fault_of_a_file_is_told_whichever_process_finds_one_first(
    cache: TokenCache, tokenizer: Any, tmp_path: Path, several_processes: None
) -> None:
    """The first one is at the end of a block of long rows, the second at the beginning of the next block."""
    path = tmp_path / "rows.jsonl"
    fault = json.dumps({"messages": [{"role": "assistant", "content": "x"}]})
    long = json.dumps({"prompt": "a " * 2000, "completion": " x"})
    path.write_text("".join(f"{line}\n" for line in [*[long] * 63, fault, fault, *[long] * 200]))
    with pytest.raises(TrainingFailed, match=r"training_file, line 64: messages\[0\] answers nothing"):
        tokenize_file(path, tokenizer, 8, cache=cache, key="k", source="s")
    assert list(cache.folder.iterdir()) == []


# the cache


def test_a_file_is_tokenized_once(cache: TokenCache, tokenizer: Any, tmp_path: Path) -> None:
    path = text_file(tmp_path / "rows.jsonl", 20)
    first = tokenize_file(path, tokenizer, 8, cache=cache, key="k", source="s")
    path.unlink()
    second = tokenize_file(path, tokenizer, 8, cache=cache, key="k", source="s")
    assert second.totals == first.totals
    assert list(second.dataset()) == list(first.dataset())


def test_a_key_stands_for_all_that_decides_about_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(embedded_base_path(), base)

    def key(source: str = "s", **changes: Any) -> str:
        options = {"chat_template": None, "max_length": 8, "truncation": "truncate", **changes}
        return cache_key(source, base, **options)

    first = key()
    assert key() == first
    (base / "model.safetensors").write_bytes(b"other weights")
    (base / "README.md").write_text("other words")
    assert key() == first
    different = [
        key("other"), key(chat_template="{{ messages }}"), key(max_length=9), key(truncation="refuse"),
        key(trust_remote_code=True),
    ]  # fmt: skip
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "tokenization_own.py"):
        with (base / name).open("a") as file:
            file.write("\n")
        different.append(key())
    module._code_sha256.cache_clear()
    monkeypatch.setattr(module, "version", lambda name: "another")
    different.append(key())
    module._code_sha256.cache_clear()
    assert len({first, *different}) == 1 + len(different)


def test_two_that_tokenize_the_same_at_once_make_it_once(cache: TokenCache) -> None:
    begun, go_on, waited = threading.Event(), threading.Event(), threading.Event()
    made = []

    def make(folder: Path) -> None:
        begun.set()
        assert go_on.wait(30)
        made.append(folder)
        written(folder)

    first = threading.Thread(target=cache.take, args=("k", make))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=cache.take, args=("k", make), kwargs={"while_waiting": waited.set})
    second.start()
    assert waited.wait(30), "the heartbeat goes on"
    go_on.set()
    first.join(30)
    second.join(30)
    assert len(made) == 1
    assert os.listdir(cache.folder) == ["k"]


def test_many_at_once_corrupt_nothing(cache: TokenCache) -> None:
    """They make, use and remove the same entries."""
    wrong: list[str] = []
    stop = time.monotonic() + 2

    def use(number: int) -> None:
        while time.monotonic() < stop:
            used = cache.take(f"k{number % 3}", written)
            if used.totals() != TOTALS or used.rows.read_bytes() != b"rows":
                wrong.append(f"{number}")
            used.close()

    def prune() -> None:
        while time.monotonic() < stop:
            cache.remove_unfinished()
            for entry in cache.entries():
                cache.remove(entry.key)

    def kept(run: Callable[..., None], *arguments: int) -> None:
        try:
            run(*arguments)
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=kept, args=(use, number)) for number in range(6)]
    threads.append(threading.Thread(target=kept, args=(prune,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_what_fails_leaves_nothing(cache: TokenCache) -> None:
    def fail(folder: Path) -> None:
        written(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache.take("k", fail)
    assert os.listdir(cache.folder) == []


def killed_while_making(cache: TokenCache) -> int:
    """A process that is killed in the middle of an entry. Returns its id."""
    pid = os.fork()
    if pid == 0:

        def make(folder: Path) -> None:
            written(folder)
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            cache.take("k", make)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return pid


def test_kill_9_in_the_middle_leaves_nothing_that_is_taken_for_whole(cache: TokenCache) -> None:
    killed_while_making(cache)
    assert os.listdir(cache.folder) == [".k"]
    assert cache.find("k") is None
    assert cache.entries() == []

    def make(folder: Path) -> None:
        assert os.listdir(folder) == ["lock"], "what was left is not used"
        written(folder)

    assert cache.take("k", make).totals() == TOTALS
    assert os.listdir(cache.folder) == ["k"]


def test_what_a_killed_process_left_is_removed_and_what_is_being_made_is_not(cache: TokenCache) -> None:
    killed_while_making(cache)
    assert cache.remove_unfinished() == 1
    assert os.listdir(cache.folder) == []

    def make(folder: Path) -> None:
        assert cache.remove_unfinished() == 0
        written(folder)

    assert cache.take("k", make).totals() == TOTALS


def test_an_entry_is_not_removed_while_it_is_used(cache: TokenCache) -> None:
    used = cache.take("k", written)
    os.utime(used.path / "lock", (1, 1))
    assert cache.entries()[0].used_at > time.time() - 60, "it is used now"
    assert not cache.remove("k")
    assert used.totals() == TOTALS
    used.close()
    os.utime(used.path / "lock", (1, 1))
    assert [(entry.key, entry.source, entry.used_at) for entry in cache.entries()] == [("k", "s", 1)]
    assert cache.remove("k")
    assert cache.find("k") is None
    assert os.listdir(cache.folder) == []


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_the_processes_that_encode_end_with_their_parent(
    cache: TokenCache, tokenizer: Any, tmp_path: Path, several_processes: None, sign: signal.Signals
) -> None:
    """They have inherited its lock: what they encoded could not be made by another process before they end."""
    path, pids = text_file(tmp_path / "rows.jsonl", 2000), tmp_path / "pids"
    pids.mkdir()

    def row_done() -> None:
        (pids / str(os.getpid())).touch()
        time.sleep(0.1)

    parent = os.fork()
    if parent == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            tokenize_file(path, tokenizer, 8, cache=cache, key="k", source="s", on_row=row_done)
        finally:
            os._exit(0)
    until(lambda: len(list(pids.iterdir())) == 3)
    os.kill(parent, sign)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == -sign
    until(lambda: not any(alive(int(file.name)) for file in pids.iterdir()), 10)
    assert isinstance(tokenize_file(path, tokenizer, 8, cache=cache, key="k", source="s"), TokenizedFile)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
