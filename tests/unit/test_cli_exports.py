"""`tunewright exports` against the service that only pretends: what is sent, what is printed, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_cli
from test_cli import MODEL, FakeService, Run, event, page

_environment, run, service = test_cli._environment, test_cli.run, test_cli.service  # fixtures

EXPORTS = "/v1/exports"
EXPORT = f"{EXPORTS}/export-1"
PRODUCT = "ft:tunewright-tiny:pirate-awq:2"
EVENTS = [
    event(1, "Merging into tunewright-tiny"),
    event(2, "merge 5/5", step=5, total_steps=30, phase="merge", eta_seconds=61.0),
    event(3, "measure 5/5", step=30, total_steps=30, phase="measure", eta_seconds=0.0),
]
REPORT: dict[str, Any] = {
    "quality": {
        "source": "adapter",
        "models": [
            {"name": "base", "loss": 1.55711, "kl": 1.9023, "top1_agreement": 0.61},
            {"name": "adapter", "loss": 0.25, "kl": 0.0, "top1_agreement": 1.0},
            {"name": "merged", "loss": 0.25, "kl": 0.000002, "top1_agreement": 1.0},
            {"name": "awq", "loss": None, "kl": 0.05, "top1_agreement": 0.98765},
        ],
        "rows": 32,
        "tokens": 451,
        "rows_from": "validation_file",
    },
    "gate": {"max_kl": 0.2, "kl": 0.05, "passed": True, "forced": False},
    "bytes": 3 * 2**20,
    "source_bytes": 10 * 2**20,
    "details": {},
}


def export(status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    return {
        "id": "export-1",
        "status": status,
        "model": MODEL,
        "models": [{"model": MODEL, "weight": 1.0}],
        "base": "tunewright-tiny",
        "format": "awq",
        "exported_model": PRODUCT if status == "succeeded" else None,
        "progress": {"step": 30, "total_steps": 30, "phase": "measure"},
        "report": REPORT if status == "succeeded" else None,
        **fields,
    }


@pytest.fixture
def exports(service: FakeService) -> FakeService:
    """The service with one export."""
    service.replies = {
        ("POST", EXPORTS): (200, export("queued")),
        ("GET", EXPORTS): (200, page([export(), export("running", id="export-2")])),
        ("GET", EXPORT): (200, export()),
        ("GET", f"{EXPORT}/events"): (200, page(EVENTS[::-1])),
        ("GET", f"{EXPORT}/logs"): (200, b"one\ntwo\n"),
        **{
            ("POST", f"{EXPORT}/{action}"): (200, export("paused"))
            for action in ("pause", "resume", "cancel")
        },
    }
    return service


def refused(service: FakeService, **gate: Any) -> None:
    """The export's product is blocked by the gate."""
    error = {"code": "quality_gate_failed", "message": "KL divergence 0.50000, above 0.2"}
    report = {**REPORT, "gate": {"max_kl": 0.2, "kl": 0.5, "passed": False, "forced": False, **gate}}
    service.replies["GET", EXPORT] = 200, export("failed", error=error, report=report)


def fields(out: str) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in out.splitlines() if "\t" in line)


@pytest.mark.parametrize(
    "command", ["create", "watch", "list", "show", "logs", "events", "pause", "resume", "cancel"]
)
def test_help_is_complete(run: Run, command: str) -> None:
    code, out, err = run("exports", command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: tunewright exports {command}" in out
    assert f"\n    tunewright exports {command} " in out
    assert "job" not in out.lower().replace("that of the model's job", "")


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--model", "a"], "--format"),
        (["--format", "awq"], "--model"),
        (["--model", "a", "--format", "gguf"], "gguf"),
        (["--model", "a=much", "--format", "merged"], "must be a number"),
        (["--model", "a=0.5", "--format", "merged"], "a weight is for several"),
        (["--model", "a", "--format", "adapter"], "repeat --model"),
        (["--model", "a", "--format", "merged", "--combine", "ties"], "are for several"),
        (["--model", "a", "--format", "merged", "--rank", "8"], "are for several"),
        (["--model", "a", "--format", "awq", "--group-size", "16"], "16"),
        (["--model", "a", "--format", "awq", "--max-kl", "0"], "--max-kl"),
        (["--model", "a", "--format", "awq", "--calibration-file", "/no/such/file.jsonl"], "no such file"),
    ],
)
def test_wrong_usage_is_2_and_nothing_is_sent(
    run: Run, exports: FakeService, argv: list[str], why: str
) -> None:
    code, out, err = run("exports", "create", *argv)
    assert (code, out) == (2, "")
    assert why in err
    assert exports.requests == []


def test_an_export_is_created_with_what_was_given(run: Run, exports: FakeService, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("{}\n")
    code, out, err = run(
        "exports", "create", "--model", MODEL, "--format", "awq", "--suffix", "s", "--seed", "0",
        "--calibration-file", str(tmp_path / "texts.jsonl"), "--calibration-rows", "9", "--group-size", "64",
        "--validation-file", "file-9", "--validation-rows", "8", "--max-kl", "0.5", "--force",
        "--metadata", "a=b",
    )  # fmt: skip
    assert (code, out, err) == (0, "export-1\n", "")
    assert exports.body("POST", EXPORTS) == {
        "model": MODEL,
        "format": "awq",
        "suffix": "s",
        "seed": 0,
        "calibration_file": "file-1",
        "calibration_rows": 9,
        "group_size": 64,
        "validation_file": "file-9",
        "validation_rows": 8,
        "max_kl": 0.5,
        "force": True,
        "metadata": {"a": "b"},
    }
    run("exports", "create", "-m", MODEL, "--format", "merged", "--group-size", "largest")
    sent = {"model": MODEL, "format": "merged", "group_size": "largest"}
    assert exports.body("POST", EXPORTS) == sent


def test_several_adapters_are_combined(run: Run, exports: FakeService) -> None:
    argv = ("--model", f"{MODEL}=0.7", "--model", "ft:tiny:b:2", "--format", "adapter")
    assert run("exports", "create", *argv, "--combine", "ties", "--density", "0.3", "--rank", "8")[0] == 0
    models = [{"model": MODEL, "weight": 0.7}, {"model": "ft:tiny:b:2", "weight": 1.0}]
    assert exports.body("POST", EXPORTS) == {
        "models": models,
        "format": "adapter",
        "combine": {"method": "ties", "density": 0.3, "rank": 8},
    }
    run("exports", "create", *argv)
    assert exports.body("POST", EXPORTS) == {"models": models, "format": "adapter"}


def test_what_was_measured_is_a_table(run: Run, exports: FakeService) -> None:
    code, out, _ = run("exports", "show", "export-1")
    assert code == 0
    assert out.splitlines()[-5:] == [
        "MODEL\tLOSS\tKL\tTOP-1",
        "base\t1.5571\t1.902300\t61.00%",
        "adapter\t0.2500\t0.000000\t100.00%",
        "merged\t0.2500\t0.000002\t100.00%",
        "awq\tnot finite\t0.050000\t98.77%",
    ]
    shown = fields(out)
    names = (
        "status",
        "model",
        "result",
        "size",
        "size of source",
        "ratio",
        "measured on",
        "compared with",
        "gate",
    )
    assert {name: shown[name] for name in names} == {
        "status": "succeeded",
        "model": MODEL,
        "result": PRODUCT,
        "size": "3.0 MiB",
        "size of source": "10.0 MiB",
        "ratio": "30.0%",
        "measured on": "451 tokens of 32 rows (validation_file)",
        "compared with": "adapter",
        "gate": "passed: KL 0.050000, at most 0.2",
    }
    assert json.loads(run("exports", "show", "export-1", "--json")[1])["report"]["bytes"] == 3 * 2**20


@pytest.mark.parametrize(
    ("gate", "verdict"),
    [
        ({}, "not passed: KL 0.500000, at most 0.2"),
        ({"kl": None}, "not passed: KL not finite, at most 0.2"),
        ({"forced": True}, "not passed, published by force: KL 0.500000, at most 0.2"),
        ({"max_kl": None, "passed": True}, "none"),
    ],
)
def test_the_gates_verdict(run: Run, exports: FakeService, gate: dict[str, Any], verdict: str) -> None:
    refused(exports, **gate)
    assert fields(run("exports", "show", "export-1")[1])["gate"] == verdict


def test_notes_and_several_sources_are_shown(run: Run, exports: FakeService) -> None:
    models = [{"model": "a", "weight": 0.7}, {"model": "b", "weight": 1.0}]
    combine = {"method": "ties", "density": 0.5, "rank": None}
    notes = ["a is quarantined", "no held-out rows"]
    running = export("running", models=models, combine=combine, notes=notes, max_kl=0.01, force=True)
    exports.replies["GET", EXPORT] = 200, running
    lines = run("exports", "show", "export-1")[1].splitlines()
    for line in (
        "model\ta=0.7",
        "model\tb=1",
        "combined by\tmethod=ties density=0.5",
        "note\ta is quarantined",
        "note\tno held-out rows",
        "max KL\t0.01",
        "force\tyes",
        "phase\tmeasure",
    ):
        assert line in lines
    assert not any(line.startswith(("MODEL", "gate", "size")) for line in lines)


def test_a_terminal_gets_tables(run: Run, exports: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    out = run("exports", "show", "export-1")[1]
    assert "━" in out or "─" in out
    assert "\t" not in out
    assert "98.77%" in out


def test_exports_are_listed(run: Run, exports: FakeService) -> None:
    assert run("exports", "list")[1].splitlines() == [
        "ID\tSTATUS\tSTEP\tFORMAT\tMODEL\tRESULT\tCREATED",
        f"export-1\tsucceeded\t30/30\tawq\t{MODEL}\t{PRODUCT}\t-",
        f"export-2\trunning\t30/30\tawq\t{MODEL}\t-\t-",
    ]
    listed = json.loads(run("exports", "list", "--limit", "1", "--json")[1])
    assert ([item["id"] for item in listed["data"]], listed["has_more"]) == (["export-1"], True)


def test_watching_ends_with_the_model(run: Run, exports: FakeService) -> None:
    code, out, err = run("exports", "create", "--model", MODEL, "--format", "awq", "--watch")
    assert (code, out) == (0, f"{PRODUCT}\n")
    assert err.splitlines()[:3] == ["export-1", "Merging into tunewright-tiny", "5/30  merge  ETA 1m01s"]
    lines = [json.loads(line) for line in run("exports", "watch", "export-1", "--json")[1].splitlines()]
    assert [line["id"] for line in lines] == [*(item["id"] for item in EVENTS), "export-1"]


def test_watching_at_a_terminal_shows_the_phase(
    run: Run, exports: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = run("exports", "watch", "export-1")
    assert (code, out) == (0, f"{PRODUCT}\n")
    assert "measure" in err
    assert "training" not in err


def test_an_export_that_the_gate_holds_back_is_1_and_says_by_how_much(run: Run, exports: FakeService) -> None:
    refused(exports)
    code, out, err = run("exports", "watch", "export-1")
    assert (code, out) == (1, "")
    assert err.endswith("error: export-1 failed: KL divergence 0.50000, above 0.2 (quality_gate_failed)\n")


def test_ctrl_c_leaves_the_export_and_says_so(run: Run, exports: FakeService) -> None:
    exports.replies["GET", EXPORT] = 200, export("running")
    test_cli.interrupt_when(lambda: any(path == EXPORT for _, path, _ in exports.requests))
    code, out, err = run("exports", "watch", "export-1")
    assert (code, out) == (130, "")
    assert "tunewright exports watch export-1" in err
    assert "tunewright exports cancel export-1" in err


def test_events_logs_and_actions_are_the_exports_own(run: Run, exports: FakeService) -> None:
    listed = json.loads(run("exports", "events", "export-1", "--json")[1])
    assert [item["id"] for item in listed["data"]] == [item["id"] for item in EVENTS]
    assert run("exports", "logs", "export-1")[1] == "one\ntwo\n"
    assert run("exports", "logs", "export-1", "--tail", "1", "--follow")[1] == "two\n"
    for action in ("pause", "resume", "cancel"):
        assert run("exports", action, "export-1") == (0, "export-1 paused\n", "")
        assert exports.requests[-1][:2] == ("POST", f"{EXPORT}/{action}")
    stream = "".join(f"id: {item['id']}\ndata: {json.dumps(item)}\n\n" for item in EVENTS)
    exports.replies["GET", f"{EXPORT}/events"] = 200, f"{stream}data: [DONE]\n\n".encode()
    followed = run("exports", "events", "export-1", "--follow", "--json")[1].splitlines()
    assert [json.loads(line)["id"] for line in followed] == [item["id"] for item in EVENTS]


def test_a_job_trains_with_dora_where_it_is_asked_for(run: Run, service: FakeService) -> None:
    assert run("jobs", "create", "--model", "tiny", "--file", "file-1", "--use-dora")[0] == 0
    assert service.body("POST", "/v1/fine_tuning/jobs")["tuning"] == {"use_dora": True}
