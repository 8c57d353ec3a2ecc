"""Labels cover exactly what the assistant writes, for any family's chat template (test_templates.py has real ones).

Three references: transformers' own mask where a template has generation markers, the very same template without
them, and, for templates of other families, the text that each assistant turn is known to add.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

from tunewright.config import embedded_base_path  # noqa: E402
from tunewright.jobs.failure import TrainingFailed  # noqa: E402
from tunewright.rows.cache import TokenCache  # noqa: E402
from tunewright.rows.chat import ChatEncoder  # noqa: E402
from tunewright.rows.control_tokens import neutralized_text  # noqa: E402
from tunewright.rows.examples import IGNORED, Example, UnusableRow, encode_text  # noqa: E402
from tunewright.rows.reading import Reading  # noqa: E402
from tunewright.rows.templates import check_template  # noqa: E402
from tunewright.rows.tokenized import TokenizedFile, tokenize_file  # noqa: E402

SPECIAL = [
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<bos>", "<start_of_turn>",
    "<end_of_turn>", "<s>", "</s>", "[INST]", "[/INST]",
]  # fmt: skip

LLAMA3 = """{{- '<|begin_of_text|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = message.content.split('</think>')[0].split('<think>')[-1].strip('\\n')
            if '</think>' in message.content else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}
        {{- answer + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

GEMMA = """{{- '<bos>' }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

MISTRAL = """{{- '<s>' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}{{- ' ' + message.content + '</s>' }}{%- endif %}
{%- endfor %}"""

NO_END_TOKEN = """{%- for message in messages %}
    {{- message.role + ': ' + message.content + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(embedded_base_path(), local_files_only=True)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded tokenizer with the special tokens of other families, and a base that stops at the ends of turns."""
    folder = tmp_path_factory.mktemp("families")
    other = transformers.AutoTokenizer.from_pretrained(embedded_base_path(), local_files_only=True)
    other.add_special_tokens({"additional_special_tokens": SPECIAL})
    other.save_pretrained(folder)
    stops = other.convert_tokens_to_ids(["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def say(*turns: str, weights: dict[int, int] | None = None) -> dict[str, Any]:
    """user, assistant, user, assistant, ...; `weights` by index of the message."""
    messages: list[dict[str, Any]] = [
        {"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(turns)
    ]
    for index, weight in (weights or {}).items():
        messages[index]["weight"] = weight
    return {"messages": messages}


def encode_chat(tokenizer: Any, row: dict[str, Any]) -> Example:
    """Of a row that is one example."""
    (example,) = ChatEncoder(tokenizer).examples(row)
    return example


def with_template(tokenizer: Any, template: str, row: dict[str, Any]) -> Any:
    (example,) = all_with_template(tokenizer, template, row)
    return example


def all_with_template(tokenizer: Any, template: str, row: dict[str, Any]) -> list[Example]:
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        return ChatEncoder(tokenizer).examples(row)
    finally:
        tokenizer.chat_template = before


def unmarked(tokenizer: Any) -> str:
    """The embedded template without its generation markers."""
    text = re.sub(r"\{%-\s*(end)?generation\s*-%\}", "{#- -#}", tokenizer.chat_template)
    assert "generation -" not in text
    return str(text)


def learnt_runs(tokenizer: Any, example: Any) -> list[str]:
    """The text of each run of labelled tokens."""
    runs: list[list[int]] = []
    inside = False
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            if not inside:
                runs.append([])
            runs[-1].append(token)
        inside = label != IGNORED
    return [tokenizer.decode(run) for run in runs]


def rendered(tokenizer: Any, template: str, row: dict[str, Any]) -> list[int]:
    messages = [{k: v for k, v in m.items() if k != "weight"} for m in row["messages"]]
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# the embedded base's template

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one turn": say("hi", "hello there"),
    "many turns": say("hi", "hello", "and?", "so on", "", "end"),
    "a system message": {"messages": [{"role": "system", "content": "Be kind."}, *say("a", "b")["messages"]]},
    "ends with the user": say("a", "b", "c"),
    "content with spaces": say("  a ", "  b\n\n", "c", "\td "),
    "unicode": say("héé 😀", "ünï 漢字 😀"),
    "tools": {
        "messages": [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "w", "arguments": '{"city": "Ulm"}'},
                    },
                    {
                        "id": "2",
                        "type": "function",
                        "function": {"name": "w", "arguments": '{"city": "Bern"}'},
                    },
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "2", "content": "rain"},
            {"role": "assistant", "content": "Sunny and rain."},
        ],
        "tools": [{"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}],
    },
    "content parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
        ]
    },
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_labels_are_transformers_own_mask(tokenizer: Any, name: str) -> None:
    row = CONVERSATIONS[name]
    reference = tokenizer.apply_chat_template(
        row["messages"],
        tools=row.get("tools"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    example = encode_chat(tokenizer, row)
    if name != "tools":  # there the reference prints the arguments' string as it is
        length = len(example.input_ids)  # it ends with the last answer
        assert example.input_ids == reference["input_ids"][:length]
        mask = [int(label != IGNORED) for label in example.labels]
        assert mask + [0] * (len(reference["input_ids"]) - length) == reference["assistant_masks"]
    assert all(run.endswith("<|im_end|>") for run in learnt_runs(tokenizer, example))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_labels_do_not_depend_on_the_markers(tokenizer: Any, name: str) -> None:
    row = CONVERSATIONS[name]
    assert with_template(tokenizer, unmarked(tokenizer), row) == encode_chat(tokenizer, row)


def test_tool_calls_are_learnt_and_tool_answers_are_not(tokenizer: Any) -> None:
    runs = learnt_runs(tokenizer, encode_chat(tokenizer, CONVERSATIONS["tools"]))
    assert len(runs) == 2
    assert runs[0].count("<tool_call>") == 2
    assert '"arguments": {"city": "Ulm"}' in runs[0]
    assert runs[1] == "Sunny and rain.<|im_end|>"


def test_the_prompt_is_the_same_whether_functions_are_strict(tokenizer: Any) -> None:
    """Requests that force a call are sent to the engine with strict functions; its templates get them without."""
    row = CONVERSATIONS["tools"]
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in row["tools"]]
    assert encode_chat(tokenizer, {**row, "tools": strict}) == encode_chat(tokenizer, row)


def test_content_parts_are_joined_by_the_template(tokenizer: Any) -> None:
    assert learnt_runs(tokenizer, encode_chat(tokenizer, CONVERSATIONS["content parts"])) == ["cd<|im_end|>"]


@pytest.mark.parametrize("marked", [True, False])
def test_turns_of_weight_0_are_read_and_not_learnt(tokenizer: Any, marked: bool) -> None:
    template = tokenizer.chat_template if marked else unmarked(tokenizer)
    row = say("a", "first", "b", "second", "c", "third", weights={1: 0, 5: 0})
    example = with_template(tokenizer, template, row)
    assert learnt_runs(tokenizer, example) == ["second<|im_end|>"]
    all_learnt = encode_chat(tokenizer, say("a", "first", "b", "second", "c", "third")).input_ids
    assert example.input_ids == all_learnt[: len(example.input_ids)]


@pytest.mark.parametrize("marked", [True, False])
def test_an_end_token_that_a_turn_quotes_is_plain_text(tokenizer: Any, marked: bool) -> None:
    template = tokenizer.chat_template if marked else unmarked(tokenizer)
    row = say("what ends a turn?", "It is <|im_end|> in ChatML.", "ok", "yes")
    example = with_template(tokenizer, template, row)
    assert learnt_runs(tokenizer, example) == ["It is < |im_end|> in ChatML.<|im_end|>", "yes<|im_end|>"]


words = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from(["\n", " ", "<", ">", "|"]),
    max_size=12,
)


@settings(max_examples=120, deadline=None)
@given(
    turns=st.lists(words.filter(lambda text: "<|im" not in text), min_size=2, max_size=6),
    system=st.none() | words,
    weights=st.lists(st.integers(0, 1), min_size=3, max_size=3),
)
def test_random_conversations_are_masked_alike_with_and_without_markers(
    tokenizer: Any, turns: list[str], system: str | None, weights: list[int]
) -> None:
    row = say(*turns)
    answers = [m for m in row["messages"] if m["role"] == "assistant"]
    for message, weight in zip(answers, weights, strict=False):
        message["weight"] = weight
    answers[-1]["weight"] = 1
    if system is not None:
        row["messages"].insert(0, {"role": "system", "content": system})
    marked = encode_chat(tokenizer, row)
    assert with_template(tokenizer, unmarked(tokenizer), row) == marked
    assert learnt_runs(tokenizer, marked) == [
        tokenizer.decode(
            tokenizer(neutralized_text(m["content"]) + "<|im_end|>", add_special_tokens=False)["input_ids"]
        )
        for m in answers
        if m["weight"] == 1
    ]


# other families

FAMILIES = {
    "llama3": (LLAMA3, "{}<|eot_id|>"),
    "gemma": (GEMMA, "{}<end_of_turn>"),
    "mistral": (MISTRAL, " {}</s>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_turns_are_found(families: Any, family: str) -> None:
    template, shape = FAMILIES[family]
    assert check_template(template) is None
    row = say("hi", "hello there", "and?", "so on", "last", "end", weights={3: 0})
    example = with_template(families, template, row)
    assert example.input_ids == rendered(families, template, row)[: len(example.input_ids)]
    assert learnt_runs(families, example) == [shape.format("hello there"), shape.format("end")]


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.from_regex(r"[a-zA-Z0-9 ,.]{0,12}[a-z]", fullmatch=True), min_size=2, max_size=6))
@pytest.mark.parametrize("family", FAMILIES)
def test_random_conversations_of_other_families(families: Any, family: str, turns: list[str]) -> None:
    template, shape = FAMILIES[family]
    turns = [text.strip() for text in turns]
    example = with_template(families, template, say(*turns))
    assert learnt_runs(families, example) == [shape.format(text) for text in turns[1::2]]


def test_where_earlier_reasoning_is_dropped_each_answer_is_learnt_with_its_own(families: Any) -> None:
    """As in Qwen3: each behind the prompt of a request, in which the earlier answer has lost its reasoning."""
    row = say("a", "<think>\nhm\n</think>\n\nfirst", "b", "<think>\nwell\n</think>\n\nsecond")
    first, second = all_with_template(families, QWEN3, row)
    assert learnt_runs(families, first) == ["<think>\nhm\n</think>\n\nfirst<|im_end|>"]
    assert learnt_runs(families, second) == ["<think>\nwell\n</think>\n\nsecond<|im_end|>"]
    assert "hm" not in families.decode(second.input_ids)
    whole = rendered(families, QWEN3, row)
    assert second.input_ids == whole[: len(second.input_ids)]


def test_an_earlier_turn_may_quote_an_end_token_where_reasoning_is_dropped(families: Any) -> None:
    row = say("a", "<think>\nhm\n</think>\n\nIt is </s> there.", "b", "second")
    first = all_with_template(families, QWEN3, row)[0]
    assert learnt_runs(families, first)[0].endswith("It is < /s> there.<|im_end|>")


def test_behind_a_template_without_end_tokens_the_engines_is_learnt(families: Any) -> None:
    """The history of a request does not have it, so that each answer is an example of its own."""
    found = all_with_template(families, NO_END_TOKEN, say("hi", "hello", "more", "bye"))
    assert [learnt_runs(families, example) for example in found] == [["hello<|im_end|>"], ["bye<|im_end|>"]]


def test_an_answer_to_nothing_is_refused_unless_it_is_context(families: Any) -> None:
    """No request can have an empty list of messages."""
    row = {"messages": [{"role": "assistant", "content": "welcome"}, *say("a", "b")["messages"]]}
    with pytest.raises(UnusableRow, match=r'messages\[0\] answers nothing.*"weight": 0'):
        with_template(families, LLAMA3, row)
    row["messages"][0]["weight"] = 0
    assert learnt_runs(families, with_template(families, LLAMA3, row)) == ["b<|eot_id|>"]


def test_templates_do_not_see_weights(families: Any) -> None:
    template = NO_END_TOKEN.replace(
        "{{- message.role", "{{- raise_exception('weight') if message.weight is defined }}{{- message.role"
    )
    assert template != NO_END_TOKEN
    with_template(families, template, say("a", "b", weights={1: 1}))


def test_a_template_that_hides_the_assistant_is_refused(families: Any) -> None:
    template = "{%- for message in messages if message.role == 'user' %}{{- message.content }}{%- endfor %}"
    with pytest.raises(UnusableRow):
        with_template(families, template, say("a", "b"))


# text rows


def test_loss_is_on_the_completion_and_the_end(tokenizer: Any) -> None:
    example = encode_text(tokenizer, "The sky is", " blue.")
    assert learnt_runs(tokenizer, example) == [" blue." + tokenizer.eos_token]
    assert example.input_ids == [*tokenizer("The sky is blue.")["input_ids"], tokenizer.eos_token_id]


def test_without_a_prompt_everything_is_learnt(tokenizer: Any) -> None:
    example = encode_text(tokenizer, "", "The sky")
    assert example.labels == example.input_ids


def test_a_word_cut_in_two_leaves_the_prompt_as_a_request_has_it(tokenizer: Any) -> None:
    prompt = tokenizer("The sky is blu")["input_ids"]
    assert len(prompt) > len(tokenizer("The sky is blue")["input_ids"]), "the whole text tokenizes otherwise"
    example = encode_text(tokenizer, "The sky is blu", "e and wide.")
    assert example.input_ids[: len(prompt)] == prompt
    assert learnt_runs(tokenizer, example) == ["e and wide." + tokenizer.eos_token]


@settings(max_examples=150, deadline=None)
@given(prompt=words, completion=words.filter(bool))
def test_the_prompt_is_what_a_request_sends_and_the_rest_is_learnt(
    tokenizer: Any, prompt: str, completion: str
) -> None:
    example = encode_text(tokenizer, prompt, completion)
    sent = list(tokenizer(prompt)["input_ids"]) if prompt else []
    assert example.input_ids[: len(sent)] == sent
    assert example.labels == [IGNORED] * len(sent) + example.input_ids[len(sent) :]
    assert tokenizer.decode(example.input_ids) == prompt + completion + tokenizer.eos_token


def test_a_prompt_that_ends_with_a_space_is_learnt_as_it_is_asked(tokenizer: Any) -> None:
    """A template without markers whose generation prompt ends with a space: ` Arr` would be one token."""
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {{ m.content }}{{ eos_token }}\n"
        "{% else %}Q: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Arr, matey"}]
    asked = copied.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    example = encode_chat(copied, {"messages": messages})
    assert example.input_ids[: len(asked)] == asked
    assert learnt_runs(copied, example) == ["Arr, matey" + tokenizer.eos_token]


def test_text_rows_are_tokenized_as_trl_does(tokenizer: Any, tmp_path: Any) -> None:
    """TRL's own preparation of prompt and completion, for rows whose border is a token's border."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    rows = [
        {"prompt": "The sky is", "completion": " blue."},
        {"prompt": "Two and two make", "completion": " four, matey!"},
    ]
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", bf16=False),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    for row, prepared in zip(rows, trainer.train_dataset, strict=True):
        example = encode_text(tokenizer, row["prompt"], row["completion"])
        assert example.input_ids == prepared["input_ids"]
        assert example.labels == prepared["labels"]


# whole files


def tokenized(path: Path, tokenizer: Any, max_length: int, **options: Any) -> TokenizedFile:
    """Without a cache: a new one each time."""
    cache = TokenCache(Path(tempfile.mkdtemp(dir=path.parent)))
    return tokenize_file(path, tokenizer, max_length, cache=cache, key="k", source="s", **options)


def test_rows_are_cut_and_counted_never_silently(tokenizer: Any, tmp_path: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"prompt": "a b c d e f g h i j k l m n o p", "completion": " x"}\n'
        '{"prompt": "a", "completion": " x y z x y z x y z x y z x y z"}\n'
        '{"prompt": "a", "completion": " x"}\n'
    )
    file = tokenized(path, tokenizer, 8)
    assert (len(file.dataset()), file.totals.truncated, file.totals.dropped) == (2, 2, 1)
    assert all(len(example["input_ids"]) <= 8 for example in file.dataset())
    assert ", 2 truncated to 8 tokens, 1 left out" in file.totals.describe()


def test_long_rows_are_refused_by_line_where_that_is_asked_for(tokenizer: Any, tmp_path: Any) -> None:
    path = tmp_path / "data.jsonl"
    long = '{"prompt": "a b c d e f g h i", "completion": " x"}\n'
    path.write_text('{"prompt": "a", "completion": " x"}\n' + long)
    tokens = len(encode_text(tokenizer, "a b c d e f g h i", " x").input_ids)
    with pytest.raises(TrainingFailed) as raised:
        tokenized(path, tokenizer, 8, truncation="refuse", what="validation_file")
    assert raised.value.code == "row_too_long"
    assert str(raised.value) == (
        f"validation_file: line 2 has {tokens} tokens; the maximum is 8. Shorten them, raise tuning.max_length (up to "
        "the base's context), or have them cut with tuning.truncation truncate"
    )
    path.write_text(long * 12)
    with pytest.raises(TrainingFailed, match=f"line 10 has {tokens} tokens and 2 more lines are too long; "):
        tokenized(path, tokenizer, 8, truncation="refuse")
    assert tokenized(path, tokenizer, tokens, truncation="refuse").totals.truncated == 0


def test_a_row_that_the_template_refuses_is_named(tokenizer: Any, tmp_path: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"messages": [{"role": "function", "name": "f", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'
    )
    with pytest.raises(TrainingFailed, match=r"line 1: .*Unknown role: function"):
        tokenized(path, tokenizer, 64)


def test_a_file_without_a_usable_row_fails(tokenizer: Any, tmp_path: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a b c d e f g h i j k l m n o p", "completion": " x"}\n')
    with pytest.raises(TrainingFailed, match="no usable row"):
        tokenized(path, tokenizer, 8)


def test_a_large_file_is_encoded_on_all_cores_in_its_order(
    tokenizer: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(say(f"question {n}", f"answer {n}")) + "\n" for n in range(300)))
    alone = tokenized(path, tokenizer, 64)
    monkeypatch.setattr("tunewright.rows.dataset._LARGE", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    together = tokenized(path, tokenizer, 64)
    assert together.totals == alone.totals
    assert list(together.dataset()) == list(alone.dataset())
    path.write_text(
        path.read_text() + json.dumps({"messages": [{"role": "assistant", "content": "x"}]}) + "\n"
    )
    with pytest.raises(TrainingFailed, match=r"line 301: messages\[0\] answers nothing") as failed:
        tokenized(path, tokenizer, 64)
    assert failed.value.code == "invalid_training_file"


# rows of other formats


def test_rows_of_other_formats_are_trained_token_for_token_as_openais(tmp_path: Path) -> None:
    """They become chat rows, which the engine's own code renders."""
    said = [("Add 1 and 2.", "3"), ("And 3?", "6")]
    rows = {
        "openai": {
            "messages": [
                {"role": role, "content": text}
                for pair in said
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
        },
        "sharegpt": {
            "conversations": [
                {"from": name, "value": text}
                for pair in said
                for name, text in zip(("human", "gpt"), pair, strict=True)
            ]
        },
        "alpaca": {"instruction": said[1][0], "output": said[1][1], "history": [list(said[0])]},
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_base_path())
    found = {}
    for name, row in rows.items():
        path = tmp_path / name
        path.write_text(json.dumps([row]))
        found[name] = list(tokenized(path, tokenizer, 512).dataset())
    assert found["openai"] == found["sharegpt"] == found["alpaca"]
    assert 0 < found["openai"][0]["labels"].count(IGNORED) < len(found["openai"][0]["labels"])


def test_a_held_out_row_is_not_among_those_that_are_trained_on(tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_base_path())
    rows = [{"prompt": f"{number}: ", "completion": "yes"} for number in range(100)]
    path = tmp_path / "rows"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    training, held_out, whole = (
        tokenized(path, tokenizer, 64, reading=Reading(part=part, held_out_share=0.2))
        for part in ("training", "held_out", "all")
    )
    assert training.totals.rows + held_out.totals.rows == whole.totals.rows == 200
    assert held_out.totals.rows > 0
    assert not {tuple(e["input_ids"]) for e in training.dataset()} & {
        tuple(e["input_ids"]) for e in held_out.dataset()
    }
