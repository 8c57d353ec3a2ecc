"""What chat templates of the wild do that TRL's and vLLM's do not, each as a short template of the same kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from test_templates import runs

import families
from tunewright.rows.chat import ChatEncoder
from tunewright.rows.examples import UnusableRow

_TURN = "<|im_start|>{{ m['role'] }}\n%s<|im_end|>\n"
_CALLS = "{% for c in m['tool_calls'] %}<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}"
_BEGIN = "{%% if add_generation_prompt %%}<|im_start|>assistant\n%s{%% endif %%}"
_TEMPLATE = "{%% for m in messages %%}%s{%% endfor %%}" + _BEGIN
_EACH_PART = "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"
_PARTS = "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + _EACH_PART + "{% endif %}"


def encoder(turn: str, folder: Path, prompt: str = "") -> tuple[Any, ChatEncoder]:
    """Of the embedded base, with the template whose turn and end of a prompt these are."""
    tokenizer = families.byte_level()
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")})
    )
    tokenizer.name_or_path = str(folder)
    tokenizer.chat_template = _TEMPLATE % (turn, prompt)
    return tokenizer, ChatEncoder(tokenizer)


def learnt(tokenizer: Any, made: ChatEncoder, row: dict[str, Any]) -> list[tuple[str, str]]:
    """(what stands before it, the answer) of each answer."""
    found = [run for example in made.examples(row) for run in runs(example)]
    return [(tokenizer.decode(before), tokenizer.decode(ids)) for before, ids in found]


def called(content: Any) -> dict[str, Any]:
    call = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [families.user("alpha"), families.said(content, tool_calls=[call])]
    return {"messages": messages, "tools": families.TOOLS}


@pytest.mark.parametrize("content", ["", "theta\niota", [{"type": "text", "text": "it's theta"}]])
def test_a_list_of_parts_is_never_learnt_as_it_is_written_in_python(content: Any, tmp_path: Path) -> None:
    """Kimi K2 writes `{{ message['content'] }}` beside calls, and vLLM gives it the parts that it takes elsewhere."""
    turn = "{% if m['tool_calls'] %}" + _TURN % ("{{ m['content'] }}" + _CALLS)
    turn += "{% else %}" + _TURN % _PARTS + "{% endif %}"
    tokenizer, made = encoder(turn, tmp_path)
    [(_, answer)] = learnt(tokenizer, made, called(content))
    text = content if isinstance(content, str) else content[0]["text"]
    assert answer.startswith(f"{text}<tool_call>"), answer


def test_two_parts_are_joined_as_the_engine_joins_texts(tmp_path: Path) -> None:
    turn = "{% if m['role'] == 'assistant' %}" + _TURN % "{{ m['content'] }}"
    turn += "{% else %}" + _TURN % _PARTS + "{% endif %}"
    tokenizer, made = encoder(turn, tmp_path)
    parts = [{"type": "text", "text": "beta"}, {"type": "text", "text": "gamma"}]
    [(_, answer)] = learnt(tokenizer, made, {"messages": [families.user("alpha"), families.said(parts)]})
    assert answer == "beta\ngamma<|im_end|>"


CLOSED = ("<think>\n\n</think>\n\n", "<|channel>thought\n<channel|>", "<|START_THINKING|><|END_THINKING|>")


@pytest.mark.parametrize("closed", CLOSED)
def test_an_answer_is_learnt_behind_the_closed_reasoning_of_its_prompt(closed: str, tmp_path: Path) -> None:
    """Gemma 4 and others close the reasoning in the prompt of a request, and leave it out of what was said."""
    tokenizer, made = encoder(_TURN % "{{ m['content'] }}", tmp_path, closed)
    messages = [families.user("alpha"), families.said("beta"), families.user("gamma"), families.said("delta")]
    found = learnt(tokenizer, made, {"messages": messages})
    assert [answer for _, answer in found] == ["beta<|im_end|>", "delta<|im_end|>"]
    for (before, _), said in zip(found, (messages[:1], messages[:3]), strict=True):
        assert before == tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("closed", "begin"), zip(CLOSED, ("<think>", "<|channel>", "<|START_THINKING|>"), strict=True)
)
def test_reasoning_is_not_learnt_behind_a_prompt_that_has_closed_it(
    closed: str, begin: str, tmp_path: Path
) -> None:
    turn = _TURN % ("{% if m['reasoning'] %}" + begin + "{{ m['reasoning'] }}{% endif %}{{ m['content'] }}")
    _, made = encoder(turn, tmp_path, closed)
    row = {"messages": [families.user("alpha"), families.said("beta", reasoning="kappa")]}
    with pytest.raises(
        UnusableRow, match=r"messages\[1\] is not rendered as the engine would have to answer"
    ):
        made.examples(row)


@pytest.mark.parametrize("calls_first", [False, True])
def test_an_answer_in_which_the_engine_would_stop_is_refused(calls_first: bool, tmp_path: Path) -> None:
    """Nemotron Nano 2 makes two turns of a text and a call, DeepSeek R1 of a call and a text."""
    text, calls = _TURN % "{{ m['content'] }}", "{% if m['tool_calls'] %}" + _TURN % _CALLS + "{% endif %}"
    tokenizer, made = encoder(calls + text if calls_first else text + calls, tmp_path)
    with pytest.raises(UnusableRow, match=r"messages\[1\] has <\|im_end\|> in its middle"):
        made.examples(called("theta"))
    alone = {"messages": [families.user("alpha"), families.said("beta")]}
    assert [answer for _, answer in learnt(tokenizer, made, alone)] == ["beta<|im_end|>"]
