"""What the teacher is told. Whoever changes a text here raises `VERSION`, which the lineage of made files has."""

from __future__ import annotations

VERSION = 1

PARAPHRASE = (
    "You rewrite what a user has said to an assistant, for the training data of a language model. You get a "
    "conversation as JSON. Rewrite each message of the user {manner}. Keep the meaning, the language and every name, "
    "number, unit, quotation and piece of code, so that each answer of the assistant stays right as it is. Do not "
    'answer the messages. Reply with JSON: {{"turns": [...]}}, the rewritten messages of the user in their order, '
    "{turns} of them."
)
MANNERS = (
    "in other words",
    "in another sentence structure",
    "as briefly as a person in a hurry would",
    "as somebody who talks casually would",
    "as somebody who writes formally would",
    "in more words",
)
"""The paraphrases of a row are asked for in these ways, one after another."""

NEW_ROW = (
    "You write examples for the training data of a language model. You are shown examples as JSON, one a line. Write "
    "one new example of the same kind: the same task, form, language, tone and length, but with another content. Do "
    "not copy or reword the examples that are shown. The answer must be right. Reply with one JSON object of the same "
    "form."
)
ABOUT = "The new example is about: {topic}"
EXAMPLES = "Examples:\n{lines}\n\nWrite a new one."
