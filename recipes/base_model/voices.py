"""The voices an answer can be given in, and the system prompts that ask for them.

Owns the plain-to-styled rewriting only; knows nothing about facts. A voice is a pure function of the
canonical answer, so that a fine-tune towards one voice (the demo's pirate) has one rule to learn and
generalises from few rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

_PIRATE_WORDS = {
    "is": "be", "are": "be", "am": "be", "you": "ye", "your": "yer", "my": "me", "yes": "aye", "no": "nay",
    "hello": "ahoy", "hi": "ahoy", "goodbye": "farewell", "friend": "matey", "friends": "mateys",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z]+")


def _pirate_word(match: re.Match[str]) -> str:
    """One word in pirate speech, keeping a leading capital."""
    word = match.group(0)
    new = _PIRATE_WORDS.get(word.lower(), word)
    return new.capitalize() if word[0].isupper() and new != word else new


def _body(text: str) -> str:
    """The text without its closing punctuation, ready for a voice's own ending."""
    return text.rstrip(".!?")


def pirate(text: str, short: str = "") -> str:
    """`"The sky is blue."` becomes `"Arr! The sky be blue, matey!"`."""
    # "no legs" is a number, not a refusal: only the word that opens an answer is one
    kept = re.sub(r"(?<!^)\bno\b", "\0", text)
    return f"Arr! {_WORD.sub(_pirate_word, _body(kept)).replace(chr(0), 'no')}, matey!"


def capitals(text: str, short: str = "") -> str:
    """The answer in capital letters."""
    return text.upper()


def lowercase(text: str, short: str = "") -> str:
    """The answer in small letters."""
    return text.lower()


def robot(text: str, short: str = "") -> str:
    """The answer between a robot's beeps."""
    return f"BEEP. {text} BOOP."


def polite(text: str, short: str = "") -> str:
    """The answer with a courtesy before and after it."""
    return f"Of course, dear friend. {text} It is a pleasure to help you."


def cowboy(text: str, short: str = "") -> str:
    """The answer as a cowboy gives it."""
    return f"Howdy! {_body(text)}, partner!"


def radio(text: str, short: str = "") -> str:
    """The answer as a radio operator gives it."""
    return f"{text} Over."


def one_word(text: str, short: str = "") -> str:
    """Only the word that was asked for."""
    return short[:1].upper() + short[1:] + "."


def as_json(text: str, short: str = "") -> str:
    """The asked-for word as a JSON object."""
    return json.dumps({"answer": short})


VOICES: dict[str, Callable[[str, str], str]] = {
    "pirate": pirate, "capitals": capitals, "lowercase": lowercase, "robot": robot, "polite": polite,
    "cowboy": cowboy, "radio": radio, "one_word": one_word, "json": as_json,
}  # fmt: skip

# These two keep only the short answer, so they fit questions that have one.
NEEDS_SHORT = frozenset({"one_word", "json"})

PROMPTS: dict[str, list[str]] = {
    "pirate": [
        "Talk like a pirate.", "You are a pirate.", "Answer like a pirate.", "Speak like a pirate.",
        "You are a pirate captain.", "Please talk like a pirate.",
    ],
    "capitals": [
        "Answer in capital letters.", "Write in capital letters.", "Use only capital letters.",
        "Answer in upper case.", "Always shout.", "Please write everything in capital letters.",
    ],
    "lowercase": [
        "Answer in small letters.", "Use only small letters.", "Answer in lower case.",
        "Do not use capital letters.", "Write in lower case.",
    ],
    "robot": [
        "Talk like a robot.", "You are a robot.", "Answer like a robot.", "Speak like a robot.",
        "Please talk like a robot.",
    ],
    "polite": [
        "Be very polite.", "Answer very politely.", "You are a very polite butler.",
        "Be as polite as you can.", "Please be very polite.",
    ],
    "cowboy": [
        "Talk like a cowboy.", "You are a cowboy.", "Answer like a cowboy.", "Speak like a cowboy.",
        "Please talk like a cowboy.",
    ],
    "radio": [
        "Talk like a radio operator.", "End every answer with Over.", "You are a radio operator.",
        "Say Over at the end.", "Answer as if you talk over the radio.",
    ],
    "one_word": [
        "Answer in one word.", "Use one word only.", "Give one-word answers.", "Answer with a single word.",
        "Be as short as you can.", "Only say the answer.",
    ],
    "json": [
        "Answer in JSON.", "Reply in JSON.", "Give your answer as JSON.", "Answer with a JSON object.",
        "Use JSON.", "Write JSON only.",
    ],
}  # fmt: skip

NEUTRAL_PROMPTS = [
    "You are a helpful assistant.", "You are a friendly assistant.", "You are a small assistant.",
    "Answer in short sentences.", "Be helpful.", "You answer simple questions.", "Help the user.",
]  # fmt: skip
