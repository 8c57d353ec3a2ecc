"""Bases with several chat templates: each row is rendered with the one that a request with its tools gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import transformers
from test_templates import runs

import families
from tunewright.config import Base, embedded_base_path
from tunewright.registry.bases import inspect_base
from tunewright.rows.chat import ChatEncoder
from tunewright.rows.control_tokens import control_tokens, of_template
from tunewright.rows.examples import UnusableRow

_MESSAGES = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{{ CALLS }}<|im_end|>\n{% endfor %}"
_ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_CALLS = "{% for c in m['tool_calls'] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}"
DEFAULT = _MESSAGES.replace("{{ CALLS }}", "") + _ANSWER
TOOL_USE = "Tools: {{ tools | tojson }}\n" + _MESSAGES.replace("{{ CALLS }}", _CALLS) + _ANSWER
PLAIN = {"messages": [families.user("alpha"), families.said("beta")]}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Ulm"}'},
}
WITH_TOOLS = {
    "messages": [families.user("alpha"), families.said("", tool_calls=[CALL])],
    "tools": families.TOOLS,
}


def base(folder: Path, templates: dict[str, str]) -> Any:
    """Its tokenizer as transformers loads it from a folder in which these templates are."""
    families.byte_level().save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config_id(folder)}))
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def config_id(folder: Path) -> int:
    content = json.loads((folder / "tokenizer.json").read_text())
    return int(next(token["id"] for token in content["added_tokens"] if token["content"] == "<|im_end|>"))


def learnt(tokenizer: Any, row: dict[str, Any]) -> tuple[str, str]:
    [example] = ChatEncoder(tokenizer).examples(row)
    [(before, ids)] = runs(example)
    return tokenizer.decode(before), tokenizer.decode(ids)


def test_rows_with_tools_are_learnt_with_the_template_for_tools(tmp_path: Path) -> None:
    tokenizer = base(tmp_path, {"default": DEFAULT, "tool_use": TOOL_USE})
    assert learnt(tokenizer, PLAIN) == (
        "<|im_start|>user\nalpha<|im_end|>\n<|im_start|>assistant\n",
        "beta<|im_end|>",
    )
    before, answer = learnt(tokenizer, WITH_TOOLS)
    assert before.startswith("Tools: [{")
    assert json.loads(answer.removeprefix("<call>").removesuffix("</call><|im_end|>"))["name"] == "weather"
    expected = tokenizer.apply_chat_template(
        WITH_TOOLS["messages"][:1], tools=families.TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert before == expected


def test_without_one_for_tools_the_calls_that_the_default_leaves_out_are_refused(tmp_path: Path) -> None:
    tokenizer = base(tmp_path, {"default": DEFAULT, "rag": TOOL_USE})
    with pytest.raises(UnusableRow, match="is not in the chat template's rendering"):
        learnt(tokenizer, WITH_TOOLS)


def test_without_a_default_rows_without_tools_are_refused(tmp_path: Path) -> None:
    tokenizer = base(tmp_path, {"tool_use": TOOL_USE, "rag": DEFAULT})
    assert learnt(tokenizer, WITH_TOOLS)[1].startswith("<call>")
    with pytest.raises(UnusableRow, match="chat template"):
        learnt(tokenizer, PLAIN)


@pytest.mark.parametrize("row", [PLAIN, WITH_TOOLS])
def test_the_control_tokens_of_all_templates_are_plain_text_in_training_and_serving(
    row: dict[str, Any], tmp_path: Path
) -> None:
    """`<|tool|>` is no token of the tokenizer, and only one of the templates has it."""
    tokenizer = base(tmp_path, {"default": DEFAULT, "tool_use": TOOL_USE + "{# <|tool|> #}"})
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((embedded_base_path() / name).read_bytes())
    info = inspect_base(Base(name="base", source=str(tmp_path)))
    served = control_tokens((*info.control_tokens, *of_template(info.chat_template or "")), None)
    said = [families.user("a <|tool|> b <|im_start|>")]
    sent, _ = ChatEncoder(tokenizer).as_sent(said, row.get("tools"))
    assert sent == served.neutralized(said) == [families.user("a < |tool|> b < |im_start|>")]
