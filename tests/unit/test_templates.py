"""What is learnt of every kind of conversation with the chat templates of many families, and what is refused.

The references are independent of the encoder: the words of a conversation, each of which stands in one message only,
the family's stop tokens, and the prompt that plain transformers renders.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import families
from families import CONVERSATIONS, TEMPLATES, row_of, stops_of, with_family
from tunewright.rows.chat import ChatEncoder
from tunewright.rows.examples import IGNORED, Example, UnusableRow
from tunewright.rows.tokens import SegmentTokenizer

WORD = re.compile(r"[^\W\d_]+|😀")
QUOTING = ("quoted", "reasoning quotes the answer", "thinking")
"""Conversations whose words stand in several messages."""
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "chat-templates.md"


@pytest.fixture(scope="module", params=["byte level", "SentencePiece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return families.byte_level() if request.param == "byte level" else families.sentencepiece_like()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


def words(value: Any) -> set[str]:
    """The words of a message that an answer has to have."""
    if isinstance(value, str):
        return set(WORD.findall(value)) - {"think"}
    if isinstance(value, list):
        return {word for item in value for word in words(item)}
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in ("role", "id", "type", "weight", "tool_call_id")}
        return {word for item in kept.values() for word in words(item)}
    return set()


def runs(example: Example) -> list[tuple[list[int], list[int]]]:
    """(what stands before it, learnt tokens) of each run of learnt tokens."""
    found: list[tuple[list[int], list[int]]] = []
    inside = False
    for place, label in enumerate(example.labels):
        assert label in (IGNORED, example.input_ids[place])
        if label != IGNORED:
            if not inside:
                found.append((example.input_ids[:place], []))
            found[-1][1].append(label)
        inside = label != IGNORED
    return found


def examples_or_none(encoder: ChatEncoder, row: dict[str, Any]) -> list[Example] | None:
    """None where the row is refused."""
    try:
        return encoder.examples(row)
    except UnusableRow:
        return None


def learnt_messages(row: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return [
        (index, message)
        for index, message in enumerate(row["messages"])
        if message["role"] == "assistant" and message.get("weight", 1) == 1
    ]


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_answer_is_learnt_whole_and_nothing_else(tokenizer: Any, name: str, folders: Path) -> None:
    base = with_family(tokenizer, name, folders)
    encoder = ChatEncoder(base)
    stops = set(base.convert_tokens_to_ids(stops_of(name)))
    taken = 0
    for conversation in CONVERSATIONS:
        row = row_of(conversation)
        examples = examples_or_none(encoder, row)
        if examples is None:
            continue
        taken += 1
        learnt = [run for example in examples for run in runs(example)]
        expected = learnt_messages(row)
        assert len(learnt) == len(expected), conversation
        for (before, ids), (index, message) in zip(learnt, expected, strict=True):
            where = f"{conversation}, messages[{index}]: {base.decode(ids)!r}"
            assert ids[-1] in stops, where
            assert not stops & set(ids[:-1]), where
            text = base.decode(ids)
            said = set(WORD.findall(text))
            prompt_end = base.decode(before)[-20:]
            missing = words(message) - said - {"think"}
            assert not missing or (conversation == "think in the content" and missing <= set(prompt_end)), (
                where
            )
            if conversation not in QUOTING:
                others = {w for i, m in enumerate(row["messages"]) if i != index for w in words(m)}
                assert not (others - words(message)) & said - {"user", "weather"}, where
            if "call" not in conversation and conversation not in ("developer", "text parts"):
                assert base.decode(before) in requests(base, row["messages"][:index]), where
    assert taken or name in NOTHING_TAKEN


NOTHING_TAKEN = {
    name for name in TEMPLATES if name.startswith(("deepseek", "template_")) and name != "template_chatml"
}
"""Templates that render no answer behind the prompt of a request, or none without media."""


def requests(base: Any, messages: list[dict[str, Any]]) -> list[str]:
    """The prompt as plain transformers renders it, with contents as texts and as parts; vLLM decides which."""
    return [_rendered(base, messages, as_parts=as_parts) for as_parts in (False, True)]


def _rendered(base: Any, messages: list[dict[str, Any]], *, as_parts: bool) -> str:
    plain = []
    for message in messages:
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        named = {"reasoning": reasoning, "reasoning_content": reasoning} if reasoning else {}
        text = message["content"]
        content = [{"type": "text", "text": text}] if as_parts else text
        plain.append({"role": message["role"], "content": content, **named})
    try:
        ids = base.apply_chat_template(plain, add_generation_prompt=True, return_dict=True)["input_ids"]
    except Exception:  # for a template that takes no parts
        return ""
    return str(base.decode(ids))


@pytest.mark.parametrize("name", TEMPLATES)
def test_pieces_have_the_tokens_of_the_whole(tokenizer: Any, name: str) -> None:
    pieces = SegmentTokenizer(tokenizer)
    for text in (TEMPLATES[name].read_text(), "a<s>b <|im_end|>\n c</s></s> <think>", " x ", "", "<s>"):
        assert pieces(text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_large_vocabulary_takes_under_a_millisecond_a_turn(folders: Path) -> None:
    """151,651 tokens, of which none may be looked through for each turn (306 ms a row before)."""
    base = with_family(families.large_vocabulary(families.byte_level(), folders), "qwen2_5", folders)
    assert len(base) > 151_000
    encoder = ChatEncoder(base)
    turns = [m for n in range(10) for m in (families.user(f"question {n}"), families.said(f"answer {n}"))]
    encoder.examples({"messages": turns})
    times = []
    for _ in range(20):
        began = time.process_time()
        encoder.examples({"messages": turns})
        times.append((time.process_time() - began) / 10)
    assert min(times) < 0.001, f"{min(times) * 1000:.2f} ms"


# the docs


def outcome(encoder: ChatEncoder, conversation: str) -> str:
    """ "" where each answer is learnt, else why the row is refused."""
    try:
        encoder.examples(row_of(conversation))
    except UnusableRow as error:
        text = str(error)
    else:
        return ""
    if found := re.search(r"([\w.\[\]]+) (?:\(\w+\) )?is not in the chat template's rendering", text):
        field = re.sub(r"^messages\[\d+\]\.|\[\d+\]", "", found[1]).removesuffix(".function.name")
        return f"`{field}` is not rendered"
    if "is not rendered as the engine would have to answer" in text:
        return "the answer is not rendered behind a request's prompt"
    return text.partition(":")[2].strip().rstrip("!.") or text


def table(base: Any, folders: Path) -> str:
    lines = ["| template | several answers are learnt in | refused |", "|---|---|---|"]
    for name in TEMPLATES:
        if name.endswith("_training"):
            continue
        encoder = ChatEncoder(with_family(base, name, folders))
        refused: dict[str, list[str]] = {}
        # in one order: how a refusal is worded depends on what was rendered before
        for conversation in CONVERSATIONS:
            if conversation in ("function call", "the assistant begins", "thinking"):
                continue
            if why := outcome(encoder, conversation):
                refused.setdefault(why, []).append(conversation)
        made = examples_or_none(encoder, row_of("turns"))
        together = "" if made is None else "one example" if len(made) == 1 else "an example each"
        shown = "; ".join(
            why if why.startswith("`") else f"{', '.join(sorted(which))}: {why}"
            for why, which in sorted(refused.items())
        )
        lines.append(f"| `{name}` | {together} | {shown.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_what_the_encoder_does(folders: Path) -> None:
    written = DOCS.read_text()
    assert table(families.byte_level(), folders) in written
