"""The reference of the parity check: the real process, on the embedded base."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from forked import Process
from lora import random_lora
from tunewright.config import embedded_base_path
from tunewright.evaluate.folder import BaseSpec, ParityFolder, ParitySpec, Reference
from tunewright.rows.sources import Source

BASE = BaseSpec(path=str(embedded_base_path()), context=256)
ROWS = embedded_base_path().parent / "demo" / "validation.jsonl"


def asked(
    folder: Path, adapter: Path, *, rows: int = 3, file: Path | None = ROWS, four_bit: bool = False
) -> ParityFolder:
    found = ParityFolder(folder)
    found.write_spec(
        ParitySpec(
            base=BASE, adapter_id=folder.name, adapter=str(adapter), rows_from="validation_file" if file else "probes",
            files=(Source(file=str(file)),) if file else (), rows=rows, four_bit=four_bit,
        )
    )  # fmt: skip
    return found


def run(*folders: ParityFolder) -> int | None:
    """The exit code."""
    process = Process(
        "tunewright.evaluate.parity",
        *(str(folder.path) for folder in folders),
        log=folders[0].path.with_suffix(".log"),
        environment={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    return process.wait(240)


def effect(reference: Reference) -> list[float]:
    return [
        adapted[token] - base[token]
        for row in reference.rows
        for base, adapted in zip(row.base, row.adapted, strict=True)
        for token in sorted(base.keys() & adapted.keys())
    ]


def read(folder: ParityFolder) -> Reference:
    found = folder.read_reference()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    base = embedded_base_path()
    return (
        random_lora(base, folder / "a", strength=0.1, seed=1),
        random_lora(base, folder / "b", strength=0.3, seed=2, rank=4, modules=("q_proj", "up_proj")),
    )


def test_adapters_that_are_measured_together_do_not_mix(adapters: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = adapters
    together = [asked(tmp_path / "1", first), asked(tmp_path / "2", second), asked(tmp_path / "3", first)]
    other = ROWS.with_name("train.jsonl")
    several = asked(tmp_path / "4", first, rows=4)
    files = (Source(file=str(ROWS), share=1.0), Source(file=str(other), share=3.0))
    several.write_spec(several.read_spec().model_copy(update={"files": files}))
    together.append(several)
    together.insert(1, ParityFolder(tmp_path / "gone"))
    assert run(*together) == 2, "one has no spec any more"
    one, other, again = (read(folder) for folder in (together[0], together[2], together[3]))
    assert (one.rows, one.renderings) == (again.rows, again.renderings)
    assert [row.base for row in one.rows] == [row.base for row in other.rows], "the base is what it was"
    assert effect(one) != effect(other)
    assert max(map(abs, effect(one))) > 0.01
    assert [row.line for row in one.rows] == [1, 2, 3]
    assert len(one.renderings) == 3, "the request of each conversation"
    assert all(len(row.base) == len(row.tokens) - 1 for row in one.rows)
    mixed = read(several)
    assert [row.file for row in mixed.rows] == [
        "train.jsonl",
        "validation.jsonl",
        "train.jsonl",
        "train.jsonl",
    ]
    assert [row.line for row in mixed.rows] == [1, 1, 2, 3], "three of four, as their shares say"
    assert mixed.rows[1].tokens == one.rows[0].tokens
    assert (one.device, one.dtype) == ("cpu", "bfloat16")
    assert run(together[0]) == 0, "what is there is not measured again"


def test_adapters_without_data_have_probes_and_overflows_come_back(
    adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = adapters[0] / "adapter_model.safetensors"
    huge = tmp_path / "huge"
    huge.mkdir()
    save_file({name: tensor * 1e20 for name, tensor in load_file(weights).items()}, huge / weights.name)
    (huge / "adapter_config.json").write_text((adapters[0] / "adapter_config.json").read_text())
    folder = asked(tmp_path / "1", huge, rows=2, file=None)
    assert run(folder) == 0
    found = read(folder)
    assert "What color is the sky" in found.rows[0].text
    assert not all(math.isfinite(value) for value in effect(found))


def test_an_adapter_of_qlora_is_measured_on_the_base_in_4_bits_too(
    adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    """Beside one that is not, whose reference it leaves as it is."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain, folder = asked(tmp_path / "1", adapters[0]), asked(tmp_path / "2", adapters[0], four_bit=True)
    after = asked(tmp_path / "3", adapters[1])
    alone = asked(tmp_path / "4", adapters[1])
    assert run(plain, folder, after) == 0
    assert run(alone) == 0
    found = read(folder)
    assert (read(plain).four_bit, read(after).four_bit) == (None, None)
    assert (read(plain).rows, read(after).rows) == (found.rows, read(alone).rows)
    assert found.four_bit is not None

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(embedded_base_path(), quantization_config=quantization)
    model = PeftModel.from_pretrained(base, adapters[0])
    losses, tokens, served = 0.0, 0, 0.0
    for row in found.rows:
        ids = torch.tensor([row.tokens])
        with torch.no_grad():
            losses += float(model(input_ids=ids, labels=ids).loss) * (len(row.tokens) - 1)
        served -= sum(place[token] for place, token in zip(row.adapted, row.tokens[1:], strict=True))
        tokens += len(row.tokens) - 1
    assert found.four_bit.loss == pytest.approx(losses / tokens, abs=0.02)
    assert found.four_bit.served_loss == pytest.approx(served / tokens, abs=1e-5)
    assert found.four_bit.difference == pytest.approx(
        found.four_bit.served_loss - found.four_bit.loss, abs=1e-5
    )
    assert abs(found.four_bit.difference) > 0.001, "4 bits are not 16"
