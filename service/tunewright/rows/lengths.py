"""The lengths of a file's examples: the one place where a plan gets them.

`python -m tunewright.rows.lengths BASE FILE READING`, with a chat template on its standard input, prints them as JSON,
or `{"error": ...}`: it imports transformers, which the processes that answer requests do not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tunewright.config import child_environment
from tunewright.plan.data_shape import DataShape, data_shape
from tunewright.rows.reading import Reading

_SECONDS = 300
_UNLIMITED = 2**31


class NotMeasured(Exception):
    """The file could not be tokenized; the message says why."""


def measure(base: Path, file: Path, reading: Reading, chat_template: str | None = None) -> DataShape:
    """The shape of a file for the base in a folder, in a process of its own. Raises NotMeasured."""
    command = [
        sys.executable,
        "-m",
        "tunewright.rows.lengths",
        str(base),
        str(file),
        reading.model_dump_json(),
    ]
    environment = child_environment({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    try:
        ended = subprocess.run(
            command,
            input=chat_template or "",
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
        answer = json.loads(ended.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"tokenizing the file took more than {_SECONDS} s") from None
    except (ValueError, IndexError):
        raise NotMeasured(f"the process that tokenizes the file has failed: {ended.stderr[-500:]}") from None
    if "error" in answer:
        raise NotMeasured(answer["error"])
    return data_shape(answer["rows"], answer["examples"])


def main() -> None:
    from transformers import AutoTokenizer

    from tunewright.jobs.failure import TrainingFailed
    from tunewright.rows.dataset import encoded_blocks

    template = sys.stdin.read()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
    if template:
        tokenizer.chat_template = template
    reading = Reading.model_validate_json(sys.argv[3])
    rows = 0
    examples: list[tuple[int, int]] = []
    try:
        for block in encoded_blocks(Path(sys.argv[2]), tokenizer, _UNLIMITED, reading=reading):
            rows += block.rows
            learnt = (int((edges[1::2] - edges[::2]).sum()) for edges in block.edges)
            examples += zip(map(len, block.ids), learnt, strict=True)
    except TrainingFailed as error:
        print(json.dumps({"error": str(error)}))
        return
    print(json.dumps({"rows": rows, "examples": examples}))


if __name__ == "__main__":
    main()
