"""The results of a batch: one line for each request, in the file of answers or in that of errors, as OpenAI's API has
them. A request that has a line is not asked again by a process that is started again."""

from __future__ import annotations

import json
from pathlib import Path
from secrets import token_hex
from typing import Any

from tunewright.batcher.folder import errors_file, output_file
from tunewright.ids import id_for_key
from tunewright.jobs.folder import JobFolder
from tunewright.jobs.lines import AppendedLines
from tunewright.jobs.products import Product, product_at


class Results:
    """The results so far. One process writes them, and each request's once."""

    def __init__(self, folder: JobFolder, job_id: str) -> None:
        folder.work.mkdir(exist_ok=True)
        self._job_id = job_id
        self._folder = folder
        self.known: set[str] = set()
        """The `custom_id` of each request that has a result."""
        self.completed = self.failed = 0
        self._output = AppendedLines(output_file(folder), self._read)
        self.completed = len(self.known)
        self._errors = AppendedLines(errors_file(folder), self._read)
        self.failed = len(self.known) - self.completed

    def _read(self, line: bytes) -> None:
        self.known.add(str(json.loads(line)["custom_id"]))

    def answer(self, custom_id: str, body: Any) -> None:
        """Keep the answer to a request. Raises OSError where the disk is full."""
        self._output.append(self._line(custom_id, _response(200, body), None))
        self.known.add(custom_id)
        self.completed += 1

    def refuse(self, custom_id: str, status: int, error: Any) -> None:
        """Keep that a request was answered with an error of the API. Raises OSError where the disk is full."""
        self._fail(custom_id, _response(status, {"error": error}), None)

    def fail(self, custom_id: str, code: str, message: str) -> None:
        """Keep why a request was not asked. Raises OSError where the disk is full."""
        self._fail(custom_id, None, {"code": code, "message": message})

    def _fail(self, custom_id: str, response: Any, error: Any) -> None:
        self._errors.append(self._line(custom_id, response, error))
        self.known.add(custom_id)
        self.failed += 1

    def _line(self, custom_id: str, response: Any, error: Any) -> bytes:
        id = id_for_key("batch_req", f"{self._job_id} {custom_id}")
        line = {"id": id, "custom_id": custom_id, "response": response, "error": error}
        return json.dumps(line, ensure_ascii=True).encode()

    def products(self) -> tuple[Product | None, Product | None]:
        """The files of answers and of errors, on disk; None for an empty one."""
        self._output.sync()
        self._errors.sync()
        return _product(output_file(self._folder)), _product(errors_file(self._folder))

    def close(self) -> None:
        self._output.close()
        self._errors.close()


def _response(status: int, body: Any) -> dict[str, Any]:
    return {"status_code": status, "request_id": f"req_{token_hex(16)}", "body": body}


def _product(path: Path) -> Product | None:
    return product_at(path) if path.stat().st_size else None
