"""vLLM's own spans: of the same trace as the service's, below them, at the same receiver."""

from __future__ import annotations

from pathlib import Path

import pytest

from otlp import attributes, receiver
from tests.engine.conftest import start_service, wait_ready, wait_until
from tunewright.config import EMBEDDED_BASE

pytestmark = pytest.mark.engine


def test_a_generation_is_traced_into_vllm(tmp_path: Path) -> None:
    with receiver() as (found, address):
        environment = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
        arguments = ("--parity", "off", "--otlp-endpoint", address)
        service = start_service(tmp_path / "data", *arguments, environment=environment)
        try:
            wait_ready(service)
            with service.client() as client:
                messages = [{"role": "user", "content": "hi"}]
                asked = {"model": EMBEDDED_BASE, "messages": messages, "max_tokens": 5}
                with client.chat.create(**asked, stream=True) as stream:
                    assert list(stream)
            wait_until(lambda: bool(found.named("llm_request") and found.named("engine")), 60, "the spans")
        finally:
            service.stop()
    (engine,) = found.named("engine")
    of_vllm = [span for span in found.named("llm_request") if span.trace_id == engine.trace_id]
    assert [span.parent_span_id for span in of_vllm] == [engine.span_id]
    assert attributes(of_vllm[0])["gen_ai.usage.completion_tokens"] <= 5
    assert [event.name for event in engine.events] == ["first token"]
    assert found.services == {"tunewright", "tunewright-vllm"}
