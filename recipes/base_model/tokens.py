"""From text to rows of token ids: the tokenizer with its chat template, and the packing of documents.

Imports neither torch nor the model, so that tests of the loss mask and of the template stay fast.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# isort: split
from corpus import Corpus, Message

HERE = Path(__file__).resolve().parent

VOCAB_SIZE = 2048
CONTEXT = 1024
END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL = [END_OF_TEXT, IM_START, IM_END, PAD]

# What users ask cannot be predicted; a little weight keeps the model able to read and to continue their text.
USER_WEIGHT = 0.1


def train_tokenizer(
    corpus: Corpus, documents: int = 20_000, vocab_size: int = VOCAB_SIZE
) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the corpus, with the chat template in it.

    Digits stand alone so that sums are sums of digits. A newline stands alone so that no token crosses the
    border between `<|im_start|>assistant` + newline and the answer: the ids of a prompt are then a prefix of
    the whole conversation's ids for any answer, which TRL and the loss mask rely on.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for doc in itertools.islice(corpus.documents(), documents) for text, _ in pieces(doc))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=PAD,
        additional_special_tokens=[END_OF_TEXT, IM_START],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=(HERE / "chat_template.jinja").read_text(encoding="utf-8"),
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the tokenizer's files under the class name that every transformers since 4 loads."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def pieces(document: str | list[Message]) -> Iterator[tuple[str, float]]:
    """The document as (text, loss weight) pieces, cut where the chat template cuts.

    Joined and without the closing `<|endoftext|>` they equal the chat template's rendering (a test holds them
    together); the template itself is too slow for hundreds of thousands of conversations.
    """
    if isinstance(document, str):
        yield document, 1.0
    else:
        for message in document:
            learnt = message["role"] == "assistant"
            yield f"{IM_START}{message['role']}\n", USER_WEIGHT
            yield message["content"] + IM_END, 1.0 if learnt else USER_WEIGHT
            yield "\n", USER_WEIGHT
    yield END_OF_TEXT, 1.0


def pack(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """`rows` rows of whole documents: token ids (uint16) and loss weights (float16), `[rows, length]`.

    Every row begins with a document's beginning, because that is where a served conversation begins too; what
    is left at a row's end is padding of weight zero (a few percent).
    """

    @lru_cache(maxsize=200_000)
    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    ids = np.full((rows, length), tokenizer.pad_token_id, dtype=np.uint16)
    weights = np.zeros((rows, length), dtype=np.float16)
    row, at = 0, 0
    for document in corpus.documents():
        tokens: list[int] = []
        loss: list[float] = []
        for text, weight in pieces(document):
            encoded = encode(text)
            tokens += encoded
            loss += [weight] * len(encoded)
        if at + len(tokens) > length:
            row, at = row + 1, 0
        if row == rows:
            return ids, weights
        tokens, loss = tokens[:length], loss[:length]
        ids[row, at : at + len(tokens)] = tokens
        weights[row, at : at + len(loss)] = loss
        at += len(tokens)
    raise AssertionError("the corpus is endless")
