"""Combined adapters do what their task vectors do together, whatever factors these were written with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from peft import PeftConfig, PeftModel  # noqa: E402
from peft.utils.merge_utils import ties  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import models  # noqa: E402
from lora import tampered  # noqa: E402
from models import Tensors, gpt2, llama, load_adapted, logits, qwen2, save_adapter, save_model  # noqa: E402
from tunewright.config import embedded_base_path  # noqa: E402
from tunewright.errors import InvalidAdapter, InvalidRequest  # noqa: E402
from tunewright.export.combine import combine  # noqa: E402
from tunewright.export.low_rank import LARGEST_EXACT, add, nearest  # noqa: E402
from tunewright.registry.adapter_check import check_adapter  # noqa: E402
from tunewright.registry.base_modules import BaseModules  # noqa: E402

FIRST: dict[str, Any] = {"target_modules": ["q_proj", "up_proj"], "r": 4, "lora_alpha": 8, "seed": 1}
SECOND: dict[str, Any] = {
    "target_modules": ["q_proj", "v_proj"], "r": 6, "lora_alpha": 3, "use_rslora": True, "seed": 2,
    "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(llama(), tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Adapters of different ranks, scalings and modules."""
    folder = tmp_path_factory.mktemp("adapters")
    return save_adapter(base, folder / "a", **FIRST), save_adapter(base, folder / "b", **SECOND)


def deltas(base: Path, adapter: Path) -> Tensors:
    """What peft adds to each weight."""
    found = {}
    for name, module in load_adapted(base, adapter).base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and "default" in (*module.lora_A, *module.lora_embedding_A):
            found[name] = module.get_delta_weight("default").detach()
    assert found
    return found


def summed(base: Path, weighted: list[tuple[Path, float]]) -> Tensors:
    total: Tensors = {}
    for adapter, weight in weighted:
        for name, delta in deltas(base, adapter).items():
            total[name] = total.get(name, torch.zeros_like(delta)) + weight * delta
    return total


def error(found: Tensors, wanted: Tensors) -> float:
    """Relative, in the Frobenius norm, of all modules together."""
    assert found.keys() == wanted.keys()
    apart = sum((found[n] - wanted[n]).double().square().sum() for n in wanted)
    whole = sum(t.double().square().sum() for t in wanted.values())
    return float((apart / whole).sqrt())


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def test_a_sum_is_exact(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    weighted = [(two[0], 0.7), (two[1], -1.5)]
    done = combine(weighted, base, tmp_path / "out", method="linear")
    assert error(deltas(base, tmp_path / "out"), summed(base, weighted)) < 1e-6
    assert (done.error, done.worst_error, done.worst_module) == (0.0, 0.0, None)
    assert done.rank == 4 + 6
    assert done.modules == 6
    config = config_of(tmp_path / "out")
    assert config["r"] == config["lora_alpha"] == 10
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    theirs = [load_file(path / "adapter_model.safetensors")[name] for path in two]
    assert torch.equal(weights[name], torch.cat(theirs)), "it is not their own factors, side by side"
    assert done.bytes == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size


def test_a_soup_is_the_mean(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    third = save_adapter(base, tmp_path / "third", **{**FIRST, "seed": 9})
    all_three = [*two, third]
    combine([(path, 1.0) for path in all_three], base, tmp_path / "out", method="soup")
    wanted = summed(base, [(path, 1 / 3) for path in all_three])
    assert error(deltas(base, tmp_path / "out"), wanted) < 1e-6


def test_what_the_model_says_is_what_the_summed_weights_say(
    base: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    weighted = [(two[0], 1.0), (two[1], 0.5)]
    combine(weighted, base, tmp_path / "out", method="linear")
    model = models.load(base)
    plain = logits(model)
    for name, delta in summed(base, weighted).items():
        model.get_submodule(name).weight.data += delta
    assert not torch.allclose(plain, logits(model), atol=0.1)
    torch.testing.assert_close(
        logits(load_adapted(base, tmp_path / "out")), logits(model), atol=1e-4, rtol=1e-4
    )


def test_the_factors_do_not_matter_only_their_product(
    base: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    """Averaging A with A and B with B would distinguish these two, which are the same adapter."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).Q

    def turned(tensors: Tensors) -> Tensors:
        return {n: turn @ t if "lora_A" in n else t @ turn.T for n, t in tensors.items()}

    other = tampered(two[0], tmp_path / "turned", turned)
    combine([(two[0], 1.0), (other, 1.0)], base, tmp_path / "out", method="soup", rank=4)
    assert error(deltas(base, tmp_path / "out"), deltas(base, two[0])) < 1e-5


@pytest.mark.parametrize("options", [{"rank": 5}, {"max_rank": 5}])
def test_a_smaller_rank_is_the_nearest_and_says_how_near(
    base: Path, two: tuple[Path, Path], tmp_path: Path, options: dict[str, int]
) -> None:
    weighted = [(two[0], 1.0), (two[1], 1.0)]
    done = combine(weighted, base, tmp_path / "out", method="linear", **options)
    wanted, found = summed(base, weighted), deltas(base, tmp_path / "out")
    cut = {n: torch.linalg.svdvals(t.double())[5:].square().sum() for n, t in wanted.items()}
    smallest = float((sum(cut.values()) / sum(t.double().square().sum() for t in wanted.values())).sqrt())
    assert smallest > 0.05
    assert error(found, wanted) == pytest.approx(smallest, rel=1e-4)
    assert done.error == pytest.approx(smallest, rel=1e-4)
    own = {n: float((cut[n] / wanted[n].double().square().sum()).sqrt()) for n in wanted}
    assert done.worst_module == max(own, key=lambda n: own[n])
    assert done.worst_error == pytest.approx(max(own.values()), rel=1e-4)
    assert done.rank == config_of(tmp_path / "out")["r"] == 5


def test_ties_is_what_peft_makes_of_the_whole_matrices(
    base: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    weighted = [(two[0], 1.0), (two[1], 0.6)]
    done = combine(weighted, base, tmp_path / "out", method="ties", density=0.3, rank=48)
    theirs = [(deltas(base, path), weight) for path, weight in weighted]
    wanted = {}
    for name in theirs[0][0].keys() | theirs[1][0].keys():
        present = [(found[name], weight) for found, weight in theirs if name in found]
        wanted[name] = ties([t for t, _ in present], torch.tensor([w for _, w in present]), 0.3)
    assert error(deltas(base, tmp_path / "out"), wanted) < 1e-5
    assert done.error < 1e-5


def test_ties_is_what_peft_combines_with_an_svd(base: Path, tmp_path: Path) -> None:
    """With adapters on the same modules, which peft requires of it."""
    both = [save_adapter(base, tmp_path / str(at), **{**FIRST, "seed": at}) for at in (1, 2)]
    combine([(both[0], 1.0), (both[1], 0.5)], base, tmp_path / "out", method="ties", density=0.4, rank=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(models.load(base), both[0], adapter_name="a")
        model.load_adapter(both[1], adapter_name="b")
        model.add_weighted_adapter(
            ["a", "b"], [1.0, 0.5], "c", combination_type="ties_svd", svd_rank=8, density=0.4
        )
    wanted = {
        name: module.get_delta_weight("c").detach()
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert error(deltas(base, tmp_path / "out"), wanted) < 1e-5


@pytest.mark.parametrize("density", [0.25, 1.0])
def test_dare_drops_numbers_and_scales_up_what_stays(
    base: Path, two: tuple[Path, Path], tmp_path: Path, density: float
) -> None:
    weighted = [(two[0], 1.0), (two[1], 0.5)]
    combine(weighted, base, tmp_path / "out", method="dare", density=density, rank=48, seed=7)
    first, second = (deltas(base, path) for path in two)
    found = deltas(base, tmp_path / "out")
    assert found.keys() == first.keys() | second.keys()
    kept = {"first": [], "second": []}  # type: dict[str, list[Any]]
    for name, ours in found.items():
        zero = torch.zeros_like(ours)
        one, other = first.get(name, zero) / density, second.get(name, zero) * 0.5 / density
        choices = torch.stack([zero, one, other, one + other])
        nearest_choice = (ours - choices).abs().min(dim=0)
        assert nearest_choice.values.max() < 1e-5 * choices.abs().max(), "it is none of the four"
        if name in first and name in second:
            kept["first"].append(((nearest_choice.indices == 1) | (nearest_choice.indices == 3)).flatten())
            kept["second"].append((nearest_choice.indices >= 2).flatten())
    assert density == 1 or not torch.equal(kept["first"][0], kept["first"][1]), "layers lose the same numbers"
    first_kept, second_kept = (torch.cat(kept[which]).float() for which in ("first", "second"))
    for which in (first_kept, second_kept):
        assert float(which.mean()) == pytest.approx(density, abs=0.04)
    assert float((first_kept * second_kept).mean()) == pytest.approx(density**2, abs=0.04)  # independently


def test_the_seed_decides_and_nothing_else(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    weighted = [(two[0], 1.0), (two[1], 0.5)]
    files = []
    for at, seed in enumerate((3, 3, 4)):
        torch.manual_seed(at)
        state = torch.get_rng_state()
        combine(weighted, base, tmp_path / str(at), method="dare", density=0.5, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        files.append([p.read_bytes() for p in sorted((tmp_path / str(at)).iterdir())])
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_by_default_the_rank_is_the_sum_up_to_what_is_served(
    base: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    weighted = [(two[0], 1.0), (two[1], 0.5)]
    done = combine(weighted, base, tmp_path / "a", method="dare")
    assert done.rank == 10
    assert 0.05 < done.error < 1
    assert combine(weighted, base, tmp_path / "b", method="dare", max_rank=3).rank == 3
    assert combine(weighted, base, tmp_path / "c", method="linear", rank=20).rank == 20
    assert error(deltas(base, tmp_path / "c"), summed(base, weighted)) < 1e-6


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_embeddings_and_conv1d_have_their_own_forms(method: Any, tmp_path: Path) -> None:
    base = save_model(gpt2(tied=True), tmp_path / "base")
    modules = {"target_modules": ["c_attn", "c_proj", "wte", "lm_head"]}
    both = [save_adapter(base, tmp_path / str(at), seed=at, **modules) for at in (1, 2)]
    weighted = [(path, 0.5) for path in both]
    combine(weighted, base, tmp_path / "out", method=method, density=1.0, rank=48)
    found = deltas(base, tmp_path / "out")
    if method == "linear":
        assert error(found, summed(base, weighted)) < 1e-6
    else:
        theirs = [deltas(base, path) for path in both]
        half = torch.tensor([0.5, 0.5])
        assert error(found, {n: ties([t[n] for t in theirs], half, 1.0) for n in theirs[0]}) < 1e-5


def test_what_it_makes_can_be_served(tmp_path: Path) -> None:
    base = embedded_base_path()
    adapters = [
        save_adapter(base, tmp_path / "a", target_modules=["q_proj"], r=8, strength=0.02),
        save_adapter(base, tmp_path / "b", target_modules=["q_proj", "up_proj"], r=4, strength=0.02, seed=2),
    ]
    out = tmp_path / "out"
    combine([(path, 1.0) for path in adapters], base, out, method="linear")
    with (out / "adapter_model.safetensors").open("rb") as weights:
        config = (out / "adapter_config.json").read_bytes()
        checked = check_adapter(config, weights, BaseModules("tiny", base), max_rank=16)
        (tmp_path / "kept").mkdir()
        checked.write(weights, tmp_path / "kept")
    assert checked.config.scaling == 1
    assert checked.config.rank == 12
    assert error(deltas(base, tmp_path / "kept"), summed(base, [(path, 1.0) for path in adapters])) < 1e-6
    assert PeftConfig.from_pretrained(out).peft_type == "LORA"


def test_large_matrices_lose_nearly_as_little(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(120, 90, generator=generator) @ torch.diag(torch.linspace(3, 0.1, 90) ** 3)
    exact = nearest(matrix, 20)
    monkeypatch.setattr("tunewright.export.low_rank.LARGEST_EXACT", 32)
    torch.manual_seed(0)
    found = nearest(matrix, 20)
    assert LARGEST_EXACT >= 1024
    assert found.rank == exact.rank == 20
    assert exact.squared_error == pytest.approx(
        float(torch.linalg.svdvals(matrix)[20:].square().sum()), rel=1e-3
    )
    assert exact.squared_error < found.squared_error < 1.02 * exact.squared_error
    assert found.squared_error == pytest.approx(float((matrix - found.b @ found.a).square().sum()), rel=1e-3)


def test_a_rank_above_the_sides_of_a_matrix_is_cut_to_them() -> None:
    generator = torch.Generator().manual_seed(0)
    products = [
        (torch.randn(6, 5, generator=generator), torch.randn(5, 9, generator=generator)) for _ in range(3)
    ]
    whole = sum(b @ a for b, a in products)
    for rank in (6, 8, 15):
        found = add(products, rank)
        torch.testing.assert_close(found.b @ found.a, whole, atol=1e-4, rtol=1e-4)
    assert nearest(whole, 40).rank == 6


def test_adapters_that_cancel_leave_nothing(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    done = combine([(two[0], 1.0), (two[0], -1.0)], base, tmp_path / "out", method="linear", rank=4)
    assert done.error <= 1
    assert all(t.abs().max() < 1e-5 for t in deltas(base, tmp_path / "out").values())


def test_progress_is_reported_after_each_module(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    weighted = [(path, 1.0) for path in two]
    combine(weighted, base, tmp_path / "a", method="linear", on_module=lambda *at: progress.append(at))
    assert progress == [(n, 6) for n in range(1, 7)]


def test_a_folder_that_exists_is_not_overwritten(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        combine([(path, 1.0) for path in two], base, tmp_path / "out", method="linear")
    assert list((tmp_path / "out").iterdir()) == []


# refused


def refused(adapters: list[tuple[Path, float]], base: Path, out: Path, **options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        combine(adapters, base, out, **{"method": "linear", **options})
    assert not out.exists()
    return caught.value


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"method": "mean"}, "method"),
        ({"density": 0.0}, "density"),
        ({"density": 1.1}, "density"),
        ({"density": float("nan")}, "density"),
        ({"rank": 0}, "rank"),
        ({"rank": 65}, "rank"),
        ({"max_rank": 0}, "rank"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    base: Path, two: tuple[Path, Path], tmp_path: Path, options: dict[str, Any], param: str
) -> None:
    assert refused([(path, 1.0) for path in two], base, tmp_path / "out", **options).param == param


@pytest.mark.parametrize("weights", [(float("nan"), 1.0), (1.0, float("inf")), (0.0, 0.0)])
def test_weights_must_be_numbers(
    base: Path, two: tuple[Path, Path], tmp_path: Path, weights: tuple[float, float]
) -> None:
    weighted = list(zip(two, weights, strict=True))
    assert refused(weighted, base, tmp_path / "out").param == "weights"


def test_weights_may_not_grow_past_float32(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    assert refused([(two[0], 1e300), (two[1], 1.0)], base, tmp_path / "out").param == "weights"


def test_a_soup_takes_no_weights(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    assert refused([(two[0], 1.0), (two[1], 0.5)], base, tmp_path / "out", method="soup").param == "weights"


def test_one_adapter_is_not_enough(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    assert refused([(two[0], 1.0)], base, tmp_path / "out").param == "adapters"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "ensure_weight_tying"),
    ],
)
def test_what_is_no_sum_of_low_rank_products_is_refused(
    tmp_path: Path, options: dict[str, Any], field: str
) -> None:
    base = save_model(qwen2(tied=True), tmp_path / "base")
    plain = save_adapter(base, tmp_path / "plain", target_modules=["q_proj"])
    other = save_adapter(base, tmp_path / "other", **{"target_modules": ["q_proj"], **options})
    error = refused([(plain, 1.0), (other, 1.0)], base, tmp_path / "out")
    assert (error.code, error.param) == ("export_unsupported", f"adapter_config.{field}")


def test_an_adapter_of_another_base_is_refused(base: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    config = llama()
    config.hidden_size = 40
    wider = save_model(config, tmp_path / "wider")
    other = save_adapter(wider, tmp_path / "other", target_modules=["q_proj"])
    assert refused([(two[0], 1.0), (other, 1.0)], base, tmp_path / "out").code == "adapter_does_not_fit"


def test_an_adapter_of_other_embeddings_is_refused(
    base: Path, two: tuple[Path, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"target_modules": ["embed_tokens"]}
    fits = save_adapter(base, tmp_path / "fits", **options)
    combine([(two[0], 1.0), (fits, 1.0)], base, tmp_path / "done", method="linear")

    def moved(tensors: Tensors) -> Tensors:
        return {n: t + 0.25 if "base_layer" in n else t for n, t in tensors.items()}

    error = refused([(two[0], 1.0), (tampered(fits, tmp_path / "moved", moved), 1.0)], base, tmp_path / "out")
    assert "embeddings" in error.message


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_broken_numbers_are_refused(base: Path, two: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    def broken(tensors: Tensors) -> Tensors:
        name = next(n for n in tensors if "lora_B" in n)
        tensors[name][0, 0] = float("nan")
        return tensors

    adapters = [(two[0], 1.0), (tampered(two[1], tmp_path / "nan", broken), 1.0)]
    assert isinstance(refused(adapters, base, tmp_path / "out", method=method), InvalidAdapter)
