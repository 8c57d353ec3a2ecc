"""Exports: requests, reports, waiting and events."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Reply, ok, refuse, sse
from samples import DONE, EXPORT_PATH, data_event, event, export, file, page, report

import tunewright_client as tw
from tunewright_client import AsyncTunewright, Export, Tunewright
from tunewright_client._core.progress import ProgressReporter

EXPORTS = "/v1/exports"
NAME = "ft:base:demo:1"
METRICS = {"step": 24, "total_steps": 48, "phase": "measure", "eta_seconds": 61, "memory_bytes": 1}


def test_an_export_is_created_with_the_given_fields_only(server: FakeServer, client: Tunewright) -> None:
    server.on("POST", EXPORTS, refuse(503), ok(export("queued")))
    made = client.exports.create(NAME, format="merged", idempotency_key="k")
    assert isinstance(made, Export)
    assert made.status == tw.JobStatus.QUEUED
    assert [request.json for request in server.requests] == [{"model": NAME, "format": "merged"}] * 2
    assert [request.headers["idempotency-key"] for request in server.requests] == ["k", "k"]
    client.exports.create(
        model=NAME,
        format="awq",
        suffix="s",
        seed=0,
        calibration_file="file-1",
        calibration_rows=9,
        group_size="largest",
        validation_file="file-2",
        validation_rows=8,
        max_kl=0.5,
        force=True,
        metadata={"a": "b"},
    )
    assert server.requests[-1].json == {
        "model": NAME,
        "format": "awq",
        "suffix": "s",
        "seed": 0,
        "calibration_file": "file-1",
        "calibration_rows": 9,
        "group_size": "largest",
        "validation_file": "file-2",
        "validation_rows": 8,
        "max_kl": 0.5,
        "force": True,
        "metadata": {"a": "b"},
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"a": 0.7, "b": 0.3}, [{"model": "a", "weight": 0.7}, {"model": "b", "weight": 0.3}]),
        (["a", "b"], [{"model": "a"}, {"model": "b"}]),
        (
            [{"model": "a", "weight": 2}, tw.WeightedModel(model="b"), "c"],
            [{"model": "a", "weight": 2}, {"model": "b"}, {"model": "c"}],
        ),
    ],
)
def test_models_are_weights_or_a_list(server: FakeServer, client: Tunewright, given: Any, sent: Any) -> None:
    server.on("POST", EXPORTS, ok(export("queued")))
    client.exports.create(models=given, format="adapter")
    assert server.requests[-1].json == {"models": sent, "format": "adapter"}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("ties", {"method": "ties"}),
        ({"method": "dare", "density": 0.3}, {"method": "dare", "density": 0.3}),
        (tw.CombineOptions(rank=8), {"rank": 8}),
    ],
)
def test_the_combination_is_a_name_or_an_object(
    server: FakeServer, client: Tunewright, given: Any, sent: Any
) -> None:
    server.on("POST", EXPORTS, ok(export("queued")))
    client.exports.create(models=["a", "b"], format="merged", combine=given)
    assert server.requests[-1].json["combine"] == sent


def test_local_files_of_an_export_are_uploaded_first(server: FakeServer, tmp_path: Path) -> None:
    for name in ("calibration.jsonl", "held-out.jsonl"):
        (tmp_path / name).write_text("{}\n")
    server.on("POST", "/v1/files", ok(file(1)), ok(file(2)))
    server.on("POST", EXPORTS, ok(export("queued")))

    async def run() -> tw.AsyncExport:
        async with AsyncTunewright(server.url) as client:
            return await client.exports.create(
                NAME,
                format="awq",
                calibration_file=tmp_path / "calibration.jsonl",
                validation_file=tmp_path / "held-out.jsonl",
                idempotency_key="k",
            )

    assert isinstance(asyncio.run(run()), tw.AsyncExport)
    assert b"calibration.jsonl" in server.requests[0].body
    sent = server.requests[-1].json
    assert (sent["calibration_file"], sent["validation_file"]) == ("file-1", "file-2")
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys == ["k-calibration-file", "k-validation-file", "k"]


def test_an_export_without_exactly_one_of_model_and_models_uploads_nothing(
    server: FakeServer, client: Tunewright, tmp_path: Path
) -> None:
    (tmp_path / "c.jsonl").write_text("{}\n")
    for given in ({}, {"model": "a", "models": ["a", "b"]}):
        with pytest.raises(ValueError, match="one of model and models"):
            client.exports.create(**given, format="awq", calibration_file=tmp_path / "c.jsonl")  # type: ignore[arg-type]
    assert server.requests == []


def test_the_report_of_an_export_is_typed(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", EXPORT_PATH, ok(export("succeeded", report=report(), combine={"method": "ties"})))
    read = client.exports.retrieve("export-1")
    assert read.exported_model == read.product == "ft:base:demo-awq:2"
    assert read.models == [tw.WeightedModel(model=NAME, weight=1.0)]
    assert read.combine is not None
    assert read.combine.method == "ties"
    found = read.report
    assert found is not None
    assert found.quality is not None
    assert found.gate is not None
    assert [(row.name, row.kl) for row in found.quality.models] == [("adapter", 0.0), ("awq", 0.05)]
    assert (found.quality.source, found.quality.tokens) == ("adapter", 99)
    assert (found.gate.max_kl, found.gate.passed, found.gate.forced) == (0.2, True, False)
    assert found.size_ratio == 0.3
    assert found.details == {"quantize": {"seconds": 2.5}}
    assert tw.ExportReport(bytes=3).size_ratio is None


def test_a_measurement_that_overflowed_is_none(server: FakeServer, client: Tunewright) -> None:
    server.on("GET", EXPORT_PATH, ok(export("failed", report=report(None, passed=False))))
    found = client.exports.retrieve("export-1").report
    assert found is not None
    assert found.quality is not None
    assert found.quality.models[-1].kl is None


def test_an_export_has_the_methods_of_a_job(server: FakeServer, client: Tunewright) -> None:
    for method, path, reply in (
        ("GET", EXPORTS, ok(page([export()]))),
        ("GET", EXPORT_PATH, ok(export("succeeded"))),
        ("POST", f"{EXPORT_PATH}/cancel", ok(export("cancelled"))),
        ("POST", f"{EXPORT_PATH}/pause", ok(export("pausing"))),
        ("POST", f"{EXPORT_PATH}/resume", ok(export("queued"))),
        ("GET", f"{EXPORT_PATH}/logs", Reply(200, b"one\n", {"content-type": "text/plain"})),
    ):
        server.on(method, path, reply)
    server.on(
        "GET",
        f"{EXPORT_PATH}/events",
        ok(page([event(2), event(1)])),
        sse(data_event(event(1)), abort=True),
        sse(data_event(event(2)), DONE),
    )
    [listed] = client.exports.list(limit=5)
    assert isinstance(listed, Export)
    assert listed.progress is not None
    assert listed.progress.phase == "quantize"
    assert listed.cancel().is_final
    assert listed.pause().status == tw.JobStatus.PAUSING
    assert listed.resume().status == "queued"
    assert listed.logs(tail=3) == "one\n"
    assert server.requests[-1].query == {"tail": "3"}
    assert [item.id for item in listed.events(limit=2)] == ["ftevent-2", "ftevent-1"]
    assert [item.id for item in listed.stream_events()] == ["ftevent-1", "ftevent-2"]
    assert server.requests[-1].headers["last-event-id"] == "ftevent-1"
    assert listed.refresh().exported_model == "ft:base:demo-awq:2"
    with pytest.raises(tw.TunewrightError, match="this Export did not come from a client"):
        Export.model_validate(export()).refresh()


def test_waiting_for_an_export_gives_its_events(server: FakeServer) -> None:
    server.on("GET", EXPORT_PATH, ok(export("queued")), ok(export()), refuse(503), ok(export("succeeded")))
    server.on("GET", f"{EXPORT_PATH}/events", ok(page([event(1)])), ok(page([event(2), event(1)])))
    seen: list[str] = []

    async def run() -> tw.AsyncExport:
        async with AsyncTunewright(server.url) as client:
            made = await client.exports.retrieve("export-1")
            return await made.wait(poll_interval=0.01, on_event=lambda item: seen.append(item.id))

    assert asyncio.run(run()).exported_model == "ft:base:demo-awq:2"
    assert seen == ["ftevent-1", "ftevent-2"]


def test_an_export_that_fails_the_gate_carries_its_report(server: FakeServer, client: Tunewright) -> None:
    why = "the awq model is not published: KL divergence from the adapter 0.43210 nats, above 0.2"
    error = {"code": "quality_gate_failed", "message": why, "param": None}
    held_back = export("failed", error=error, report=report(0.4321, passed=False))
    server.on("GET", EXPORT_PATH, ok(held_back))
    with pytest.raises(tw.JobFailedError) as failed:
        client.exports.wait("export-1")
    assert (str(failed.value), failed.value.code) == (why, "quality_gate_failed")
    assert isinstance(failed.value.job, Export)
    assert failed.value.job.report is not None
    assert failed.value.job.report.gate is not None
    assert failed.value.job.report.gate.kl == 0.4321
    server.on("GET", EXPORT_PATH, ok(export("cancelled")))
    with pytest.raises(tw.JobCancelledError, match="export-1 was cancelled"):
        client.exports.wait("export-1")
    server.on("GET", EXPORT_PATH, ok(export()))
    with pytest.raises(tw.WaitTimeoutError, match="export-1 is still running"):
        client.exports.wait("export-1", timeout=0.05, poll_interval=0.01)


def test_the_progress_of_an_export_shows_its_phase() -> None:
    out = io.StringIO()
    reporter = ProgressReporter(out)
    reporter.update(Export.model_validate(export()), [])
    measuring = tw.JobEvent.model_validate(event(1, type="metrics", data=METRICS))
    paused = Export.model_validate(export("paused", progress=None))
    reporter.update(paused, [measuring])
    reporter.update(Export.model_validate(export("succeeded", progress={"step": 48, "total_steps": 48})), [])
    assert out.getvalue().splitlines() == [
        "export-1  running  12/48  25%  quantize  ETA 1m10s",
        "export-1  paused  24/48  50%  measure  ETA 1m01s",
        "export-1  succeeded  48/48  100%",
    ]
