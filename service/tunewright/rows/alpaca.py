"""Alpaca's format, as conversations or in the text that Stanford's Alpaca was trained with (docs/decisions/0024)."""

from __future__ import annotations

from typing import Any

from tunewright.rows.faults import RowFault, json_type

Row = dict[str, Any]
FIELDS = {
    "instruction", "input", "output", "system", "history", "chosen", "rejected", "label", "kto_tag",
}  # fmt: skip
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def asked(row: Row, *, as_chat: bool) -> Row:
    """`prompt` and the answers that the row has of `completion`, `chosen` and `rejected`: messages, or texts."""
    instruction, given = _text(row, "instruction"), _text(row, "input")
    if not instruction and not given:
        raise RowFault('"instruction" is empty')
    names = {"completion": "output"} if row.get("chosen") is None and row.get("rejected") is None else {}
    names = names or {"chosen": "chosen", "rejected": "rejected"}
    answers = {name: _answer(row, field) for name, field in names.items()}
    system, history = _text(row, "system"), _history(row)
    if not as_chat:
        return {"prompt": _prompt(instruction, given, system, history), **answers}
    turns = [*history, ("\n".join(part for part in (instruction, given) if part), None)]
    prompt = [{"role": "system", "content": system}] if system else []
    for said, answer in turns:
        prompt.append({"role": "user", "content": said})
        if answer is not None:
            prompt.append({"role": "assistant", "content": answer})
    return {
        "prompt": prompt,
        **{name: [{"role": "assistant", "content": text}] for name, text in answers.items()},
    }


def _prompt(instruction: str, given: str, system: str, history: list[tuple[str, str]]) -> str:
    said = [system or (_WITH_INPUT if given else _WITHOUT_INPUT)]
    for before, answer in history:
        said += [f"### Instruction:\n{before}", f"### Response:\n{answer}"]
    said.append(f"### Instruction:\n{instruction}")
    if given:
        said.append(f"### Input:\n{given}")
    return "\n\n".join([*said, "### Response:\n"])


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowFault(f'"{field}" must be a string, not {json_type(value)}')
    return value


def _answer(row: Row, field: str) -> str:
    if row.get(field) is None:
        raise RowFault(f'"{field}" is missing')
    text = _text(row, field)
    if not text:
        raise RowFault(f'"{field}" is empty: there is nothing to learn')
    return text


def _history(row: Row) -> list[tuple[str, str]]:
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowFault(f'"history" must be a list of pairs of texts, not {json_type(history)}')
    for index, turn in enumerate(history):
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            raise RowFault(f"history[{index}] must be a pair of texts: what was said, and the answer")
    return [(said, answer) for said, answer in history]
