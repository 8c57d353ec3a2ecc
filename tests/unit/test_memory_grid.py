"""The benchmark that holds predicted memory to measurements: a cell of it trains as the service does today."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from benchmarks.memory_grid import cells, in_a_fork, measure, predict
from benchmarks.random_base import save


def asked(device: str) -> argparse.Namespace:
    return argparse.Namespace(device=device, corners=False)


@pytest.mark.parametrize(("device", "count"), [("cuda", 108), ("cpu", 48)])
def test_the_grid_has_the_cells_that_are_written_down(device: str, count: int) -> None:
    assert len(cells(asked(device))) == count


def test_a_cell_on_the_cpu_is_predicted_and_trained(tmp_path: Path) -> None:
    save("tiny", tmp_path / "tiny", "cpu")
    cell = next(one for one in predict(asked("cpu")) if one["type"] == "lora")
    measured = measure(tmp_path, {**cell, "length": 64})["measured"]
    assert 0 < cell["predicted"] < 20 * measured


def test_what_fails_in_a_fork_is_told() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(RuntimeError, match="ValueError: no"):
        in_a_fork(fails)
