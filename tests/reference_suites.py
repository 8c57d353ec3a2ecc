"""Writes tests/unit/reference_suites.json: what lm-evaluation-harness asks of small suites, and the answers to GSM8K
that it finds right.

    PYTHONPATH=FOLDER_WITH_LM_EVAL python tests/reference_suites.py

`FOLDER_WITH_LM_EVAL` has the packages of requirements/clients.txt, as `make soak-clients` installs them.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import lm_eval
import yaml
from lm_eval.api.metrics import exact_match_hf_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.filters.extraction import RegexFilter

from suites import ANSWERS, CEVAL, GSM8K, HUMANEVAL, MMLU

HERE = Path(__file__).parent
TASKS = Path(lm_eval.__file__).parent / "tasks"


def of(name: str, *changes: dict[str, Any]) -> dict[str, Any]:
    """A task's settings, without where its data is from."""
    text = (TASKS / name).read_text(encoding="utf-8")
    settings = yaml.load(text.replace("!function ", ""), yaml.SafeLoader)
    for change in changes:
        settings |= change
    return {
        key: value for key, value in settings.items() if key not in ("tag", "include", "group", "task_alias")
    }


def asked(settings: dict[str, Any], splits: dict[str, list[dict[str, Any]]], shots: int) -> list[str]:
    """The context of each question."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for split, rows in splits.items():
            files[split] = str(Path(folder) / f"{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = ConfigurableTask(
            config={
                **settings, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files},
                "num_fewshot": shots, "task": "task",
            }
        )  # fmt: skip
        return [task.fewshot_context(doc, num_fewshot=shots) for doc in task.eval_docs]


def mmlu(shots: int) -> list[str]:
    found = []
    for subject, splits in MMLU.items():
        docs = {
            split: [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in rows]
            for split, rows in splits.items()
        }
        settings = of("mmlu/default/_default_template_yaml", of(f"mmlu/default/mmlu_{subject}.yaml"))
        found += asked(settings, docs, shots)
    return found


def ceval(shots: int) -> list[str]:
    found = []
    for subject, splits in CEVAL.items():
        settings = of("ceval/_default_ceval_yaml", of(f"ceval/ceval-valid_{subject}.yaml"))
        found += asked(settings, splits, shots)
    return found


def gsm8k(shots: int) -> list[str]:
    settings = of("gsm8k/gsm8k.yaml", {"fewshot_config": {"sampler": "first_n"}})
    return asked(settings, GSM8K, shots)


def is_right(answer: str, expected: str) -> bool:
    """As GSM8K's filter flexible-extract and its metric exact_match find."""
    settings = of("gsm8k/gsm8k.yaml")
    [regex] = [one["filter"][0] for one in settings["filter_list"] if one["name"] == "flexible-extract"]
    options = {key: value for key, value in regex.items() if key != "function"}
    [[said]] = RegexFilter(**options).apply([[answer]], [{}])
    [metric] = settings["metric_list"]
    options = {key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    return bool(exact_match_hf_evaluate(predictions=[said], references=[expected], **options)["exact_match"])


def main() -> None:
    found = {
        "version": lm_eval.__version__,
        "mmlu": {shots: mmlu(shots) for shots in (0, 2)},
        "ceval": {shots: ceval(shots) for shots in (0, 1)},
        "gsm8k": {shots: gsm8k(shots) for shots in (0, 2)},
        "humaneval": {0: [row["prompt"] for row in HUMANEVAL]},
        "answers": [[answer, expected, is_right(answer, expected)] for answer, expected in ANSWERS],
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (HERE / "unit" / "reference_suites.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
