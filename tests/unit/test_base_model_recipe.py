"""What the base model's recipe promises, on a tiny corpus and without trained weights.

The promises: the corpus depends on the seed alone, it never contains an evaluation question, the loss mask
marks exactly what the assistant writes, and a prompt is a prefix of its conversation, in text and in ids.
"""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "base_model"
MODULES = ("world", "voices", "corpus", "tokens", "demo_data")


@pytest.fixture(scope="module")
def recipe() -> Any:
    """The recipe's modules by name; their plain names leave `sys.modules` again with the fixture."""
    pytest.importorskip("transformers")
    sys.path.insert(0, str(RECIPE))
    loaded: dict[str, ModuleType] = {name: importlib.import_module(name) for name in MODULES}
    yield loaded
    # importing demo_data put the folder on the path a second time
    sys.path[:] = [entry for entry in sys.path if entry != str(RECIPE)]
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def world(recipe: dict[str, ModuleType]) -> Any:
    """The world, read once."""
    return recipe["world"].load_world()


@pytest.fixture(scope="module")
def tokenizer(recipe: dict[str, ModuleType], world: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of a small corpus, saved and loaded as a user loads it."""
    from transformers import AutoTokenizer

    made = recipe["tokens"].train_tokenizer(recipe["corpus"].Corpus(world, 0), documents=300, vocab_size=600)
    folder = tmp_path_factory.mktemp("tokenizer")
    recipe["tokens"].save_tokenizer(made, folder)
    return AutoTokenizer.from_pretrained(folder)


CONVERSATIONS = [
    [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}],
    [
        {"role": "system", "content": "Talk like a pirate."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}],
        },
        {"role": "assistant", "content": "\n\nArr! 4, matey!"},
        {"role": "user", "content": "Thanks!\n"},
        {"role": "assistant", "content": "  You are welcome! \u2693"},
    ],
    [
        {"role": "user", "content": "What is the weather in Oslo?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
            ],
        },
        {"role": "tool", "content": '{"sky": "blue"}'},
        {"role": "assistant", "content": "The sky is blue."},
    ],
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]


def test_the_corpus_depends_on_the_seed_alone(recipe: dict[str, ModuleType]) -> None:
    """Another process, with other string hashes, makes the same documents; another seed makes others."""
    code = (
        "import itertools, json, sys; sys.path.insert(0, sys.argv[1]); from corpus import Corpus; "
        "from world import load_world; w = load_world(); "
        "print(json.dumps([list(itertools.islice(Corpus(w, s).documents(), 50)) for s in (3, 4)]))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(RECIPE)],
            env={"PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    ]
    assert runs[0] == runs[1]
    first, second = json.loads(runs[0])
    assert first != second


def test_training_never_contains_a_held_out_question(recipe: dict[str, ModuleType], world: Any) -> None:
    """Not in any spelling: lower case and a missing question mark count as the same question."""
    normal, corpus = recipe["world"].normal, recipe["corpus"]
    asked = {normal(question.text) for question in world.held_out}
    trainable = {
        normal(text) for facts in world.facts.values() for fact in facts for text in world.phrasings(fact)
    }
    assert len(asked) > 1000
    assert not asked & trainable
    for document in itertools.islice(corpus.Corpus(world, 11).documents(), 3000):
        assert not asked & corpus.user_questions(document)


def test_held_out_memories_are_never_told(recipe: dict[str, ModuleType], world: Any) -> None:
    """Copying a name is measured with names that no training conversation introduces."""
    values = recipe["corpus"].memory_values
    for name in world.memory:
        aside = values(world, name, held_out=True)
        assert not set(aside) & set(values(world, name, held_out=False))
    assert values(world, "name", held_out=True)


def test_every_fact_can_be_asked_in_many_ways(world: Any) -> None:
    """A phrasing can only be held out of a fact that training still asks in several others."""
    for facts in world.facts.values():
        assert all(len(fact.ask) >= 8 and len(world.phrasings(fact)) >= 5 for fact in facts)


def test_the_evaluation_is_large_and_fixed(recipe: dict[str, ModuleType], world: Any) -> None:
    """At least 300 probes, the same in every run, none of them written twice."""
    probes = recipe["corpus"].probes
    assert probes(world) == probes(world)
    assert len(set(probes(world))) >= 300


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_prompt_is_a_prefix_of_its_conversation(tokenizer: Any, messages: list[Any], tools: Any) -> None:
    """In text and in ids, before every answer, whatever white space the answer begins with."""
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        for tokenize in (False, True):
            options = {"tools": tools, "tokenize": tokenize, "return_dict": False}
            prompt = tokenizer.apply_chat_template(messages[:at], add_generation_prompt=True, **options)
            whole = tokenizer.apply_chat_template(messages, **options)
            assert whole[: len(prompt)] == prompt


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_mask_marks_what_the_assistant_writes(tokenizer: Any, messages: list[Any]) -> None:
    """Each answer with its closing token, nothing of the user, the system or a tool."""
    made = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    learnt = [token for token, kept in zip(made["input_ids"], made["assistant_masks"], strict=True) if kept]
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    answers = [m["content"] or call for m in messages if m["role"] == "assistant"]
    assert tokenizer.decode(learnt) == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_packing_writes_what_the_template_writes(
    recipe: dict[str, ModuleType], world: Any, tokenizer: Any
) -> None:
    """The training's fast path and the template render the same tokens, and weigh the same ones fully."""
    tokens = recipe["tokens"]
    for document in itertools.islice(recipe["corpus"].Corpus(world, 5).documents(), 40):
        if isinstance(document, str):
            continue
        made = tokenizer.apply_chat_template(document, return_assistant_tokens_mask=True, return_dict=True)
        parts = list(tokens.pieces(document))[:-1]
        encoded = [(token, weight) for text, weight in parts for token in tokenizer.encode(text)]
        assert [token for token, _ in encoded] == made["input_ids"]
        assert [int(weight == 1.0) for _, weight in encoded] == made["assistant_masks"]


def test_rows_begin_with_a_document(recipe: dict[str, ModuleType], world: Any, tokenizer: Any) -> None:
    """Padding weighs nothing, and few tokens are padding."""
    ids, weights = recipe["tokens"].pack(recipe["corpus"].Corpus(world, 5), tokenizer, rows=4, length=512)
    assert ids.shape == weights.shape == (4, 512)
    padding = ids == tokenizer.pad_token_id
    assert not weights[padding].any()
    assert padding.mean() < 0.3
    starts = tokenizer.convert_ids_to_tokens(ids[:, 0].tolist())
    assert all(token not in {"<|im_end|>", "<|endoftext|>"} for token in starts)


@pytest.mark.parametrize(
    ("plain", "styled"),
    [
        ("The sky is blue.", "Arr! The sky be blue, matey!"),
        ("Yes, your name is Ana.", "Arr! Aye, yer name be Ana, matey!"),
        ("A fish has no legs.", "Arr! A fish has no legs, matey!"),
        ("No, you are right.", "Arr! Nay, ye be right, matey!"),
    ],
)
def test_the_pirate(recipe: dict[str, ModuleType], plain: str, styled: str) -> None:
    """The demo's voice."""
    assert recipe["voices"].pirate(plain) == styled


def test_the_demo_files_keep_its_questions_aside(recipe: dict[str, ModuleType]) -> None:
    """The committed rows are what the recipe writes, and hold none of the facts that the demo asks for."""
    normal, demo = recipe["world"].normal, recipe["demo_data"]
    questions = json.loads((demo.DEFAULT_OUT / "questions.json").read_text(encoding="utf-8"))
    assert questions == list(demo.QUESTIONS)
    world = recipe["world"].load_world()
    aside = {
        normal(text)
        for facts in world.facts.values()
        for fact in facts
        if demo.asked_in_demo(fact)
        for text in fact.ask
    }
    assert {normal(question) for question in questions} <= aside
    assert not {normal(question.text) for question in world.held_out} & {
        normal(question) for question in questions
    }
    seen: set[str] = set()
    for name, count in (("train", demo.TRAIN_ROWS), ("validation", demo.VALIDATION_ROWS)):
        lines = (demo.DEFAULT_OUT / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        asked = [m["content"] for line in lines for m in json.loads(line)["messages"] if m["role"] == "user"]
        assert len(lines) == count
        assert not {normal(text) for text in asked} & (aside | seen)
        seen |= {normal(text) for text in asked}


def test_the_demo_files_are_what_the_recipe_writes(
    recipe: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewriting them changes nothing, so that the folder cannot drift from the recipe."""
    demo = recipe["demo_data"]
    monkeypatch.setattr(sys, "argv", ["demo_data.py", "--out", str(tmp_path)])
    demo.main()
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (demo.DEFAULT_OUT / path.name).read_bytes()
