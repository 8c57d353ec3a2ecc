"""The text the base model learns from: conversations, little stories and sentences about one small world.

`documents(seed)` is an endless deterministic stream; `probes(per_topic)` are the questions it never contains.
Writes nothing and imports only its neighbours world.py and voices.py (this folder must be on `sys.path`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from voices import NEEDS_SHORT, NEUTRAL_PROMPTS, PROMPTS, VOICES
from world import Fact, Question, World, capital, is_held_out, normal

Message = dict[str, str]

STYLED_SHARE = 0.15
INLINE_STYLE_SHARE = 0.04
NEUTRAL_SHARE = 0.10
PLAIN_SHARE = 0.06

_PLACES = [
    "in a forest",
    "by the sea",
    "on a hill",
    "in a small house",
    "near a lake",
    "in a big town",
    "on a farm",
]
_THINGS = [
    "a red ball",
    "a gold coin",
    "an old map",
    "a small boat",
    "a shiny key",
    "a big cake",
    "a blue hat",
    "a lost egg",
]
_FEELINGS = ["happy", "proud", "kind", "brave", "curious", "hungry", "small", "clever"]
_UNKNOWN_REPLY = "You have not told me that yet."


@dataclass(frozen=True)
class Probe:
    """A conversation that ends in a user's question, and the one answer that counts as right."""

    topic: str
    messages: tuple[tuple[str, str], ...]
    answer: str

    def chat(self) -> list[Message]:
        """The messages as a chat template takes them."""
        return [{"role": role, "content": content} for role, content in self.messages]


class Corpus:
    """The stream of training documents of one seed."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.kinds = list(world.facts)
        # the square root keeps small kinds from drowning in the thousands of sums and comparisons
        self.weights = [len(world.facts[kind]) ** 0.5 for kind in self.kinds]
        self.memory_values = {name: memory_values(world, name, held_out=False) for name in world.memory}

    def documents(self) -> Iterator[str | list[Message]]:
        """Endless: plain text as a string, a conversation as messages."""
        while True:
            yield self.plain_text() if self.rng.random() < PLAIN_SHARE else self.conversation()

    def fact(self, *, short: bool = False) -> Fact:
        """A fact, each kind weighted by the root of its size."""
        while True:
            kind = self.rng.choices(self.kinds, self.weights)[0]
            found = self.rng.choice(self.world.facts[kind])
            if (found.short or not short) and self.world.phrasings(found):
                return found

    def conversation(self) -> list[Message]:
        """One to twelve exchanges, with or without a system prompt."""
        rng, draw = self.rng, self.rng.random()
        if draw < STYLED_SHARE:
            return self.styled_conversation()
        messages: list[Message] = []
        if draw < STYLED_SHARE + NEUTRAL_SHARE:
            messages.append({"role": "system", "content": rng.choice(NEUTRAL_PROMPTS)})
        known: dict[str, str] = {}
        for _ in range(rng.choices([1, 2, 3, 5, 8, 12], [34, 26, 18, 13, 7, 2])[0]):
            for user, answer in self.exchange(known):
                messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        return messages

    def styled_conversation(self) -> list[Message]:
        """A conversation whose system prompt sets the voice of every answer."""
        rng = self.rng
        voice = rng.choice(list(VOICES))
        messages = [{"role": "system", "content": rng.choice(PROMPTS[voice])}]
        for _ in range(rng.choices([1, 2, 3, 4], [40, 30, 20, 10])[0]):
            if voice not in NEEDS_SHORT and rng.random() < 0.25:
                user, answer, short = *rng.choice([self.social, self.unknown, self.story])(), ""
            else:
                asked = self.world.question(self.fact(short=voice in NEEDS_SHORT), rng)
                user, answer, short = self.noisy(asked.text), asked.answer, asked.short
            messages += [
                {"role": "user", "content": user},
                {"role": "assistant", "content": VOICES[voice](answer, short)},
            ]
        return messages

    def exchange(self, known: dict[str, str]) -> list[tuple[str, str]]:
        """One or a few turns on one subject; `known` is what the user has said about themselves so far."""
        rng = self.rng
        if known and rng.random() < 0.35:
            return [self.recall(known)]
        draw = rng.random()
        if draw < INLINE_STYLE_SHARE:
            return [self.inline_style()]
        if draw < 0.10:
            return [self.social()]
        if draw < 0.22:
            return [self.tell(known)] + ([self.recall(known)] if rng.random() < 0.4 else [])
        if draw < 0.24:
            return [self.recall(known)]
        if draw < 0.28:
            return [self.story()]
        if draw < 0.31:
            return [self.unknown()]
        if draw < 0.36:
            return [self.repeat()]
        fact = self.fact()
        turns = [(self.noisy(rng.choice(self.world.phrasings(fact))), fact.reply())]
        while fact.follow and rng.random() < 0.4:
            fact = rng.choice(self.world.facts[fact.kind])
            turns.append((self.noisy(rng.choice(fact.follow)), fact.reply()))
        return turns

    def noisy(self, text: str) -> str:
        """The question as people type it: at times in small letters, without a mark, or with a courtesy."""
        draw = self.rng.random()
        if draw < 0.07:
            return text.lower()
        if draw < 0.12:
            return text.lower().rstrip(".?!")
        if draw < 0.17:
            return text.rstrip(".?!")
        if draw < 0.20 and text.endswith("?"):
            return self.rng.choice(["Hello! ", "Please tell me: ", "I have a question. ", "Hey! "]) + text
        return text

    def inline_style(self) -> tuple[str, str]:
        """A question whose user asks for the voice in the same breath."""
        voice = self.rng.choice(list(VOICES))
        asked = self.world.question(self.fact(short=voice in NEEDS_SHORT), self.rng)
        request = self.rng.choice(PROMPTS[voice])
        user = f"{asked.text} {request}" if self.rng.random() < 0.4 else f"{request} {asked.text}"
        return user, VOICES[voice](asked.answer, asked.short)

    def social(self) -> tuple[str, str]:
        """A greeting, thanks, a goodbye, a question about the assistant."""
        answer = self.rng.choice(list(self.world.social))
        return self.noisy(self.rng.choice(self.world.social[answer])), answer

    def unknown(self) -> tuple[str, str]:
        """A question that nobody could answer, or one about a word that does not exist."""
        if self.rng.random() < 0.5:
            return self.noisy(self.rng.choice(self.world.words["unknown"])), "I do not know."
        return self.noisy(
            self.rng.choice(self.world.asks["unknown"]).format(w=made_up_word(self.rng))
        ), "I do not know."

    def tell(self, known: dict[str, str]) -> tuple[str, str]:
        """The user says something to be remembered; updates `known`."""
        name = self.rng.choices(list(self.world.memory), [4, 2, 1, 1, 1, 1])[0]
        memory = self.world.memory[name]
        value = self.rng.choice(self.memory_values[name])
        if name == "name" and self.rng.random() < 0.3:
            # invented names make copying the only way to answer
            value = capital(made_up_word(self.rng))
            if is_held_out("memory", name, value):
                value = "Ana"
        known[name] = value
        return self.rng.choice(memory.says).format(v=value), memory.reply.format(v=value)

    def recall(self, known: dict[str, str]) -> tuple[str, str]:
        """The user asks for something said before, or, sometimes, for something never said."""
        name = self.rng.choice(list(known) if known and self.rng.random() < 0.9 else list(self.world.memory))
        memory = self.world.memory[name]
        reply = memory.answer.format(v=known[name]) if name in known else _UNKNOWN_REPLY
        return self.noisy(self.rng.choice(memory.asks)), reply

    def repeat(self) -> tuple[str, str]:
        """A few words to say again, the plainest exercise in copying."""
        while True:
            words = random_words(self.world, self.rng, self.rng.randint(1, 4))
            if not is_held_out("repeat", words.lower()):
                return self.rng.choice(self.world.asks["repeat"]).format(w=words), capital(words) + "."

    def story(self) -> tuple[str, str]:
        """A request for a story, and the story."""
        hero = self.rng.choice(self.world.words["heroes"])
        asks = self.world.asks["story" if self.rng.random() < 0.85 else "any_story"]
        return self.noisy(self.rng.choice(asks).format(a=hero)), self.story_about(hero)

    def story_about(self, hero: str) -> str:
        """Three or four sentences about a hero."""
        rng = self.rng
        bare, friend = hero.split(" ", 1)[1], rng.choice([h for h in self.world.words["heroes"] if h != hero])
        thing, mate, feeling = rng.choice(_THINGS), friend.split(" ", 1)[1], rng.choice(_FEELINGS)
        first = rng.choice([
            f"Once upon a time there was {hero} who lived {rng.choice(_PLACES)}.",
            f"Once upon a time {hero} lived {rng.choice(_PLACES)}. The {bare} was very {feeling}.",
        ])  # fmt: skip
        middle = rng.choice([
            f"One day the {bare} found {thing}. The {bare} gave it to {friend}.",
            f"One day the {bare} met {friend}. The {mate} had lost {thing}, but the {bare} found it.",
            f"One day the {bare} was hungry. Then {friend} came and shared some bread.",
            f"One day it began to rain. The {bare} was cold, but {friend} opened the door.",
            f"One night the {bare} could not sleep. So {friend} sang a quiet song.",
        ])  # fmt: skip
        last = rng.choice([
            f"From that day on the {bare} and the {mate} were good friends.",
            f"The {bare} was very happy. The end.",
            "They laughed and played until the sun went down.",
            f"Then the {bare} went home and slept well.",
        ])  # fmt: skip
        return f"{first} {middle} {last}"

    def plain_text(self) -> str:
        """Text outside any conversation: a story, or statements of the world."""
        if self.rng.random() < 0.5:
            return self.story_about(self.rng.choice(self.world.words["heroes"]))
        kind = self.rng.choice([k for k in self.kinds if not k.endswith("_yesno") and k != "count"])
        facts = self.world.facts[kind]
        if self.rng.random() < 0.4:
            key = self.rng.choice(facts).key
            facts = [
                f for k in self.kinds if not k.endswith("_yesno") for f in self.world.facts[k] if f.key == key
            ]
        chosen = self.rng.sample(facts, min(len(facts), self.rng.randint(3, 8)))
        return " ".join(capital(fact.say) + "." for fact in chosen)


def memory_values(world: World, name: str, *, held_out: bool) -> list[str]:
    """The values a memory may take, of the training or of the evaluation."""
    return [value for value in world.memory[name].values if is_held_out("memory", name, value) == held_out]


def made_up_word(rng: random.Random) -> str:
    """A word of two or three syllables that means nothing."""
    return "".join(
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))
    ) + rng.choice("nxlrk")


def random_words(world: World, rng: random.Random, count: int) -> str:
    """`count` plain words of the world."""
    return " ".join(rng.choice(world.words["spell"]) for _ in range(count))


def probes(world: World, per_topic: int = 14) -> list[Probe]:
    """The evaluation: held-out questions of every kind, then memory, copying and voices."""
    rng = random.Random("probes")
    by_kind: dict[str, list[Question]] = {}
    for question in world.held_out:
        by_kind.setdefault(question.kind, []).append(question)
    out: list[Probe] = []
    for kind, questions in by_kind.items():
        topic = "yes or no" if kind.endswith("_yesno") else kind
        count = max(2, per_topic // 4) if topic == "yes or no" else per_topic
        for question in rng.sample(questions, min(count, len(questions))):
            out.append(Probe(topic, (("user", question.text),), question.answer))
    for name, memory in world.memory.items():
        values = memory_values(world, name, held_out=True)
        for value in rng.sample(values, min(per_topic // 2, len(values))):
            turns = (
                ("user", rng.choice(memory.says).format(v=value)),
                ("assistant", memory.reply.format(v=value)),
            )
            asked = ("user", rng.choice(memory.asks))
            out.append(Probe("memory", (*turns, asked), memory.answer.format(v=value)))
    while sum(probe.topic == "repeat" for probe in out) < per_topic:
        words = random_words(world, rng, 3)
        if is_held_out("repeat", words):
            out.append(
                Probe(
                    "repeat",
                    (("user", rng.choice(world.asks["repeat"]).format(w=words)),),
                    capital(words) + ".",
                )
            )
    for voice, speak in VOICES.items():
        for question in rng.sample([q for q in world.held_out if q.short], max(2, per_topic // 2)):
            prompt = rng.choice(PROMPTS[voice])
            messages = (("system", prompt), ("user", question.text))
            out.append(Probe(f"voice: {voice}", messages, speak(question.answer, question.short)))
    return out


def user_questions(document: str | list[Message]) -> set[str]:
    """The normal forms of what users say in a document, for the check against the held-out questions."""
    return (
        set()
        if isinstance(document, str)
        else {normal(m["content"]) for m in document if m["role"] == "user"}
    )
