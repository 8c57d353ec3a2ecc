"""Thousands of generated requests for each operation, against a service of its own without vLLM or a running one.

TUNEWRIGHT_FUZZ_URL is the URL of a running service that serves nothing else, since models are deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from schemathesis import Case

import fuzzing
from tests.without_vllm import BASE, fill, start_without_vllm, wait_engine

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
URL = os.environ.get("TUNEWRIGHT_FUZZ_URL")
EXAMPLES = int(os.environ.get("TUNEWRIGHT_FUZZ_EXAMPLES", "1000"))
schema = fuzzing.api(limits=True)


@pytest.fixture(scope="module")
def fuzzer(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[fuzzing.Fuzzer]:
    began = time.monotonic()
    failed_before = request.session.testsfailed
    if URL:
        fuzzer = fuzzing.Fuzzer(URL)
        yield fuzzer
    else:
        data_dir = tmp_path_factory.mktemp("fuzz") / "data"
        fill(data_dir)
        service = start_without_vllm(data_dir, "--base", "missing=/nowhere")
        try:
            wait_engine(service, BASE)
            fuzzer = fuzzing.Fuzzer(service.url, jobs_on="missing")
            yield fuzzer
        finally:
            service.stop()
        fuzzing.assert_unharmed(service.log.read_text())
    print(f"\n{fuzzer.report()}\n  failures: {request.session.testsfailed - failed_before}")
    print(f"  {time.monotonic() - began:.0f} s")


@schema.parametrize()
@fuzzing.examples(EXAMPLES)
def test_every_answer_is_as_documented(case: Case, fuzzer: fuzzing.Fuzzer) -> None:
    fuzzer.send(case)


def test_what_one_answer_names_the_next_one_knows(fuzzer: fuzzing.Fuzzer) -> None:
    fuzzer.wander(EXAMPLES // 4)
