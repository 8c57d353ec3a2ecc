"""What the base model's world contains: every fact, every way to ask for it, which pairs are held out.

Reads facts.toml and owns the facts that are computed (sums, sizes, spelling, counting). Imports nothing of
the service. A (fact, phrasing) pair is held out by a stable hash of its text, never by the seed, so that
corpora of any seed and size stay disjoint from the evaluation.
"""

from __future__ import annotations

import random
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FACTS_FILE = Path(__file__).with_name("facts.toml")
HELD_OUT_PERCENT = 4


@dataclass(frozen=True)
class Fact:
    """One thing the world holds true. `ask` are all its questions, `short` its one-word answer or empty."""

    kind: str
    key: str
    say: str
    ask: tuple[str, ...]
    short: str = ""
    follow: tuple[str, ...] = ()
    answer: str = ""

    def reply(self) -> str:
        """The canonical answer: the statement as a sentence, unless the fact brings its own."""
        return self.answer or capital(self.say) + "."


@dataclass(frozen=True)
class Question:
    """A question with its answers, ready for a conversation."""

    kind: str
    key: str
    text: str
    answer: str
    short: str = ""


@dataclass(frozen=True)
class Memory:
    """Something users tell about themselves and ask for later; `{v}` stands for one of `values`."""

    says: tuple[str, ...]
    reply: str
    asks: tuple[str, ...]
    answer: str
    values: tuple[str, ...]


@dataclass
class World:
    """All facts by kind, the questions kept for evaluation, and the word lists of the conversations."""

    facts: dict[str, list[Fact]]
    words: dict[str, list[str]]
    asks: dict[str, list[str]]
    memory: dict[str, Memory]
    social: dict[str, list[str]]
    held_out: list[Question] = field(default_factory=list)
    _trainable: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def phrasings(self, fact: Fact) -> tuple[str, ...]:
        """The questions about a fact that training may use."""
        return self._trainable[fact.kind, fact.key]

    def question(self, fact: Fact, rng: random.Random) -> Question:
        """A training question about a fact."""
        return Question(fact.kind, fact.key, rng.choice(self.phrasings(fact)), fact.reply(), fact.short)


def capital(text: str) -> str:
    """The text with its first letter large, the rest untouched (`str.capitalize` would spoil names)."""
    return text[:1].upper() + text[1:]


def is_held_out(kind: str, *parts: str) -> bool:
    """Whether a pair belongs to the evaluation: a hash of its own text, the same in every process."""
    return zlib.crc32("|".join(("held out", kind, *parts)).encode()) % 100 < HELD_OUT_PERCENT


def normal(text: str) -> str:
    """A question reduced to what makes it the same question: small letters, no closing punctuation."""
    return " ".join(text.lower().rstrip(".?! ").split())


def split_list(text: str) -> list[str]:
    """The items of a `;` separated list."""
    return [item.strip() for item in text.replace("\n", " ").split(";") if item.strip()]


def load_world() -> World:
    """Reads facts.toml, adds the computed facts and sets the evaluation's questions aside."""
    raw = tomllib.loads(FACTS_FILE.read_text(encoding="utf-8"))
    words = {name: split_list(text) for name, text in raw["world"].items()}
    words["ages"] = [str(age) for age in range(5, 90)]
    asks: dict[str, list[str]] = raw["ask"]
    memory = {
        name: Memory(tuple(m["says"]), m["reply"], tuple(m["asks"]), m["answer"], tuple(words[m["values"]]))
        for name, m in raw["memory"].items()
    }
    facts: dict[str, list[Fact]] = {}
    for kind in raw["kind"]:
        facts[kind["name"]] = list(_table_facts(kind))
        if kind["yesno"]:
            facts[f"{kind['name']}_yesno"] = list(_yesno_facts(kind, asks["doubt"]))
    for fact in _computed_facts(words, asks):
        facts.setdefault(fact.kind, []).append(fact)
    world = World(facts, words, asks, memory, raw["social"])
    _hold_out(world)
    return world


def _pairs(kind: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The (key, value) pairs of a kind's table."""
    return [
        (key.strip(), value.strip()) for key, value in (item.split("=") for item in split_list(kind["facts"]))
    ]


def _fill(template: str, key: str, value: str) -> str:
    """A template with a pair's words, as a sentence."""
    bare = key.split(" ", 1)[1] if key.split(" ", 1)[0] in {"a", "an", "the"} else key
    return capital(template.format(a=key, n=bare, b=value))


def _table_facts(kind: Mapping[str, Any]) -> Iterator[Fact]:
    """One fact for each pair of a kind's table."""
    for key, value in _pairs(kind):
        yield Fact(
            kind["name"], key, kind["say"].format(a=key, b=value),
            tuple(_fill(t, key, value) for t in kind["ask"]),
            short=value, follow=tuple(_fill(t, key, value) for t in kind["follow"]),
        )  # fmt: skip


def _yesno_facts(kind: Mapping[str, Any], doubts: list[str]) -> Iterator[Fact]:
    """For each pair a "Yes" and two "No" facts with other values of the same kind.

    The answer repeats the true statement, so that a "No" also says what is right.
    """
    pairs = _pairs(kind)
    values = list(dict.fromkeys(value for _, value in pairs))
    for key, value in pairs:
        rng = random.Random(f"{kind['name']}|{key}")
        others = [other for other in values if other != value and other not in value and value not in other]
        for claim in [value, *rng.sample(others, min(2, len(others)))]:
            claimed, truth = kind["say"].format(a=key, b=claim), kind["say"].format(a=key, b=value)
            asks = [_fill(t, key, claim) for t in kind["yesno"]] + [t.format(s=claimed) for t in doubts]
            word = "yes" if claim == value else "no"
            yield Fact(
                f"{kind['name']}_yesno", f"{key}|{claim}", truth, tuple(asks), short=word,
                answer=f"{capital(word)}, {truth}.",
            )  # fmt: skip


def _computed_facts(words: Mapping[str, list[str]], asks: Mapping[str, list[str]]) -> Iterator[Fact]:
    """Facts that a rule makes: sums, sizes, spelling, counting, the next number."""

    def make(kind: str, key: str, say: str, short: str = "", *, answer: str = "", **slots: str | int) -> Fact:
        templates = asks[kind] + (asks["count_to"] if kind == "count" and slots["x"] == 1 else [])
        questions = tuple(capital(template.format(**slots)) for template in templates)
        return Fact(kind, key, say, questions, short=short, answer=answer)

    for x in range(21):
        for y in range(21):
            yield make("add", f"{x}+{y}", f"{x} plus {y} is {x + y}", str(x + y), x=x, y=y)
            if x >= y:
                yield make("subtract", f"{x}-{y}", f"{x} minus {y} is {x - y}", str(x - y), x=x, y=y)
    for small, low in enumerate(words["sizes"]):
        for high in words["sizes"][small + 1 :]:
            for x, y in ((low, high), (high, low)):
                yield make("bigger", f"{x}|{y}", f"{high} is bigger than {low}", high, x=x, y=y)
    for word in dict.fromkeys(words["spell"]):
        yield make("spell", word, f"you spell {word} like this: {', '.join(word)}", w=word)
        yield make("first_letter", word, f"{word} starts with the letter {word[0]}", word[0], w=word)
    for x in range(1, 11):
        for y in range(x + 2, min(x + 10, 20) + 1):
            numbers = ", ".join(str(n) for n in range(x, y + 1)) + "."
            yield make("count", f"{x}-{y}", f"after {y - 1} comes {y}", answer=numbers, x=x, y=y)
    for x in range(100):
        yield make("next_number", str(x), f"{x + 1} comes after {x}", str(x + 1), x=x)


def _hold_out(world: World) -> None:
    """Fills `held_out` and leaves every fact with phrasings that no held-out question equals.

    Equality is of the normal form: training also writes questions in small letters or without a mark.
    """
    aside: set[str] = set()
    for facts in world.facts.values():
        for fact in facts:
            kept = [text for text in fact.ask if is_held_out(fact.kind, fact.key, text)]
            # a fact needs most of its phrasings to be learnt at all
            for text in kept[:2]:
                world.held_out.append(Question(fact.kind, fact.key, text, fact.reply(), fact.short))
                aside.add(normal(text))
    for facts in world.facts.values():
        for fact in facts:
            world._trainable[fact.kind, fact.key] = tuple(t for t in fact.ask if normal(t) not in aside)
