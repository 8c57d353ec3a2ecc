"""The command line against a small service that only pretends: what is printed, where, and the exit code.

Run as a program (`python test_cli.py --port N`), this file is that service, for the demo to start as its child.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

JOB = "/v1/fine_tuning/jobs/ftjob-1"
MODEL = "ft:tunewright-tiny:pirate:1"


class FakeService:
    """Answers a few routes; keeps every request as (method, path, body) and its headers."""

    def __init__(self, port: int = 0) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, answer = fake.answer(self.command, unquote(url.path), query, body, dict(self.headers))
                kind = "application/json" if isinstance(answer, dict) else "text/event-stream"
                data = json.dumps(answer).encode() if isinstance(answer, dict) else answer
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  (http.server's names)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.requests: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.ready = True
        self.job: dict[str, Any] = job("succeeded")
        self.replies: dict[tuple[str, str], tuple[int, Any]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def body(self, method: str, path: str) -> Any:
        """The body of the last such request."""
        return json.loads([r for r in self.requests if r[:2] == (method, path)][-1][2])

    def answer(
        self, method: str, path: str, query: dict[str, str], body: bytes, headers: dict[str, str]
    ) -> tuple[int, Any]:
        self.requests.append((method, path, body))
        self.headers.append({name.lower(): value for name, value in headers.items()})
        if (method, path) in self.replies:
            return self.replies[method, path]
        match method, path:
            case "GET", "/ready":
                part = {"ready": self.ready, "state": "ready" if self.ready else "starting", "reason": None}
                return 200 if self.ready else 503, {"ready": self.ready, "components": {"engine:tiny": part}}
            case "POST", "/v1/files":
                return 200, file(1)
            case "GET", "/v1/files":
                return 200, page([file(n) for n in range(3)][: int(query["limit"])])
            case "GET", "/v1/files/file-1":
                return 200, file(1)
            case "GET", "/v1/files/file-1/content":
                return 200, b"rows\xff\n"
            case "POST", "/v1/fine_tuning/jobs":
                return 200, {**self.job, "status": "queued"}
            case "GET", "/v1/fine_tuning/jobs":
                return 200, page([self.job])
            case "GET", str(p) if p == JOB:
                return 200, self.job
            case "GET", str(p) if p == JOB + "/events":
                if "stream" in query:
                    lines = [f"id: {e['id']}\ndata: {json.dumps(e)}\n\n" for e in EVENTS]
                    return 200, ("".join(lines) + "data: [DONE]\n\n").encode()
                return 200, page(EVENTS[::-1])
            case "GET", str(p) if p == JOB + "/logs":
                return 200, b"one\ntwo\nthree\n"
            case "GET", "/v1/adapters/ft:tunewright-tiny:pirate:1":
                return 200, {"id": "adapter-1", "model": MODEL, "state": "loaded"}
            case "GET", "/v1/models":
                return 200, page([{"id": MODEL, "kind": "adapter", "state": "ready", "bytes": 2048}])
            case "POST", "/v1/chat/completions":
                return 200, self.chat(json.loads(body))
        return 404, {"error": {"message": f"no {path}", "type": "t", "param": None, "code": "not_found"}}

    def chat(self, asked: dict[str, Any]) -> Any:
        text = ("Arr! " if asked["model"] == MODEL else "") + "It is \x1bblue."
        if not asked.get("stream"):
            return {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
        chunks = [{"choices": [{"index": 0, "delta": {"content": part + " "}}]} for part in text.split()]
        return (
            "".join(f"data: {json.dumps(c)}\n\n" for c in [*chunks, "[DONE]"])
            .replace('"[DONE]"', "[DONE]")
            .encode()
        )


def job(status: str, **fields: Any) -> dict[str, Any]:
    model = MODEL if status == "succeeded" else None
    return {
        "id": "ftjob-1",
        "status": status,
        "model": "tunewright-tiny",
        "fine_tuned_model": model,
        **fields,
    }


def file(number: int) -> dict[str, Any]:
    return {"id": f"file-{number}", "filename": "train.jsonl", "bytes": 1536, "purpose": "fine-tune"}


def page(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": items, "has_more": False}


def event(number: int, message: str, **data: Any) -> dict[str, Any]:
    kind = "metrics" if "total_steps" in data else "message"
    return {"id": f"ftevent-{number}", "message": message, "type": kind, "data": data or None}


EVENTS = [
    event(1, "Validation loss before training: 1.5000", step=0, valid_loss=1.5),
    event(2, "Step 1/2", step=1, total_steps=2, train_loss=1.5, tokens_per_second=1000.0, eta_seconds=1.0),
    event(3, "Step 2/2", step=2, total_steps=2, train_loss=0.25, valid_loss=0.125),
]


def serve_as_child() -> None:
    """The program that the demo starts in place of `tunewright serve`; options make it misbehave."""
    print("the service says hello", flush=True)
    mode = os.environ.get("FAKE_MODE")
    if mode == "dies":
        sys.exit(3)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    fake = FakeService(int(sys.argv[sys.argv.index("--port") + 1]))
    fake.ready = mode != "never_ready"
    if mode == "same":
        fake.chat = lambda asked: {"choices": [{"index": 0, "message": {"content": "It is blue."}}]}  # type: ignore
    if mode == "job_fails":
        fake.job = job("failed", error={"code": "loss_not_finite", "message": "the loss became nan"})
    fake.server.serve_forever()


if __name__ == "__main__":
    serve_as_child()
    sys.exit()


import pytest  # noqa: E402  (the child above starts faster without)

from counted import count_here  # noqa: E402
from tunewright.cli import demo_service, progress  # noqa: E402
from tunewright.cli.main import main  # noqa: E402
from tunewright.cli.output import Output  # noqa: E402
from tunewright.config import embedded_base_path  # noqa: E402
from tunewright.supervisor.process import GroupRecord  # noqa: E402

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNEWRIGHT_BASE_URL", "TUNEWRIGHT_API_KEY", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    fake = FakeService()
    monkeypatch.setenv("TUNEWRIGHT_BASE_URL", fake.url)
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    thread.join()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        return code, *capsys.readouterr()

    return command


# Usage and errors


@pytest.mark.parametrize(
    "argv",
    [["jobs", "list"], ["jobs", "list", "--json"], ["jobs", "logs", "ftjob-1"], ["jobs", "watch", "ftjob-1"],
     ["--help"], ["jobs", "--help"]],
)  # fmt: skip
def test_a_reader_that_ends_early_is_no_failure(service: FakeService, argv: list[str]) -> None:
    """As in `tunewright jobs list | head -1`, and `jobs watch ... 2>&1 | head -1`, whose bar is on stderr."""
    argv = argv if "--help" in argv else [*argv, "--url", service.url]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tunewright", *argv],
            stdout=writing,
            stderr=writing if "watch" in argv else subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr or b"") == (0, b"")


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"], ["demo", "--help"], ["status", "--help"], ["chat", "--help"], ["jobs", "create", "--help"],
        ["jobs", "watch", "--help"], ["files", "upload", "--help"], ["models", "--help"], ["adapters", "--help"],
        ["aliases", "set", "--help"], ["deployments", "create", "--help"],
    ],
)  # fmt: skip
def test_help_is_complete(run: Run, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert "Usage: tunewright" in out
    assert "--url" in out or argv[0] in ("--help", "demo", "models", "adapters")


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["jobs", "create", "--model", "m"],
        ["jobs", "create", "--model", "m", "--file", "/no/such/file.jsonl"],
        ["jobs", "create", "--model", "m", "--file", "file-1", "--metadata", "nothing"],
        ["jobs", "create", "--model", "m", "--file", "file-1", "--type", "magic"],
        ["jobs", "create", "--model", "m", "--file", "file-1", "--type", "full", "--method", "lora"],
        ["jobs", "create", "--model", "m", "--file", "file-1", "--method", "ppo"],
        ["jobs", "create", "--model", "m", "--file", "file-1", "--beta", "0.1"],
        ["jobs", "create", "--model", "m", "--file", "file-1", "--method", "dpo", "--beta", "0"],
        ["jobs", "create", "--model", "m", "--file", "file-1", "--method", "reinforcement"],
        ["jobs", "create", "--model", "m", "--file", "file-1", "--method", "dpo", "--grader", "{}"],
        ["jobs", "list", "--limit", "0"],
        ["aliases", "set", "support-bot"],
        ["aliases", "set", "support-bot", "m=many"],
        ["files", "upload", "/no/such/file.jsonl"],
        ["status", "--url", "localhost:8000"],
        ["adapters", "register"],
        ["adapters", "register", "/no/such/folder"],
        ["adapters", "register", "--path", "/a", "--hub", "org/a"],
        ["adapters", "register", "--path", "/a", "--revision", "main"],
        ["adapters", "register", "--path", "/a", "--folder", "checkpoint-2"],
        ["adapters", "list", "--state", "happy"],
        ["chat", "m", ""],
        ["deployments", "create"],
        ["deployments", "create", "m", "--max-lora-rank", "7"],
        ["deployments", "create", "m", "--dtype", "int4"],
        ["deployments", "delete"],
    ],
)
def test_wrong_usage_is_2(run: Run, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err


def test_a_service_that_is_not_there_says_how_to_start_it(run: Run) -> None:
    code, out, err = run("status", "--url", "http://127.0.0.1:1")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "tunewright serve" in err
    assert "http://127.0.0.1:1/" in err


def test_the_services_own_error_is_one_line(run: Run, service: FakeService) -> None:
    code, out, err = run("jobs", "show", "ftjob-none", "--json")
    assert (code, out) == (1, "")
    assert err == "error: no /v1/fine_tuning/jobs/ftjob-none (404, not_found)\n"


def test_a_missing_key_says_where_to_give_it(run: Run, service: FakeService) -> None:
    service.replies["GET", "/v1/models"] = 401, {"error": {"message": "Wrong\nkey", "type": "t"}}
    code, _, err = run("models", "list")
    assert code == 1
    assert err.startswith("error: Wrong key (401)")
    assert "TUNEWRIGHT_API_KEY" in err


def test_a_bug_is_no_traceback(run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise KeyError("x")

    monkeypatch.setattr("tunewright.cli.models.size", broken)
    code, _, err = run("models", "list")
    assert code == 1
    assert err.startswith("error: this is a bug, please report it: KeyError: 'x' (test_cli.py:")


def test_the_options_win_over_the_environment(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "from-environment")
    assert run("status", "--url", service.url)[0] == 0
    assert service.headers[-1]["authorization"] == "Bearer from-environment"
    assert run("status", "--url", service.url, "--api-key", "given")[0] == 0
    assert service.headers[-1]["authorization"] == "Bearer given"


def test_serve_hands_its_options_on_untouched(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    stub = SimpleNamespace(main=lambda argv: seen.append(argv) or 5)
    monkeypatch.setitem(sys.modules, "tunewright.serve", stub)
    assert run("serve", "--help")[0] == 5
    assert run("serve", "--base", "a=b", "--vllm-arg=--x=1", "--port", "9")[0] == 5
    assert seen == [["--help"], ["--base", "a=b", "--vllm-arg=--x=1", "--port", "9"]]


# Commands


def test_status_tells_by_its_exit_code(run: Run, service: FakeService) -> None:
    code, out, _ = run("status")
    assert (code, out) == (0, "COMPONENT\tSTATE\tREASON\nengine:tiny\tready\t-\n")
    service.ready = False
    code, out, _ = run("status", "--json")
    assert code == 1
    assert json.loads(out)["components"]["engine:tiny"]["state"] == "starting"


def test_a_list_is_text_in_a_pipe_and_one_object_for_programs(run: Run, service: FakeService) -> None:
    code, out, _ = run("files", "list", "--limit", "2")
    assert code == 0
    assert out.splitlines() == [
        "ID\tNAME\tSIZE\tPURPOSE\tSTATUS\tFORMAT\tROWS\tCREATED",
        "file-0\ttrain.jsonl\t1.5 KiB\tfine-tune\t-\t-\t-\t-",
        "file-1\ttrain.jsonl\t1.5 KiB\tfine-tune\t-\t-\t-\t-",
    ]
    listed = json.loads(run("files", "list", "--limit", "2", "--json")[1])
    assert [item["id"] for item in listed["data"]] == ["file-0", "file-1"]
    assert listed["has_more"] is True


def test_a_terminal_gets_a_table(run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    service.replies["GET", "/v1/models"] = 200, page([{"id": "m\x1b]0;x\x07", "state": "[red]ready[/red]"}])
    code, out, _ = run("models", "list")
    assert code == 0
    assert "━" in out or "─" in out
    assert "\x1b]0" not in out
    assert "[red]ready[/red]" in out


def test_an_upload_tells_the_faults_of_a_file_with_their_lines(
    run: Run, service: FakeService, tmp_path: Path
) -> None:
    local = tmp_path / "train.jsonl"
    local.write_text("[\n")
    faults = [
        {"line": 3, "row": None, "message": "not valid JSON"},
        {"line": None, "row": 4, "message": "empty"},
    ]
    report = {"container": "jsonl", "format": "alpaca", "kind": "chat", "rows": 4, "faults": faults}
    faulty = {**file(1), "status": "error", "status_details": "line 3: ...", "report": report}
    service.replies["POST", "/v1/files"] = 200, faulty
    service.replies["GET", "/v1/files/file-1"] = 200, faulty
    code, out, err = run("files", "upload", str(local))
    assert (code, out.splitlines()[1].split("\t")[4:7]) == (0, ["error", "alpaca", "-"])
    assert err.splitlines() == ["train.jsonl: line 3: not valid JSON", "train.jsonl: row 4: empty"]
    code, out, _ = run("files", "show", "file-1")
    assert "fault\tline 3: not valid JSON\nfault\trow 4: empty\n" in out
    faulty["report"] = {**report, "faults": []}
    assert run("files", "upload", str(local))[2] == "train.jsonl: line 3: ...\n"


def test_an_upload_waits_until_a_large_file_is_checked(
    run: Run, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.cli.files._POLL_SECONDS", 0.01)
    local = tmp_path / "train.jsonl"
    local.write_text("{}\n")
    service.replies["POST", "/v1/files"] = 200, {**file(1), "status": "uploaded", "report": None}
    service.replies["GET", "/v1/files/file-1"] = 200, {**file(1), "status": "processed"}
    code, out, err = run("files", "upload", str(local))
    assert (code, out.splitlines()[1].split("\t")[4]) == (0, "processed")
    assert "its rows are being checked" in err


def test_data_is_checked_without_a_service(run: Run, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text('[{"question": "a", "answer": "b"}]')
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    columns = ("--column", "prompt=question", "--column", "completion=answer")
    code, out, _ = run("data", "check", str(good), *columns)
    assert code == 0
    assert "status\tprocessed\ncontainer\tjson\nformat\tprompt_completion\n" in out
    code, out, _ = run("data", "check", str(bad))
    assert (code, 'fault\tline 2: "completion" is missing\n' in out) == (1, True)
    code, out, _ = run("data", "check", str(good), str(bad), "--json", "--validation-share", "0.5")
    first, second = map(json.loads, out.splitlines())
    assert (code, first["faults"][0]["row"], second["faults"]) == (
        1,
        1,
        [{"line": 2, "message": '"completion" is missing'}],
    )
    assert second["held_out"] in (0, 1)
    assert run("data", "check", str(good), "--column", "promt=question")[0] == 2
    for argv in (
        ["data", "report", str(good)],
        ["plan", "x", str(good)],
        ["jobs", "create", "-m", "x", "-f", str(good)],
    ):
        code, _, err = run(*argv, "--column", "promt=question")
        assert code == 2
        assert "promt is none of" in err


def test_a_report_is_made_with_no_service_and_names_the_rows_with_a_problem(run: Run, tmp_path: Path) -> None:
    good, bad, drawn = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "lengths.svg"
    good.write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    bad.write_text('{"prompt": "a", "completion": "b"}\n[\n')
    nowhere = ("--url", "http://127.0.0.1:9")
    code, out, _ = run("data", "report", str(good), "--svg", str(drawn), *nowhere)
    assert code == 0
    assert "format\tprompt_completion" in out
    assert "2 to 2\t2\t" + "\u2588" * 40 in out
    assert "line 2: the same as line 1" in out
    assert drawn.read_text().startswith("<svg")
    code, out, _ = run("data", "report", str(bad), "--json", *nowhere)
    assert code == 1
    assert json.loads(out)["problems"][0]["rows"][0]["line"] == 2
    for wrong, told in (
        (["--model", str(tmp_path)], "no config.json"),
        (["--max-length", "64"], "give model too"),
        (["--model", "tunewright-tiny", "--max-length", "100000"], "8 to 1024"),
    ):
        code, _, err = run("data", "report", str(good), *wrong, *nowhere)
        assert code == 1
        assert told in err


def test_the_service_is_asked_for_the_report_of_an_uploaded_file(run: Run, service: FakeService) -> None:
    tokens = {
        "model": "tiny", "max_length": 64, "rows": 2, "is_complete": False, "from_cache": False, "examples": 2,
        "tokens": 1234, "trained": 8, "cut": 1, "left_out": 0, "lost_trained": 5, "lengths": None,
    }  # fmt: skip
    made = {
        "object": "file.report", "file_id": "file-1", "filename": "a", "container": "jsonl", "format": "text",
        "kind": "text", "rows": 2, "is_complete": True, "ignored_fields": [], "turns": None, "characters": None,
        "duplicates": {"copies": 0, "groups": []}, "tokens": tokens, "problems": [], "flags": [],
        "samples": [{"line": 1, "tokens": 2, "trained": 1, "segments": [
            {"text": "asked", "trained": False}, {"text": "said", "trained": True}]}],
    }  # fmt: skip
    service.replies["GET", "/v1/files/file-1/report"] = (200, made)
    code, out, _ = run("data", "report", "file-1", "--model", "tiny", "--url", service.url)
    assert code == 0
    assert "tokens\t1,234, trained 8 (of the first 2 rows)" in out
    assert '-\t"asked"\n+\t"said"' in out


def test_trained_text_is_in_colour_at_a_terminal_and_cannot_send_escape_sequences() -> None:
    out = Output()
    shown = io.StringIO()
    out.stdout = type(out.stdout)(file=shown, force_terminal=True, color_system="standard", markup=False)
    out.marked([("asked\x1b]0;x\x07", False), ("[red]said", True)])
    written = shown.getvalue()
    assert "\x1b[1;32m[red]said" in written
    assert "\x1b]" not in written
    assert "\x07" not in written


def test_jobs_create_says_how_files_are_read(run: Run, service: FakeService) -> None:
    args = ("jobs", "create", "--model", "tunewright-tiny", "--file", "file-1")
    columns = ("--column", "prompt=question", "--column", "completion=answer")
    assert run(*args, "--validation-file", "auto", "--validation-share", "0.1", *columns)[0] == 0
    sent = service.body("POST", "/v1/fine_tuning/jobs")
    assert sent["validation_file"] == "auto"
    assert sent["data"] == {
        "columns": {"prompt": "question", "completion": "answer"},
        "validation_share": 0.1,
    }
    assert run(*args)[0] == 0
    assert "data" not in service.body("POST", "/v1/fine_tuning/jobs")


def test_files_go_up_and_come_down(run: Run, service: FakeService, tmp_path: Path) -> None:
    local = tmp_path / "train.jsonl"
    local.write_text("{}\n")
    assert json.loads(run("files", "upload", str(local), "--json")[1])["id"] == "file-1"
    code, _, err = run("files", "download", "file-1", "-o", str(tmp_path))
    assert code == 1
    assert "--force" in err
    assert run("files", "download", "file-1", "-o", str(tmp_path), "--force")[:2] == (0, f"{local}\n")
    assert local.read_bytes() == b"rows\xff\n"


def test_adapters_are_registered_shown_and_deleted(run: Run, service: FakeService, tmp_path: Path) -> None:
    lineage = {"origin": "mine.tar", "metrics": {"train_loss": 0.5}, "training_file": None}
    adapter = {"id": "adapter-1", "model": MODEL, "state": "loading", "source": "upload", "lineage": lineage}
    service.replies["POST", "/v1/adapters/upload"] = 200, adapter
    service.replies["POST", "/v1/adapters"] = 200, {**adapter, "state": "failed", "error": "no slot"}
    (tmp_path / "mine.tar").write_bytes(b"packed")
    argv = ["adapters", "register", str(tmp_path / "mine.tar"), "--base", "tiny", "--no-load"]
    assert run(*argv) == (0, f"{MODEL} loading\n", "")
    form = service.requests[-1][2]
    assert b'name="load"\r\n\r\nfalse' in form
    assert b'name="base"\r\n\r\ntiny' in form
    assert run(*argv, "--folder", "checkpoint-2")[0] == 0
    assert b'name="folder"\r\n\r\ncheckpoint-2' in service.requests[-1][2]
    assert run("adapters", "register", "--path", "/srv/a", "--suffix", "s")[:2] == (
        1,
        f"{MODEL} failed: no slot\n",
    )
    assert service.body("POST", "/v1/adapters") == {"path": "/srv/a", "suffix": "s", "load": True}
    run("adapters", "register", "--hub", "org/a", "--revision", "v1")
    assert service.body("POST", "/v1/adapters") == {"hub_id": "org/a", "revision": "v1", "load": True}

    service.replies["GET", "/v1/adapters"] = 200, page([adapter])
    code, out, _ = run("adapters", "list", "--state", "loading", "--job", "ftjob-1")
    assert (code, out.splitlines()[1].split("\t")[:3]) == (0, [MODEL, "loading", "upload"])
    service.replies["GET", f"/v1/adapters/{MODEL}"] = 200, adapter
    code, out, _ = run("adapters", "show", MODEL)
    shown = dict(line.split("\t") for line in out.splitlines())
    assert (shown["origin"], shown["train loss"]) == ("mine.tar", "0.5000")
    assert "training file" not in shown
    service.replies["GET", f"/v1/adapters/{MODEL}/download"] = 200, b"tar's bytes"
    assert run("adapters", "download", MODEL, "-o", str(tmp_path / "out.tar")) == (
        0,
        f"{tmp_path / 'out.tar'}\n",
        "",
    )
    assert (tmp_path / "out.tar").read_bytes() == b"tar's bytes"
    service.replies["DELETE", f"/v1/adapters/{MODEL}"] = 200, {"id": "adapter-1", "object": "adapter"}
    assert run("adapters", "delete", MODEL) == (0, "adapter-1 deleted\n", "")


def test_adapters_that_failed_their_check_are_shown_checked_again_and_forced(
    run: Run, service: FakeService
) -> None:
    parity = {
        "verdict": "fail",
        "reason": "No parity.",
        "check_pending": True,
        "forced": {"who": "ann", "at": 1.0},
    }
    adapter = {"id": "adapter-1", "model": MODEL, "state": "quarantined", "parity": parity}
    service.replies["GET", f"/v1/adapters/{MODEL}"] = 200, adapter
    shown = dict(line.split("\t") for line in run("adapters", "show", MODEL)[1].splitlines())
    assert {key: shown[key] for key in ("parity", "reason", "check", "forced")} == {
        "parity": "fail", "reason": "No parity.", "check": "being checked", "forced": "by ann",
    }  # fmt: skip
    service.replies["POST", f"/v1/adapters/{MODEL}/check"] = 200, {**adapter, "state": "checking"}
    assert run("adapters", "check", MODEL) == (0, f"{MODEL} checking\n", "")
    service.replies["POST", f"/v1/adapters/{MODEL}/load"] = 200, {**adapter, "state": "loaded"}
    assert run("adapters", "load", "--force", MODEL) == (0, f"{MODEL} loaded\n", "")


def test_a_folder_that_is_not_there_is_one_line(run: Run, service: FakeService, tmp_path: Path) -> None:
    code, out, err = run("models", "download", MODEL, "-o", str(tmp_path / "none" / "m.tar"))
    assert (code, out) == (1, "")
    assert err == f"error: no such folder: {tmp_path / 'none'}\n"


def test_a_job_is_reported_where_it_says_and_its_files_are_downloaded(
    run: Run, service: FakeService, tmp_path: Path
) -> None:
    create = ("jobs", "create", "--model", "tiny", "--training-file", "file-1")
    assert run(*create, "--tensorboard", "--mlflow", "support")[0] == 0
    assert service.body("POST", "/v1/fine_tuning/jobs")["integrations"] == [
        {"type": "tensorboard"},
        {"type": "mlflow", "mlflow": {"experiment": "support"}},
    ]
    service.replies["GET", "/v1/fine_tuning/jobs/ftjob-1/tensorboard"] = 200, b"tar's bytes"
    target = tmp_path / "run.tar"
    assert run("jobs", "tensorboard", "ftjob-1", "-o", str(target)) == (0, f"{target}\n", "")
    assert target.read_bytes() == b"tar's bytes"


def test_a_job_is_created_with_what_was_given(run: Run, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{}\n")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    code, out, _ = run(
        "jobs", "create", "--model", "tiny", "--file", str(tmp_path / "t.jsonl"), "--validation-file", "file-9",
        "--type", "qlora", "--epochs", "2", "--batch-size", "4", "--learning-rate", "1e-4", "--rank", "8",
        "--suffix", "s", "--seed", "0", "--metadata", "a=b", "--metadata", "c=d=e",
        "--chat-template-file", str(tmp_path / "t.jinja"),
    )  # fmt: skip
    assert (code, out) == (0, "ftjob-1\n")
    assert service.body("POST", "/v1/fine_tuning/jobs") == {
        "model": "tiny",
        "training_file": "file-1",
        "validation_file": "file-9",
        "tuning": {"type": "qlora", "n_epochs": 2, "batch_size": 4, "learning_rate": 1e-4, "rank": 8},
        "suffix": "s",
        "seed": 0,
        "metadata": {"a": "b", "c": "d=e"},
        "chat_template": "{{ messages }}",
    }
    run("jobs", "create", "--model", "tiny", "--training-file", "file-1")
    assert set(service.body("POST", "/v1/fine_tuning/jobs")) == {"model", "training_file"}


def test_the_older_name_of_the_option_type_still_works(run: Run, service: FakeService) -> None:
    run("jobs", "create", "--model", "tiny", "--file", "file-1", "--method", "qlora")
    assert service.body("POST", "/v1/fine_tuning/jobs")["tuning"] == {"type": "qlora"}
    out = run("jobs", "create", "--help")[1]
    assert "--type" in out
    assert "qlora" not in out.partition("--method [")[2].partition("--")[0]


def test_a_job_on_preferences_names_its_method_and_beta(run: Run, service: FakeService) -> None:
    run("jobs", "create", "--model", "tiny", "--file", "file-1", "--method", "dpo", "--beta", "0.2")
    body = service.body("POST", "/v1/fine_tuning/jobs")
    assert body["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}


def test_a_job_with_a_grader_is_one_of_reinforcement(run: Run, service: FakeService, tmp_path: Path) -> None:
    grader = {"type": "regex", "name": "number", "pattern": "[0-9]"}
    path = tmp_path / "grader.json"
    path.write_text(json.dumps(grader))
    run("jobs", "create", "--model", "tiny", "--file", "file-1", "--grader", f"@{path}", "--beta", "0.2")
    assert service.body("POST", "/v1/fine_tuning/jobs")["method"] == {
        "type": "reinforcement",
        "reinforcement": {"grader": grader, "hyperparameters": {"beta": 0.2}},
    }


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_job_with_its_plan_shows_that_first_and_asks(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    grader = {"type": "regex", "name": "number", "pattern": "[0-9]"}
    memory = {"weights": 2**30, "total": 2 * 2**30}
    method = {
        "type": "lora", "trainable_parameters": 9, "memory": memory, "peak": "loss", "fits": True, "seconds": None,
    }  # fmt: skip
    plan = {
        "model": "tiny", "machine": "H100", "devices": 1, "available": 2**36, "parameters": 99, "rows": 7,
        "counted_rows": 5, "tokens": 1234, "steps": 3, "type": "lora", "advised": "qlora", "why": "it is small",
        "methods": [method], "options": [], "fits": True, "warnings": [{"code": "few_rows", "message": "few"}],
    }  # fmt: skip
    service.replies["POST", "/v1/fine_tuning/plan"] = 200, plan
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{answer}\n"))
    code, _, err = run(
        "jobs", "create", "--model", "tiny", "--file", "file-1", "--grader", json.dumps(grader), "--plan"
    )
    asked = service.body("POST", "/v1/fine_tuning/plan")
    assert asked["method"]["reinforcement"]["grader"] == grader
    for words in (
        "7 rows, 1,234 tokens",
        "first 5 rows",
        "advised: qlora",
        "lora  yes   2.00",
        "warning: few",
    ):
        assert words in err
    assert "Create the job?" in err
    created = [one for one in service.requests if one[:2] == ("POST", "/v1/fine_tuning/jobs")]
    assert (code == 0, len(created)) == ((True, 1) if answer == "y" else (False, 0))


def test_watching_ends_with_the_model(run: Run, service: FakeService) -> None:
    code, out, err = run("jobs", "watch", "ftjob-1")
    assert (code, out) == (0, f"{MODEL}\n")
    assert "2/2  loss 0.250  valid 0.125" in err


def test_watching_as_json_is_lines_of_events_then_the_job(run: Run, service: FakeService) -> None:
    code, out, err = run("jobs", "create", "--model", "tiny", "--file", "file-1", "--watch", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [line["id"] for line in lines] == ["ftjob-1", *(e["id"] for e in EVENTS), "ftjob-1"]
    assert [lines[0]["status"], lines[-1]["status"]] == ["queued", "succeeded"]


def test_watching_a_job_that_fails_is_1_and_says_why(run: Run, service: FakeService) -> None:
    service.job = job("failed", error={"code": "out_of_memory", "message": "no memory"})
    code, out, err = run("jobs", "watch", "ftjob-1")
    assert (code, out) == (1, "")
    assert err.endswith("error: ftjob-1 failed: no memory (out_of_memory)\n")
    service.job = job("cancelled")
    assert run("jobs", "watch", "ftjob-1")[0] == 1


def test_watching_at_a_terminal_shows_a_bar(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = run("jobs", "watch", "ftjob-1")
    assert (code, out) == (0, f"{MODEL}\n")
    assert "2/2  loss 0.250  valid 0.125" in err
    assert "━" in err


def test_ctrl_c_leaves_the_job_and_says_so(run: Run, service: FakeService) -> None:
    service.job = job("running")
    interrupt_when(lambda: any(path == JOB for _, path, _ in service.requests))
    code, out, err = run("jobs", "watch", "ftjob-1")
    assert (code, out) == (130, "")
    assert "ftjob-1 continues" in err


def test_events_and_logs(run: Run, service: FakeService) -> None:
    listed = json.loads(run("jobs", "events", "ftjob-1", "--json")[1])
    assert [item["id"] for item in listed["data"]] == [e["id"] for e in EVENTS]
    followed = run("jobs", "events", "ftjob-1", "--follow", "--json")[1].splitlines()
    assert [json.loads(line)["id"] for line in followed] == [e["id"] for e in EVENTS]
    assert run("jobs", "logs", "ftjob-1")[1] == "one\ntwo\nthree\n"
    assert run("jobs", "logs", "ftjob-1", "--tail", "2", "--follow")[1] == "two\nthree\n"


# Chat


ALIAS: dict[str, Any] = {
    "id": "support-bot",
    "version": 2,
    "targets": [{"model": "old", "weight": 9.0}, {"model": "new", "weight": 1.0}],
    "shadow": {"model": "next", "share": 0.25},
    "guard": {"max_error_rate": 0.05, "max_p99_seconds": None, "window_seconds": 600.0, "min_requests": 20},
    "updated_at": 0,
}


def test_an_alias_is_set_with_what_was_given(run: Run, service: FakeService) -> None:
    service.replies["PUT", "/v1/aliases/support-bot"] = 200, ALIAS
    code, out, _ = run("aliases", "set", "support-bot", "old=9", "new", "--user", "ann")
    assert (code, out) == (0, "support-bot version 2: old=9 new\n")
    sent = {"targets": [{"model": "old", "weight": 9.0}, {"model": "new", "weight": 1.0}], "wait": True}
    assert service.body("PUT", "/v1/aliases/support-bot") == sent
    assert service.headers[-1]["x-tunewright-user"] == "ann"
    options = (
        "--shadow", "next=0.25", "--max-error-rate", "0.05", "--max-p99", "2", "--window", "60",
        "--min-requests", "9", "--expected-version", "0", "--no-wait",
    )  # fmt: skip
    assert json.loads(run("aliases", "set", "support-bot", "a:b=c=2", *options, "--json")[1])["version"] == 2
    assert service.body("PUT", "/v1/aliases/support-bot") == {
        "targets": [{"model": "a:b=c", "weight": 2.0}],
        "shadow": {"model": "next", "share": 0.25},
        "guard": {"max_error_rate": 0.05, "max_p99_seconds": 2.0, "window_seconds": 60.0, "min_requests": 9},
        "expected_version": 0,
        "wait": False,
    }


def test_the_judge_of_a_guard(run: Run, service: FakeService) -> None:
    judged = {"model": "new", "against": "old", "verdict": "fail", "wins": 1, "ties": 2, "losses": 7}
    judge = {"model": "qwen", "min_win_rate": 0.45, "min_samples": 50, "instructions": None}
    shown = {**ALIAS, "guard": {**ALIAS["guard"], "judge": judge}, "judged": [{**judged, "win_rate": 0.2}]}
    service.replies["PUT", "/v1/aliases/support-bot"] = service.replies["GET", "/v1/aliases/support-bot"] = (
        200,
        shown,
    )
    given = ("--shadow", "old", "--judge", "qwen", "--min-win-rate", "0.45", "--min-samples", "50")
    assert run("aliases", "set", "support-bot", "new", *given)[0] == 0
    guard = {"judge": {"model": "qwen", "min_win_rate": 0.45, "min_samples": 50}}
    assert service.body("PUT", "/v1/aliases/support-bot")["guard"] == guard
    told = run("aliases", "show", "support-bot")[1]
    assert "errors 0.05, win rate 0.45 by qwen, window 600 s" in told
    assert "judged\tnew: fail; 1 wins, 2 ties, 7 losses against old, win rate 20.0%" in told
    assert "--judge needs a --min-win-rate" in run("aliases", "set", "a", "m", "--judge", "qwen")[2]
    assert "are of a --judge" in run("aliases", "set", "a", "m", "--min-samples", "50")[2]


def test_aliases_are_shown(run: Run, service: FakeService) -> None:
    service.replies["GET", "/v1/aliases"] = (
        200,
        page([ALIAS, {"id": "z", "version": 1, "targets": [{"model": "m"}]}]),
    )
    assert run("aliases", "list")[1].splitlines() == [
        "ALIAS\tVERSION\tTARGETS\tSHADOW\tGUARD\tUPDATED",
        "support-bot\t2\told=9 new\tnext=0.25\terrors 0.05, window 600 s, requests 20\t-",
        "z\t1\tm\t-\t-\t-",
    ]
    service.replies["GET", "/v1/aliases/support-bot"] = 200, ALIAS
    assert "target\told=9\ntarget\tnew\nshadow\tnext=0.25" in run("aliases", "show", "support-bot")[1]


def test_an_alias_is_rolled_back_and_says_why(run: Run, service: FakeService) -> None:
    path = "/v1/aliases/support-bot"
    service.replies["GET", path] = 200, ALIAS
    service.replies["POST", path + "/rollback"] = 200, {**ALIAS, "version": 3, "targets": [{"model": "old"}]}
    assert run("aliases", "rollback", "support-bot")[1] == "support-bot version 3: old\n"
    assert service.body("POST", path + "/rollback") == {"expected_version": 2, "wait": True}
    run("aliases", "rollback", "support-bot", "--to", "1", "--no-wait")
    assert service.body("POST", path + "/rollback") == {"version": 1, "expected_version": 2, "wait": False}
    versions = [
        {"id": "4", "version": 4, "targets": [], "who": "ann", "why": "deleted"},
        {"id": "3", "version": 3, "targets": [{"model": "old"}], "why": "rollback to version 1"},
    ]
    service.replies["GET", path + "/history"] = 200, page(versions)
    assert run("aliases", "history", "support-bot")[1].splitlines()[1:] == [
        "4\t-\tann\t-\t-\tdeleted",
        "3\t-\t-\told\t-\trollback to version 1",
    ]
    service.replies["DELETE", path] = 200, {"id": "support-bot", "deleted": True}
    assert run("aliases", "delete", "support-bot")[1] == "support-bot deleted\n"


DEPLOYMENT = {
    "id": "deploy-1", "object": "deployment", "model": "m", "state": "starting", "reason": None, "device": "cpu",
    "engine": {}, "options": {"device": "cpu", "kv_cache_memory": 7, "max_model_len": None},
    "adapters": [{"model": "ft:m::1", "id": "adapter-1", "state": "loaded"}], "memory_bytes": 2**30,
    "log_tail": ["first", "last"],
}  # fmt: skip
DEPLOYMENTS = "/v1/deployments"


def test_a_deployment_is_made_with_what_was_given(run: Run, service: FakeService) -> None:
    service.replies["POST", DEPLOYMENTS] = 200, DEPLOYMENT
    assert run("deployments", "create", "m") == (0, "m starting\n", "")
    assert service.body("POST", DEPLOYMENTS) == {"model": "m", "engine": {}}
    options = (
        "--device", "cuda:1", "--gpu-memory-utilization", "0.2", "--max-model-len", "64", "--max-num-seqs", "2",
        "--no-lora", "--max-lora-rank", "32", "--eager", "--dtype", "float16", "--kv-cache-memory", "64MiB",
        "--max-loras", "3", "--max-cpu-loras", "9",
    )  # fmt: skip
    assert json.loads(run("deployments", "create", "m", *options, "--json")[1])["id"] == "deploy-1"
    assert service.body("POST", DEPLOYMENTS) == {
        "model": "m",
        "engine": {
            "device": "cuda:1", "gpu_memory_utilization": 0.2, "max_model_len": 64, "max_num_seqs": 2,
            "enable_lora": False, "max_lora_rank": 32, "enforce_eager": True, "dtype": "float16",
            "kv_cache_memory": "64MiB", "max_loras": 3, "max_cpu_loras": 9,
        },
    }  # fmt: skip


def test_waiting_for_a_deployment_ends_with_its_state_or_its_reason(run: Run, service: FakeService) -> None:
    service.replies["POST", DEPLOYMENTS] = 200, DEPLOYMENT
    one = f"{DEPLOYMENTS}/deploy-1"
    service.replies["GET", one] = 200, {**DEPLOYMENT, "state": "ready"}
    assert run("deployments", "create", "m", "--wait") == (0, "m ready\n", "")
    service.replies["GET", one] = 200, {**DEPLOYMENT, "state": "failed", "reason": "ValueError: no"}
    code, out, err = run("deployments", "create", "m", "--watch")
    assert (code, out, err) == (1, "", "error: m is failed: ValueError: no\n")
    service.replies["POST", f"{DEPLOYMENTS}/m/restart"] = 200, DEPLOYMENT
    code, out, _ = run("deployments", "restart", "m", "--wait", "--json")
    assert (code, json.loads(out)["state"]) == (1, "failed")


def test_deployments_are_shown_and_taken_down(run: Run, service: FakeService) -> None:
    service.replies["GET", DEPLOYMENTS] = 200, page([DEPLOYMENT])
    assert run("deployments", "list")[1].splitlines() == [
        "MODEL\tSTATE\tDEVICE\tMEMORY\tADAPTERS\tSTARTED\tID\tREASON",
        "m\tstarting\tcpu\t1.0 GiB\t1\t-\tdeploy-1\t-",
    ]
    service.replies["GET", f"{DEPLOYMENTS}/m"] = 200, DEPLOYMENT
    shown = run("deployments", "show", "m")[1]
    assert "kv cache memory\t7\nadapter ft:m::1\tloaded\nlog\tfirst\nlog\tlast\n" in shown
    service.replies["GET", f"{DEPLOYMENTS}/m/logs"] = 200, b"one\ntwo\n"
    assert run("deployments", "logs", "m", "--tail", "2")[1] == "one\ntwo\n"
    service.replies["DELETE", f"{DEPLOYMENTS}/m"] = 200, {"id": "deploy-1", "deleted": True}
    assert run("deployments", "delete", "m", "--force", "--timeout", "3")[1] == "deploy-1 deleted\n"


def test_what_a_shadow_answered_is_listed(run: Run, service: FakeService) -> None:
    answer = {"id": "shadow-1", "status": 200, "seconds": 0.5, "model": "next", "answered_by": "old"}
    service.replies["GET", "/v1/aliases/support-bot/shadow"] = (
        200,
        page([{**answer, "answer": {"text": "x" * 99}}]),
    )
    out = run("aliases", "shadow", "support-bot", "--limit", "200")[1]
    assert out.splitlines()[1].startswith('-\t200\t0.50 s\tnext\told\t{"text": "xxx')
    assert out.endswith("...\n")
    assert (
        len(json.loads(run("aliases", "shadow", "support-bot", "--json")[1])["data"][0]["answer"]["text"])
        == 99
    )


@pytest.mark.parametrize("group", ["models", "adapters"])
def test_a_model_is_deleted_by_force_only_if_asked(run: Run, service: FakeService, group: str) -> None:
    asked: list[dict[str, str]] = []
    answer = service.answer

    def noted(method: str, path: str, query: dict[str, str], *rest: Any) -> tuple[int, Any]:
        asked.append(query)
        return answer(method, path, query, *rest)

    service.answer = noted  # type: ignore[method-assign]
    service.replies["DELETE", f"/v1/{group}/m"] = 200, {"id": "m", "deleted": True}
    assert run(group, "delete", "m")[1] == "m deleted\n"
    assert run(group, "delete", "m", "--force")[1] == "m deleted\n"
    assert asked == [{}, {"force": "true"}]


def test_chat_streams_an_answer(run: Run, service: FakeService) -> None:
    code, out, _ = run("chat", "tiny", "hi", "--system", "s", "--temperature", "0", "--max-tokens", "5")
    assert (code, out) == (0, "It is \x1bblue. \n")  # in a pipe as it came; a terminal gets no escapes
    body = service.body("POST", "/v1/chat/completions")
    assert body["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 5, True)
    answer = json.loads(run("chat", "tiny", "hi", "--json")[1])
    assert answer["choices"][0]["message"]["content"] == "It is \x1bblue."


def test_chat_reads_a_pipe(
    run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in").write_text("a question\n")
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert run("chat", "tiny")[0] == 0
    assert service.body("POST", "/v1/chat/completions")["messages"][0]["content"] == "a question"


def test_a_conversation_remembers(run: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter(["hi", "", "and?", "/new", "anew"])

    def ask(_: str) -> str:
        try:
            return next(asked)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)
    assert run("chat", "tiny")[0] == 0
    sent = [
        json.loads(body)["messages"] for _, path, body in service.requests if path.endswith("completions")
    ]
    assert [len(messages) for messages in sent] == [1, 3, 1]
    assert sent[1][1]["role"] == "assistant"


# The demo


@pytest.fixture
def demo(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs the demo over a pretended service; afterwards no process and no folder may be left."""
    groups: list[GroupRecord] = []
    start = demo_service.ProcessGroup.start

    def remembered(*args: Any, **kwargs: Any) -> Any:
        group = start(*args, **kwargs)
        groups.append(group.record)
        return group

    def command(port: int, data: Path) -> list[str]:
        return [sys.executable, __file__, "--port", str(port)]

    monkeypatch.setattr(demo_service, "serve_command", command)
    monkeypatch.setattr(demo_service.ProcessGroup, "start", remembered)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run_demo(mode: str, *argv: str) -> tuple[int, str, str]:
        monkeypatch.setenv("FAKE_MODE", mode)
        return run("demo", *argv)

    yield run_demo
    assert list(tmp_path.iterdir()) == []
    assert all(not p.is_alive() for group in groups for p in (group.watcher, group.command) if p)


def test_the_demo_shows_a_difference(demo: Run) -> None:
    code, out, err = demo("works")
    assert code == 0, err
    assert "What color is the sky?\tIt is  blue.\tArr! It is  blue." in out
    assert "training\t1.5000\t0.2500" in out
    assert "validation\t1.5000\t0.1250" in out
    assert "curl http://127.0.0.1:" in out
    assert f'model="{MODEL}"' in out
    assert "tunewright demo --keep" in out


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("same", "the adapter answers like the base"),
        ("dies", "ended by itself, with exit code 3"),
        ("job_fails", "the loss became nan"),
    ],
)
def test_a_demo_that_shows_nothing_is_a_failure(demo: Run, mode: str, reason: str) -> None:
    code, _, err = demo(mode)
    assert code == 1
    assert reason in err
    assert "the service says hello" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(demo: Run, tmp_path: Path, number: signal.Signals) -> None:
    interrupt_when(lambda: "hello" in "".join(p.read_text() for p in tmp_path.glob("*/service.log")), number)
    code, out, _ = demo("never_ready")
    assert (code, out) == (130, "")


def test_keep_ends_with_ctrl_c_as_a_success(
    demo: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tunewright.cli import demo as module

    kept = threading.Event()
    wait = module._wait_for_interrupt
    monkeypatch.setattr(module, "_wait_for_interrupt", lambda service: (kept.set(), wait(service)))
    interrupt_when(kept.is_set)
    assert demo("works", "--keep")[0] == 0


def test_a_taken_port_is_said_at_once(demo: Run, service: FakeService) -> None:
    code, _, err = demo("works", "--port", service.url.rsplit(":", 1)[1])
    assert code == 1
    assert "cannot be used: Address already in use" in err


def interrupt_when(condition: Callable[[], bool], number: signal.Signals = signal.SIGINT) -> None:
    """Send this process a signal once something is so (or, at the latest, after 10 seconds)."""

    def wait() -> None:
        deadline = time.monotonic() + 10
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def test_a_finished_job_is_shown_with_what_was_planned_beside_what_was_measured(
    run: Run, service: FakeService
) -> None:
    planned = {
        "steps": 24,
        "tokens": 9000,
        "peak_bytes": 2**30,
        "seconds": {"least": 40, "most": 70, "basis": "b"},
    }
    planned["cost"] = {"least": {"kwh": 0.1}, "most": {"kwh": 0.2, "price": 1.5, "currency": "EUR"}}
    measured = {"device": "cpu", "seconds": 61.5, "tokens": 8700, "peak_bytes": 2**30 + 2**29, "waited": 0.25}
    measured["cost"] = {"kwh": 0.15, "price": 1.25, "currency": "EUR"}
    forgetting = {"kl": 1.5, "low": 1.25, "high": 1.75, "loss": 4.5, "loss_before": 3.25, "tokens": 2000}
    forgetting |= {"bound": 1.0, "is_beyond": True}
    job = {"id": "ftjob-1", "status": "succeeded", "planned": planned, "measured": measured}
    job["forgetting"] = forgetting
    service.replies["GET", "/v1/fine_tuning/jobs/ftjob-1"] = 200, job
    shown = dict(line.split("\t") for line in run("jobs", "show", "ftjob-1")[1].splitlines())
    assert shown["planned"] == "24 steps, 9000 tokens, 1.0 GiB, 40s to 1m10s, 0.1 kWh to 0.2 kWh, 1.50 EUR"
    assert shown["measured"] == (
        "8700 tokens after the first step in 1m02s, waited 0.2s for rows, 1.5 GiB, 0.15 kWh, 1.25 EUR, cpu"
    )
    assert shown["forgetting"] == (
        "KL 1.500 (1.250 to 1.750) on general text, loss there 3.250 before, 4.500 now; more than 1 is much"
    )


def test_a_job_is_created_on_several_files_with_weights(
    run: Run, service: FakeService, tmp_path: Path
) -> None:
    rare = tmp_path / "with=in.jsonl"
    rare.write_text("{}\n")
    argv = ("jobs", "create", "--model", "tiny", "--file", "file-7")
    assert run(*argv, "--mix", "file-9=2", "--mix", "file-7=0.5", "--mix", str(rare))[0] == 0
    assert service.body("POST", "/v1/fine_tuning/jobs")["data"]["mix"] == [
        {"file": "file-9", "weight": 2.0},
        {"file": "file-7", "weight": 0.5},
        {"file": "file-1", "weight": 1.0},
    ]
    code, _, err = run(*argv, "--mix", "file-9=many")
    assert (code, "must be a number" in err) == (2, True)
    shown = {**job("succeeded"), "data": {"mix": [{"file": "file-9", "weight": 2.0}]}}
    service.replies["GET", JOB] = 200, shown
    assert "mix\tfile-9=2.0" in run("jobs", "show", "ftjob-1")[1]


def test_a_job_asks_for_its_evaluations_and_shows_what_they_have_found(
    run: Run, service: FakeService, tmp_path: Path
) -> None:
    rows = tmp_path / "test.jsonl"
    rows.write_text("{}\n")
    argv = ("jobs", "create", "--model", "tiny", "--file", "file-7")
    options = (
        "--evaluate", str(rows), "--evaluate-suite", "mmlu", "--evaluate-metric", "accuracy", "--evaluate-min",
        "accuracy=0.5", "--evaluate-max-drop", "accuracy=0.02", "--evaluate-rows", "40", "--select", "best",
        "--evaluate-at", "checkpoints",
    )  # fmt: skip
    assert run(*argv, *options)[0] == 0
    assert service.body("POST", "/v1/fine_tuning/jobs")["evaluate"] == {
        "data": "file-1",
        "suites": [{"name": "mmlu"}],
        "metrics": ["accuracy"],
        "require": [{"metric": "accuracy", "min": 0.5, "max_drop": 0.02}],
        "at": ["checkpoints"],
        "rows": 40,
        "select": "best",
    }
    assert "Give --evaluate, --evaluate-suite, or both" in run(*argv, "--select", "best")[2]
    point = {"at": "checkpoint", "step": 4, "model": "m", "status": "succeeded", "verdict": "not_enough_data"}
    figure = {"metric": "accuracy", "value": 0.75, "low": 0.5, "high": 0.875}
    gain = {"gain": 0.25, "gain_low": -0.125, "gain_high": 0.5}
    lost = {"value": 0.1, "low": 0.05, "high": 0.15}
    points = [
        {**point, "measure": "data", "figures": [{**figure, **gain}]},
        {**point, "measure": "mmlu", "figures": [], "forgotten": lost},
        {"at": "end", "model": "m", "measure": "data", "status": "failed", "why": "nothing was answered"},
    ]
    ended = {"points": points, "model": "m", "step": 4, "verdict": "not_enough_data", "why": "It is the best"}
    service.replies["GET", JOB] = 200, {**job("succeeded"), "evaluation": ended}
    shown = run("jobs", "show", "ftjob-1")[1]
    assert (
        "checkpoint\t4\tdata\taccuracy\t0.750 (0.500 to 0.875)\t+0.250 (-0.125 to +0.500)\tnot enough"
        in shown
    )
    assert "checkpoint\t4\tmmlu\tforgotten\t0.100 (0.050 to 0.150)" in shown
    assert "end\t-\tdata\t" in shown
    assert "m (not enough data to tell): It is the best" in shown
    metrics = {"train_loss": 0.5, "eval_accuracy": 0.75, "eval_accuracy_gain": 0.25, "eval_mmlu": 0.5}
    checkpoint = {"id": "ftckpt-1", "fine_tuned_model_checkpoint": "m", "step_number": 4}
    checkpoint["metrics"] = {**metrics, "eval_mmlu_forgotten": 0.1}
    service.replies["GET", f"{JOB}/checkpoints"] = 200, {"data": [checkpoint], "has_more": False}
    listed = run("jobs", "checkpoints", "ftjob-1")[1]
    assert "m\t4\t0.5000\t-\taccuracy 0.750 (+0.250), mmlu 0.500 (forgotten 10.0%)\t" in listed


def test_a_plan_for_a_method_that_cannot_learn_from_the_rows_is_refused_with_the_one_that_can(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    code, _, err = run("plan", "tunewright-tiny", str(path), "--machine", "L4")
    assert code == 1
    assert "labelled rows" in err
    assert "kto could" in err


def test_what_a_plan_cannot_be_made_of_is_told_with_what_to_do_in_this_command(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*_: object, **__: object) -> str:
        raise ConnectionError("Got: ConnectError: [Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    rows, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    other.write_text('{"question": "a", "answer": "b"}\n')
    broken, latin = tmp_path / "broken.jinja", tmp_path / "latin.jinja"
    broken.write_text("{% for %}")
    latin.write_bytes(b"\xe9")
    model = "tunewright-tiny"
    for argv, told in (
        (["plan", "tunewright-tin", str(rows)], "hub: ConnectError: [Errno -2]"),
        (["plan", "tunewright-tin", str(rows)], "the embedded base is tunewright-tiny"),
        (["data", "report", str(rows), "-m", "nosuch"], "the embedded base is tunewright-tiny"),
        (["plan", model, str(other)], "--column says what they are, such as --column prompt=question"),
        (["data", "check", str(other)], "--column says what they are, such as --column prompt=question"),
        (["plan", model, str(rows), "--machine", "8xA9000"], "such as 8xA100-80GB or H100; known are T4"),
        (["plan", model, str(rows), "--chat-template-file", str(broken)], "template cannot be used"),
        (["plan", model, str(rows), "--chat-template-file", str(latin)], "is not text in UTF-8"),
    ):
        code, out, err = run(*argv)
        assert code == 1
        assert told in out + err


def test_a_plan_names_the_card_that_it_takes_and_uses_a_template_of_ones_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_here(monkeypatch)
    rows, template = tmp_path / "rows.jsonl", tmp_path / "own.jinja"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 10)
    own = embedded_base_path().joinpath("chat_template.jinja").read_text()
    template.write_text(own.replace("<|im_start|>", "<|im_start|>" * 3))
    argv = ("plan", "tunewright-tiny", str(rows), "--machine", "2xA100", "--json")
    plain, longer = (
        json.loads(run(*argv, *more)[1]) for more in ((), ("--chat-template-file", str(template)))
    )
    assert (plain["machine"], plain["devices"]) == ("A100-80GB", 2)
    assert longer["tokens"] > plain["tokens"]


def test_a_plan_of_several_files_lists_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_here(monkeypatch)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text('{"prompt": "a", "completion": "b"}\n' * 10)
    code, out, _ = run(
        "plan", "tunewright-tiny", str(paths[0]), "--mix", f"{paths[1]}=0.5", "--machine", "L4", "--json",
        "--price-per-hour", "0.5", "--currency", "EUR",
    )  # fmt: skip
    assert code == 0
    made = json.loads(out)
    assert made["methods"][1]["cost"]["most"]["currency"] == "EUR"
    assert made["methods"][1]["cost"]["most"]["kwh"] > 0, "by the card's watts"
    assert [(one["file"], one["rows"]) for one in made["files"]] == [
        (str(paths[0]), 10),
        (str(paths[1]), 5),
    ]
