"""The parity check with a real vLLM: what passes, and what it catches."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from kills import tree
from lora import ATTENTION, MLP, perturbed_base, random_lora, tampered, without
from tests.engine.conftest import DEMO, FAST, Service, wait_until
from tunewright.config import EMBEDDED_BASE
from tunewright.store.store import Store
from tunewright_client import Adapter, BadRequestError, Tunewright

HONEST: dict[str, dict[str, Any]] = {
    "all-linear": {"strength": 0.1},
    "strong": {"strength": 0.4, "rank": 64},
    "mild": {"strength": 0.05},
    "attention": {"strength": 0.1, "modules": ATTENTION},
    "mlp": {"strength": 0.1, "modules": MLP, "rank": 16},
    "queries": {"strength": 0.3, "modules": ("q_proj",)},
    "rank-1": {"strength": 0.1, "rank": 1},
    "rslora": {"strength": 0.1, "rank": 32, "rslora": True},
    "last-layers": {"strength": 0.3, "layers": (3, 4)},
    "small-alpha": {"strength": 0.1, "alpha": 1.0},
}
TOO_WEAK = {"strength": 1e-4}
CHAT: Any = [{"role": "user", "content": "What color is the sky?"}]


@pytest.fixture(scope="module")
def base(checking_base: Path) -> Path:
    return checking_base


@pytest.fixture(scope="module")
def service(checking_service: Service) -> Service:
    return checking_service


@pytest.fixture(scope="module")
def honest(service: Service, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    """Adapters that were registered and checked."""
    folder = tmp_path_factory.mktemp("adapters")
    with service.client(timeout=120) as client:
        ids = {}
        for seed, (name, options) in enumerate({**HONEST, "too-weak": TOO_WEAK}.items()):
            source = random_lora(base, folder / name, seed=seed, **options)
            ids[name] = client.adapters.register(source, suffix=name).id
        return {name: checked(client, id) for name, id in ids.items()}


def checked(client: Tunewright, id: str) -> Adapter:
    """Returns the adapter once it has a verdict, which is printed."""

    def look() -> Adapter | None:
        adapter = client.adapters.retrieve(id)
        found = adapter.parity
        return adapter if found and found.verdict and not found.check_pending else None

    adapter: Adapter = wait_until(look, 120, "the verdict")
    print(adapter.model, adapter.parity)
    return adapter


class Engine:
    """Asks vLLM directly, not through the service."""

    def __init__(self, service: Service) -> None:
        store = Store.open(f"sqlite:///{service.data_dir / 'tunewright.db'}")
        engine = store.engines.get(EMBEDDED_BASE)
        store.close()
        assert engine is not None
        assert engine.socket is not None
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=engine.socket), base_url="http://engine", timeout=60
        )

    def replace(self, adapter: Adapter, folder: Path) -> None:
        """Loads other weights under the adapter's name."""
        name = {"lora_name": adapter.sha256}
        self._client.post("/v1/unload_lora_adapter", json=name).raise_for_status()
        self._client.post("/v1/load_lora_adapter", json={**name, "lora_path": str(folder)}).raise_for_status()


def artifact(service: Service, adapter: Adapter) -> Path:
    return service.data_dir / "artifacts" / str(adapter.sha256)


def test_ten_honest_adapters_pass(honest: dict[str, Adapter]) -> None:
    assert len(HONEST) == 10
    for name in HONEST:
        found = honest[name].parity
        assert found is not None
        assert found.verdict == "pass", f"{name}: {found.reason}"
        assert found.slope == pytest.approx(1, abs=0.05)
        assert honest[name].state == "loaded"


def test_an_effect_below_the_noise_is_no_pass(honest: dict[str, Adapter], client: Tunewright) -> None:
    found = honest["too-weak"].parity
    assert found is not None
    assert found.verdict == "no_measurable_effect", found.reason
    assert honest["too-weak"].model in [model.id for model in client.models.list()]


def test_what_the_engine_does_otherwise_is_caught(
    service: Service, client: Tunewright, honest: dict[str, Adapter], tmp_path: Path
) -> None:
    """Half the alpha, one module missing, another adapter's weights: served by vLLM under the right name."""
    engine = Engine(service)
    faults = {
        "alpha halved": honest["all-linear"],
        "a module missing": honest["attention"],
        "others'": honest["mlp"],
    }
    halved, lacking, other = faults.values()
    alpha = json.loads((artifact(service, halved) / "adapter_config.json").read_text())["lora_alpha"]
    engine.replace(halved, tampered(artifact(service, halved), tmp_path / "halved", lora_alpha=alpha / 2))
    engine.replace(lacking, tampered(artifact(service, lacking), tmp_path / "lacking", without("v_proj")))
    engine.replace(other, artifact(service, honest["strong"]))
    for adapter in faults.values():
        assert (client.adapters.check(adapter.id).state, adapter.state) == ("loaded", "loaded"), (
            "served meanwhile"
        )
    for fault, before in faults.items():
        adapter = checked(client, before.id)
        assert adapter.parity is not None
        assert (adapter.state, adapter.parity.verdict) == ("quarantined", "fail"), (
            f"{fault}: {adapter.parity}"
        )
        assert adapter.parity.worst_rows
        assert adapter.parity.worst_rows[0]["text"]
        assert adapter.model not in [model.id for model in client.models.list()]
        with pytest.raises(BadRequestError, match="quarantined"):
            client.chat.create(model=adapter.model, messages=CHAT)
        with pytest.raises(BadRequestError, match="force=true"):
            client.adapters.load(adapter.id)

    forced = client.adapters.load(halved.id, force=True)
    assert forced.parity is not None
    assert forced.parity.forced is not None
    assert (forced.state, forced.parity.verdict) == ("loaded", "fail")
    assert client.chat.create(model=forced.model, messages=CHAT, max_tokens=4).text is not None

    client.adapters.check(lacking.id)  # the engine loads it from the registry again, where it is intact
    whole = checked(client, lacking.id)
    assert whole.parity is not None
    assert (whole.state, whole.parity.verdict) == ("loaded", "pass")


def test_another_chat_template_is_caught(client: Tunewright, base: Path, honest: dict[str, Adapter]) -> None:
    template = base / "chat_template.jinja"
    before = template.read_text()
    template.write_text("Hello. " + before)
    try:
        client.adapters.check(honest["rslora"].id)
        adapter = checked(client, honest["rslora"].id)
    finally:
        template.write_text(before)
    assert adapter.parity is not None
    assert (adapter.state, adapter.parity.verdict) == ("quarantined", "fail")
    assert "chat template" in str(adapter.parity.reason)


@pytest.mark.soak
def test_a_job_ends_when_its_adapter_is_checked_whatever_is_killed_meanwhile(service: Service) -> None:
    """Through OpenAI's client."""
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        files = [
            client.files.create(file=DEMO / name, purpose="fine-tune").id
            for name in ("train.jsonl", "validation.jsonl")
        ]
        job = client.fine_tuning.jobs.create(
            model=EMBEDDED_BASE,
            training_file=files[0],
            validation_file=files[1],
            extra_body={"tuning": {**FAST, "n_epochs": 1}},
        )
        for victim in ("tunewright: parity of", "tunewright: scheduler"):
            pid = wait_until(
                lambda victim=victim: running(service, "tunewright: parity of") and running(service, victim),
                240,
            )
            os.kill(pid, signal.SIGKILL)
        ended = wait_until(
            lambda: (j := client.fine_tuning.jobs.retrieve(job.id)).status in ("succeeded", "failed") and j,
            120,
            "the end",
        )
        assert ended.status == "succeeded", ended.error
        messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
        assert any(message.startswith("Parity with peft: slope") for message in messages)
    with service.client() as tunewright:
        found = tunewright.adapters.retrieve(ended.fine_tuned_model).parity
    assert found is not None
    print("job", found)
    assert (found.verdict, found.rows_from) == ("pass", "validation_file")


def running(service: Service, title: str) -> int | None:
    return next((pid for pid, (_, line) in tree(service.process.pid).items() if line.startswith(title)), None)


def test_another_base_is_caught(
    client: Tunewright, base: Path, honest: dict[str, Adapter], tmp_path: Path
) -> None:
    """The engine has other weights than the files that training reads. The last: they stay so."""
    other = perturbed_base(base, tmp_path / "other", strength=0.1)
    os.replace(other / "model.safetensors", base / "model.safetensors")
    client.adapters.check(honest["rank-1"].id)
    adapter = checked(client, honest["rank-1"].id)
    assert adapter.parity is not None
    assert (adapter.state, adapter.parity.verdict) == ("quarantined", "fail")
    assert "another base" in str(adapter.parity.reason)
