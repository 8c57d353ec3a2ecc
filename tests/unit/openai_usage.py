"""`python openai_usage.py < ANSWERS`: what the stock client of OpenAI makes of usage and costs.

ANSWERS is a JSON object with the bodies by path. Prints the version, and a JSON object: the `queries` that it has sent,
and what it has `read`, which it checks strictly.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import openai


def main(answers: dict[str, str]) -> None:
    httpx: Any = importlib.import_module("httpx2" if openai.__version__.startswith("3.") else "httpx")
    queries: list[str] = []

    def answer(request: Any) -> Any:
        queries.append(request.url.raw_path.decode())
        return httpx.Response(
            200, headers={"content-type": "application/json"}, content=answers[request.url.path].encode()
        )

    client = openai.OpenAI(
        base_url="http://t/v1", api_key="none", admin_api_key="none",
        http_client=httpx.Client(transport=httpx.MockTransport(answer)), _strict_response_validation=True,
    )  # fmt: skip
    usage = client.admin.organization.usage
    whole = [
        usage.completions(
            start_time=20_000 * 86_400,
            group_by=["project_id", "model"],
            models=["m1"],
            bucket_width="1d",
            limit=2,
        ),
        usage.embeddings(start_time=20_000 * 86_400),
        usage.costs(start_time=20_000 * 86_400, group_by=["line_item"]),
    ]
    print(json.dumps([openai.__version__, queries, [one.to_dict() for one in whole]]))


if __name__ == "__main__":
    main(json.load(sys.stdin))
