"""Time to make examples of chat rows, for each answer, with a vocabulary of 151,651 tokens.

    python -m benchmarks.encoding [--rows 2000]

Prints one line for each family: milliseconds of one core for each answer in conversations of 1 and of 10 answers, and
of the wall clock with all cores; and the rows of ten answers that all cores tokenize and write in a second.
`benchmarks.first_step` has the time and the memory of a whole trainer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.families import byte_level, large_vocabulary, said, user, with_family

from tunewright.rows.cache import TokenCache
from tunewright.rows.chat import ChatEncoder
from tunewright.rows.tokenized import tokenize_file

FAMILIES = ("llama3_1", "qwen2_5", "qwen3", "qwen3_6", "gemma3", "glm4moe")


def row(answers: int) -> dict[str, Any]:
    question = "What is the weather like in the city number {} today, and what should I wear there?"
    answer = (
        "In the city number {} it is sunny and warm today, so that a shirt and a hat are all that you need."
    )
    turns = [turn for n in range(answers) for turn in (user(question.format(n)), said(answer.format(n)))]
    return {"messages": turns}


def one_core(encoder: ChatEncoder, answers: int, rows: int) -> float:
    """Milliseconds of CPU time for an answer."""
    encoder.examples(row(answers))
    began = time.process_time()
    for _ in range(rows):
        encoder.examples(row(answers))
    return (time.process_time() - began) / (rows * answers) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000, help="rows of ten answers in the file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = large_vocabulary(byte_level(), folder)
        path = folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row(10)) + "\n" for _ in range(options.rows)))
        print(
            f"{'template':<12}{'1 answer':>10}{'10 answers':>12}{'all cores':>11}   ms for each answer{'rows/s':>10}"
        )
        for family in FAMILIES:
            base = with_family(tokenizer, family, folder)
            encoder = ChatEncoder(base)
            single, many = one_core(encoder, 1, 200), one_core(encoder, 10, 20)
            began = time.monotonic()
            tokenize_file(path, base, 8192, cache=TokenCache(folder / "cache"), key=family, source="rows")
            took = time.monotonic() - began
            together, rate = took / (options.rows * 10) * 1000, options.rows / took
            print(f"{family:<12}{single:>10.2f}{many:>12.2f}{together:>11.2f}{rate:>31.0f}", flush=True)


if __name__ == "__main__":
    main()
