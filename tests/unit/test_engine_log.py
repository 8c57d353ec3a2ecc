"""The cause of an engine's end, read from its log with lines as vLLM writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewright.scheduler.engine_log import last_error, reason_of_lost

SHUTDOWN = """\
(APIServer pid=9) ERROR 11-22 15:32:33 [async_llm.py:906] AsyncLLM output_handler failed.
(APIServer pid=9) ERROR 11-22 15:32:33 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
(APIServer pid=9) ERROR 11-22 15:32:33 [serving.py:1] Error in chat completion stream generator.
(APIServer pid=9) INFO 11-22 15:32:33 [launcher.py:304] [shutdown] API server: shutting down FastAPI HTTP server
INFO:     Application shutdown complete.
"""  # noqa: E501
BEFORE = "(APIServer pid=9) INFO 11-22 15:32:30 [loggers.py:335] Engine 000: Running: 2 reqs\n"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            "(APIServer pid=9) WARNING 11-22 15:32:33 [core_client.py:818] [shutdown] MPClient: engine core exited "
            "unexpectedly; starting cleanup\n",
            "EngineCore was killed or crashed",
        ),
        (
            "(EngineCore pid=10) ERROR 11-22 15:32:33 [multiproc_executor.py:315] Worker proc VllmWorker-0 died "
            "unexpectedly (exit code: -9), shutting down executor.\n",
            "Worker proc VllmWorker-0 died unexpectedly (exit code: -9)",
        ),
        (
            "(EngineCore pid=10) ERROR 11-22 15:32:33 [core.py:1] ValueError: 4.2 GiB KV cache is needed\n",
            "ValueError: 4.2 GiB KV cache is needed",
        ),
        (
            "(APIServer pid=9) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "(APIServer pid=9)   Value error, User-specified max_model_len (4096) is too large [type=value_error]\n"
            "(APIServer pid=9)     For further information visit https://errors.pydantic.dev/2.14/v/value_error\n",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig Value error, "
            "User-specified max_model_len (4096) is too large [type=value_error]",
        ),
        ("", "EngineCore was killed or crashed"),
    ],
)
def test_the_cause_is_told_and_not_what_follows_from_it(tmp_path: Path, lines: str, cause: str) -> None:
    log = tmp_path / "engine.log"
    log.write_text(BEFORE + lines + SHUTDOWN)
    assert last_error(log).startswith(cause)


def test_an_engine_without_a_log_or_an_error_in_it(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    assert last_error(log) == "no log"
    log.write_text(BEFORE)
    assert last_error(log) == "its log names no error"


def test_a_process_that_was_killed_is_named_with_the_error_that_it_wrote(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text(BEFORE)
    told = reason_of_lost("VLLM::EngineCore", log)
    assert told.startswith(
        "its process VLLM::EngineCore was killed or crashed; if the machine's memory ran out"
    )
    log.write_text(BEFORE + "(EngineCore pid=10) ERROR 11-22 15:32:33 [core.py:1] ValueError: no cache\n")
    assert (
        reason_of_lost("VLLM::EngineCore", log) == "its process VLLM::EngineCore ended: ValueError: no cache"
    )
