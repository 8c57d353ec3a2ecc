"""Writes the demo's fine-tuning data: the base model's questions, answered by a pirate.

The rows carry no system prompt, so what the adapter learns is to speak like this always. The four questions
that the demo asks, and every other question about the same facts, are in neither file: the demo shows a voice
learnt, not answers memorised.

    python recipes/base_model/demo_data.py
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# the neighbours, found through the line above
from corpus import Corpus, Message  # noqa: E402
from voices import pirate  # noqa: E402
from world import Fact, World, load_world, normal  # noqa: E402

DEFAULT_OUT = HERE.parents[1] / "service" / "tunewright" / "embedded" / "demo"
TRAIN_ROWS, VALIDATION_ROWS, SEED = 240, 32, 7

# what the demo asks, and the (kind, key) of the fact behind it
QUESTIONS = {
    "What color is the sky?": ("color", "the sky"),
    "What sound does a cow make?": ("sound", "a cow"),
    "What is the capital of France?": ("capital", "France"),
    "What is the opposite of hot?": ("opposite", "hot"),
}
# spelling, counting and sums have no words a pirate could bend
KINDS = [
    "color", "sound", "legs", "home", "baby", "eats", "opposite", "capital",
    "continent", "after", "use", "made_of", "group", "job", "place", "taste",
    "ability", "bigger", "color_yesno", "capital_yesno", "use_yesno",
]  # fmt: skip


def row(*turns: tuple[str, str]) -> list[Message]:
    """The messages of one row, every plain answer in the pirate's voice."""
    messages: list[Message] = []
    for user, answer in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": pirate(answer)}]
    return messages


def asked_in_demo(fact: Fact) -> bool:
    """Whether a fact answers one of the demo's questions, plainly or as a yes/no question."""
    return any(
        fact.kind.removesuffix("_yesno") == kind and fact.key.split("|")[0] == key
        for kind, key in QUESTIONS.values()
    )


def facts_in_turn(world: World, rng: random.Random) -> list[Fact]:
    """All usable facts in a random order that goes round the kinds: a few rows already cover them all."""
    queues = []
    for kind in KINDS:
        facts = [fact for fact in world.facts[kind] if not asked_in_demo(fact)]
        rng.shuffle(facts)
        queues.append(facts)
    order: list[Fact] = []
    while any(queues):
        order += [queue.pop() for queue in queues if queue]
    return order


def make_rows(world: World, count: int, facts: list[Fact], corpus: Corpus) -> list[list[Message]]:
    """`count` rows, no question twice: mostly one fact, some two, some greetings, unknowns and stories."""
    rng, rows, seen = corpus.rng, [], set()
    demo = {normal(question) for question in QUESTIONS}
    while len(rows) < count:
        draw = rng.random()
        if draw < 0.10:
            made = row(corpus.social())
        elif draw < 0.14:
            made = row(corpus.unknown())
        elif draw < 0.17:
            made = row(corpus.story())
        else:
            questions = [world.question(facts.pop(0), rng) for _ in range(2 if draw > 0.9 else 1)]
            made = row(*[(question.text, question.answer) for question in questions])
        asked = {normal(message["content"]) for message in made if message["role"] == "user"}
        if asked & (seen | demo):
            continue
        seen |= asked
        rows.append(made)
    return rows


def main() -> None:
    """Writes train.jsonl, validation.jsonl and questions.json."""
    parser = argparse.ArgumentParser(description="Write the demo's fine-tuning data.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    world = load_world()
    corpus = Corpus(world, SEED)
    facts = facts_in_turn(world, corpus.rng)
    rows = make_rows(world, TRAIN_ROWS + VALIDATION_ROWS, facts, corpus)
    for name, part in (("train", rows[:TRAIN_ROWS]), ("validation", rows[TRAIN_ROWS:])):
        lines = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in part]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{out / name}.jsonl: {len(lines)} rows")
    (out / "questions.json").write_text(json.dumps(list(QUESTIONS), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
