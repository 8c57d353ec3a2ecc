"""Makes tests/unit/reference_metrics.json: answers, and what scikit-learn, sacrebleu and rouge-score say of them.

    pip install scikit-learn sacrebleu rouge-score
    python tests/reference_metrics.py

These packages are no dependencies; the file is committed.
"""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path

TEXTS = [
    ("The cat sat on the mat.", "The cat is sitting on the mat."),
    ("Hello, world! It's 3.5 o'clock -- isn't it?", "Hello world, it is 3.5 o'clock; isn't it?"),
    ("", "Something was expected here."),
    ("word", "word"),
    ("one two", "three four"),
    ("A much longer answer of 1,200 words (or so) with \"quotes\" &amp; escapes.", "An answer with 1,200 words."),
    ("Grüße aus Köln: schöne Straße", "Grüße aus Berlin: schöne Straßen"),
    ("日本語のテキスト", "日本語の文章"),
    ("line one\nline two-\nline three", "line one line two line three"),
    ("the the the the the the the", "the cat is on the mat"),
    ("10-20 e-mail state-of-the-art U.S.A.", "10-20 email state of the art USA"),
    ("  many   spaces\tand tabs  ", "many spaces and tabs"),
    ("a b c d e f g h i j", "a b c d e x g h i j"),
]  # fmt: skip


def main() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    names = ["rouge1", "rouge2", "rougeL"]
    rouge = RougeScorer(names)
    sets = [
        TEXTS,
        TEXTS[:2],
        [TEXTS[2]],
        [TEXTS[3]],
        [TEXTS[4]],
        TEXTS[5:8],
        TEXTS[8:],
        *([one] for one in TEXTS),
    ]
    texts = [
        {
            "pairs": pairs,
            "bleu": BLEU().corpus_score([said for said, _ in pairs], [[wanted for _, wanted in pairs]]).score,
            "chrf": CHRF().corpus_score([said for said, _ in pairs], [[wanted for _, wanted in pairs]]).score,
            **{
                name: sum(rouge.score(wanted, said)[name].fmeasure for said, wanted in pairs) / len(pairs)
                for name in names
            },
        }
        for pairs in sets
    ]
    draw = random.Random(5)
    labels = ["cat", "cow", "dog", "hen"]
    wanted = [draw.choice(labels[:3]) for _ in range(60)] + ["hen"]
    said = [one if draw.random() < 0.6 else draw.choice([*labels, "no animal"]) for one in wanted]
    known = [one if one in labels else "(other)" for one in said]
    report = {
        "said": said,
        "wanted": wanted,
        "accuracy": accuracy_score(wanted, said),
        "macro_f1": f1_score(wanted, said, labels=labels, average="macro", zero_division=0),
        "weighted_f1": f1_score(wanted, said, labels=labels, average="weighted", zero_division=0),
        "confusion": confusion_matrix(wanted, known, labels=[*labels, "(other)"]).tolist(),
    }
    versions = {name: version(name) for name in ("scikit-learn", "sacrebleu", "rouge-score")}
    found = {"versions": versions, "texts": texts, "labels": report}
    target = Path(__file__).parent / "unit" / "reference_metrics.json"
    text = (
        json.dumps(found, ensure_ascii=False)
        .replace('{"pairs"', '\n{"pairs"')
        .replace('"labels": {', '\n"labels": {')
    )
    target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
