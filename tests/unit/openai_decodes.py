"""`python openai_decodes.py chat|completions|responses < BODY`: what the stock client of OpenAI makes of a stream.

Prints the version, and a JSON object: `events`, and `error` with its `type` and the fields that the client knows.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import openai


def main(api: str) -> None:
    httpx: Any = importlib.import_module("httpx2" if openai.__version__.startswith("3.") else "httpx")
    answer = httpx.Response(
        200, headers={"content-type": "text/event-stream"}, content=sys.stdin.buffer.read()
    )
    transport = httpx.MockTransport(lambda _: answer)
    client = openai.OpenAI(
        base_url="http://t/v1", api_key="none", http_client=httpx.Client(transport=transport)
    )
    events, error = [], None
    try:
        if api == "responses":
            stream: Any = client.responses.create(model="tiny", input="hi", stream=True)
        elif api == "chat":
            stream = client.chat.completions.create(model="tiny", messages=[], stream=True)
        else:
            stream = client.completions.create(model="tiny", prompt="", stream=True)
        events = [event.to_dict() for event in stream]
    except openai.APIError as raised:
        error = {
            "class": type(raised).__name__,
            "message": raised.message,
            "code": raised.code,
            "type": raised.type,
        }
    print(openai.__version__, json.dumps({"events": events, "error": error}))


if __name__ == "__main__":
    main(*sys.argv[1:])
