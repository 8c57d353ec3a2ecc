"""Chat templates of many families, tokenizers for them, and conversations of every kind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tokenizers
import transformers
import trl
import vllm

from tunewright.config import embedded_base_path

TEMPLATES = {
    path.stem: path
    for folder in (
        Path(trl.__file__).parent / "chat_templates",
        Path(vllm.__file__).parent / "transformers_utils" / "chat_templates",
        embedded_base_path(),
    )
    for path in sorted(folder.glob("*.jinja"))
}
"""TRL's, those that vLLM's package ships, and our own (`chat_template`)."""
STOPS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "diffusion_gemma": ["<turn|>", "<|tool_response>"],
    "gemma": ["<end_of_turn>"],
    "gemma4": ["<turn|>", "<|tool_response>"],
    "glm4moe": ["<|endoftext|>", "<|user|>", "<|observation|>"],
    "gptoss": ["<|return|>", "<|endoftext|>", "<|call|>"],
    "idefics3": ["<end_of_utterance>"],
    "llama3": ["<|eot_id|>", "<|eom_id|>"],
    "llava_next": ["</s>"],
    "muse": ["<|eot|>"],
    "phi3": ["<|endoftext|>", "<|end|>"],
    "smolvlm": ["<end_of_utterance>"],
    "template_deepseek": ["<｜end▁of▁sentence｜>"],
    "template_kimi_audio": ["<|im_msg_end|>"],
}
"""`eos_token_id` of a family's `generation_config.json`, the tokenizer's own first; `<|im_end|>` for all others."""
_SPECIAL = re.compile(
    r"<\|[^\s|<>]+\|?>|<[^\s|<>]+\|>|<｜[^｜]+｜>|\[/?[A-Z_]+\]|</?[a-z_]+_(?:turn|call|response|utterance)>|</?s>|</?think>"
)


def stops_of(name: str) -> list[str]:
    found = [family for family in STOPS if name.startswith(family)]
    return STOPS[max(found, key=len)] if found else ["<|im_end|>"]


def with_family(tokenizer: Any, name: str, folder: Path) -> Any:
    """`tokenizer` (with every family's special tokens) as that of a base of this family, whose folder is made."""
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    stops = stops_of(name)
    ids = tokenizer.convert_tokens_to_ids(stops)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    tokenizer.chat_template = TEMPLATES[name].read_text()
    tokenizer.eos_token = stops[0]
    tokenizer.name_or_path = str(folder)
    return tokenizer


def _specials() -> list[str]:
    found = {token for path in TEMPLATES.values() for token in _SPECIAL.findall(path.read_text())}
    return sorted(found | {token for name in TEMPLATES for token in stops_of(name)} | {"<s>", "<|im_end|>"})


def byte_level() -> Any:
    """The embedded base's, with the special tokens of all families."""
    made = transformers.AutoTokenizer.from_pretrained(embedded_base_path(), local_files_only=True)
    made.add_special_tokens({"additional_special_tokens": _specials()})
    made.bos_token = "<s>"
    return made


def sentencepiece_like() -> Any:
    """Spaces as `▁`, one before a text, unknown characters as bytes: as Llama 2's and Mistral's."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    rows = (embedded_base_path().parent / "demo" / "train.jsonl").read_text().splitlines()
    texts = [message["content"] for row in rows for message in json.loads(row)["messages"]]
    inner.train_from_iterator([*texts, "assistant user system\n"] * 3, trainer)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")
    made.add_special_tokens({"additional_special_tokens": _specials()})
    return made


def large_vocabulary(tokenizer: Any, folder: Path) -> Any:
    """The same with 151,651 tokens, as Qwen2 has; the others are never used."""
    tokenizer.save_pretrained(folder / "large")
    path = folder / "large" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first = 1 + max(*vocabulary.values(), *(token["id"] for token in content["added_tokens"]))
    vocabulary |= {f"unused-{number}": number for number in range(first, 151_651)}
    path.write_text(json.dumps(content))
    return type(tokenizer).from_pretrained(folder / "large")


def _call(city: str = "Ulm", id: str = "call00001") -> dict[str, Any]:
    arguments = json.dumps({"city": city})
    return {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
_SUNNY = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "sunny"}
_RAIN = {**_SUNNY, "tool_call_id": "call00002", "content": "rainy"}
_MORE = [user("gamma"), said("delta"), user("epsilon"), said("zeta")]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("alpha"), said("beta")],
    "turns": [user("alpha"), said("beta"), *_MORE],
    "system": [{"role": "system", "content": "omega"}, user("alpha"), said("beta")],
    "developer": [{"role": "developer", "content": "omega"}, user("alpha"), said("beta")],
    "weight 0": [user("alpha"), said("beta", weight=0), *_MORE],
    "ends with the user": [user("alpha"), said("beta"), user("gamma")],
    "reasoning": [user("alpha"), said("beta", reasoning_content="kappa")],
    "reasoning, vLLM's name": [user("alpha"), said("beta", reasoning="kappa")],
    "reasoning in the history": [
        user("alpha"),
        said("beta", reasoning="kappa"),
        user("gamma"),
        said("delta", reasoning="lambda"),
    ],
    "reasoning quotes the answer": [user("alpha"), said("beta", reasoning="It is beta, I think.")],
    "thinking": [user("alpha"), said("beta", thinking="It is beta, I think.")],
    "think in the content": [user("alpha"), said("<think>\nkappa\n</think>\n\nbeta")],
    "call": [user("alpha"), said(None, tool_calls=[_call()])],
    "text and call": [user("alpha"), said("theta", tool_calls=[_call()])],
    "call and answer": [user("alpha"), said(None, tool_calls=[_call()]), _SUNNY, said("beta")],
    "text, call and answer": [user("alpha"), said("theta", tool_calls=[_call()]), _SUNNY, said("beta")],
    "call, answer, another user turn": [
        user("alpha"),
        said(None, tool_calls=[_call()]),
        _SUNNY,
        said("beta"),
        user("gamma"),
        said("delta"),
    ],
    "two calls": [
        user("alpha"),
        said(None, tool_calls=[_call(), _call("Bern", "call00002")]),
        _SUNNY,
        _RAIN,
        said("beta"),
    ],
    "quoted": [user("beta"), said("beta"), user("beta"), said("beta")],
    "unicode": [user("héé 😀 漢字"), said("ünï 漢字 😀")],
    "empty answer": [user("alpha"), said(""), user("gamma"), said("delta")],
    "white space": [user("  alpha "), said("  beta\n\n")],
    "text parts": [
        user([{"type": "text", "text": "alpha"}, {"type": "text", "text": "gamma"}]),
        said([{"type": "text", "text": "beta"}]),
    ],
    "nulls": [user("alpha"), said("beta", tool_calls=None, function_call=None, refusal=None, audio=None)],
    "function call": [user("alpha"), said("", function_call={"name": "weather", "arguments": "{}"})],
    "the assistant begins": [said("beta"), user("alpha"), said("delta")],
}


def row_of(conversation: str) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": CONVERSATIONS[conversation]}
    if "call" in conversation and conversation != "function call":
        row["tools"] = TOOLS
    return row
