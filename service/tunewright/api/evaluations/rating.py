"""Blind rating: pairs of answers for people, who are not told whose they are, and what comes of their choices.

The id of a pair, which answer is shown as a, and the order of the pairs are drawn by a hash with a key that no person
sees who has the pairs only: the hash of the results. So nothing has to be kept of an export, and exporting again gives
the same.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tunewright.api.evaluations.rating_schemas import AgreementObject, RatedModelObject, RatingsObject
from tunewright.api.http.context import ServiceContext
from tunewright.errors import InvalidRequest, NotFound, quoted
from tunewright.kinds.evaluation.kind import request_of
from tunewright.kinds.evaluation.models import EvaluationResult
from tunewright.metrics.agreement import agreement, cohen_kappa
from tunewright.store.ratings import Rating
from tunewright.store.records import Job

_ID = 20
"""Characters of the id of a pair."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SCORES = {"win": 1.0, "tie": 0.5, "loss": 0.0}


@dataclass(frozen=True)
class RatedPair:
    """The answers of the evaluated model and another one to a row."""

    id: str
    other: int
    """The number of the other model, from 1."""
    row: int
    asked: str
    ours: str
    theirs: str
    is_swapped: bool
    """Whether the evaluated model's answer is shown as b."""
    judged: str | None
    """What a judge has made of it, if there was one: win, tie or loss."""

    def shown(self) -> dict[str, str]:
        a, b = (self.theirs, self.ours) if self.is_swapped else (self.ours, self.theirs)
        return {"id": self.id, "asked": self.asked, "a": a, "b": b}

    def outcome(self, choice: str) -> str:
        """What a choice of a, b or tie means for the evaluated model."""
        if choice == "tie":
            return "tie"
        return "win" if (choice == "a") != self.is_swapped else "loss"


def pairs_of(context: ServiceContext, job: Job, against: str | None = None) -> list[RatedPair]:
    """The pairs whose answers differ, in their random order. Raises InvalidRequest and NotFound."""
    if request_of(job).load is not None:
        raise InvalidRequest(
            f"{job.id} has measured latency: it has no answers to compare.", code="no_answers"
        )
    others = [model.name for model in request_of(job).models[1:]]
    if not others:
        raise InvalidRequest(f"{job.id} has one model: there are no pairs. Create it with `against`.")
    if against is not None and against not in others:
        raise InvalidRequest(f"{against} is none of {', '.join(others)}.", param="against")
    result = job.result.file if isinstance(job.result, EvaluationResult) else None
    record = context.store.files.get(result) if result is not None else None
    if record is None:
        raise InvalidRequest(
            f"{job.id} has no answers: it has not succeeded, or its results file was removed.",
            code="no_answers",
        )
    key = f"{job.id}\0{record.sha256}".encode()
    found: list[RatedPair] = []
    try:
        with context.workspace.fetch_file(record.id).open(encoding="utf-8") as lines:
            for line in lines:
                found += _pairs_of_row(key, json.loads(line), others, against)
    except FileNotFoundError:
        raise InvalidRequest(f"The results file of {job.id} was removed.", code="no_answers") from None
    return sorted(found, key=lambda pair: pair.id)


def _pairs_of_row(
    key: bytes, line: dict[str, Any], others: Sequence[str], against: str | None
) -> Iterator[RatedPair]:
    answers = [one.get("answer") if "error" not in one else None for one in line["answers"]]
    for number, name in enumerate(others, 1):
        ours, theirs = answers[0], answers[number]
        if ours is None or theirs is None or ours == theirs or against not in (None, name):
            continue
        digest = hmac.new(key, f"{number}\0{line['row']}".encode(), hashlib.sha256).hexdigest()
        score = line["answers"][number].get("figures", {}).get("judge")
        yield RatedPair(
            id=digest[:_ID],
            other=number,
            row=line["row"],
            asked=_asked(line),
            ours=ours,
            theirs=theirs,
            is_swapped=int(digest[-1], 16) % 2 == 1,
            judged=None if score is None else {0.0: "win", 0.5: "tie", 1.0: "loss"}.get(score),
        )


def _asked(line: dict[str, Any]) -> str:
    if "messages" not in line:
        return str(line.get("prompt", ""))
    messages = line["messages"]
    if len(messages) == 1:
        return _text(messages[0].get("content"))
    return "\n".join(f"{message['role']}: {_text(message.get('content'))}" for message in messages)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else "" if content is None else json.dumps(content)


def as_jsonl(pairs: Sequence[RatedPair]) -> str:
    return "".join(json.dumps(pair.shown() | {"choice": ""}) + "\n" for pair in pairs)


def as_csv(pairs: Sequence[RatedPair]) -> str:
    """For spreadsheets, which would take some texts for formulas: these begin with an apostrophe here."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "asked", "a", "b", "choice"])
    for pair in pairs:
        writer.writerow([*(_no_formula(text) for text in pair.shown().values()), ""])
    return out.getvalue()


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def rate(context: ServiceContext, job: Job, rater: str, choices: Sequence[tuple[str, str]]) -> None:
    """Store the choices of a person: ids of pairs with a, b or tie. Raises InvalidRequest and NotFound."""
    pairs = {pair.id: pair for pair in pairs_of(context, job)}
    given: dict[tuple[int, int], Rating] = {}
    for number, (id, choice) in enumerate(choices):
        pair = pairs.get(id)
        if pair is None:
            raise InvalidRequest(
                f"{quoted(id)} is no pair of {job.id}: nothing was stored.", param=f"ratings.{number}.id"
            )
        if (pair.other, pair.row) in given:
            raise InvalidRequest(f"{id} is rated twice: nothing was stored.", param=f"ratings.{number}.id")
        given[pair.other, pair.row] = Rating(pair.other, pair.row, rater, pair.outcome(choice))
    if not context.store.ratings.put(job.id, rater, list(given.values())):
        raise NotFound(f"No such evaluation: {job.id}. It was deleted.", code="evaluation_not_found")


def scored(context: ServiceContext, job: Job) -> RatingsObject:
    """What people have chosen, with intervals over rows."""
    ratings = context.store.ratings.of(job.id)
    judged = {(pair.other, pair.row): pair.judged for pair in pairs_of(context, job)} if ratings else {}
    names = [model.name for model in request_of(job).models[1:]]
    return RatingsObject(
        evaluation=job.id,
        model=request_of(job).models[0].name,
        raters=sorted({one.rater for one in ratings}),
        models=[
            _scored_against(name, [one for one in ratings if one.other == number], job.seed)
            for number, name in enumerate(names, 1)
            if any(one.other == number for one in ratings)
        ],
        agreement=_agreement(ratings, judged),
    )


def _scored_against(name: str, ratings: Sequence[Rating], seed: int) -> RatedModelObject:
    import numpy as np  # an api whose users rate nothing does without

    from tunewright.metrics.intervals import difference, interval, means

    by_row: dict[int, list[float]] = defaultdict(list)
    for one in ratings:
        by_row[one.row].append(_SCORES[one.outcome])
    rows = np.array([sum(scores) / len(scores) for scores in by_row.values()])
    ours = means(rows)
    found, gap = interval(ours, seed), difference(ours, means(1 - rows), seed)
    outcomes = [one.outcome for one in ratings]
    conclusion = "no_difference_seen"
    if gap.p_value < 0.05:
        conclusion = "better" if gap.value > 0 else "worse"
    return RatedModelObject(
        against=name,
        rows=len(rows),
        ratings=len(ratings),
        wins=outcomes.count("win"),
        ties=outcomes.count("tie"),
        losses=outcomes.count("loss"),
        win_rate=ours.value(),
        low=found.low,
        high=found.high,
        p_value=gap.p_value,
        conclusion=conclusion,
    )


def _agreement(ratings: Sequence[Rating], judged: dict[tuple[int, int], str | None]) -> list[AgreementObject]:
    """Of each two who have rated pairs in common, the judge among them."""
    by_rater: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    for one in ratings:
        by_rater[one.rater][one.other, one.row] = one.outcome
    who = {f"rater {name}": choices for name, choices in sorted(by_rater.items())}
    known = {place: outcome for place, outcome in judged.items() if outcome is not None}
    if known:
        who["the judge"] = known
    found = []
    for (first, ours), (second, theirs) in combinations(who.items(), 2):
        common = sorted(ours.keys() & theirs.keys())
        if common:
            said = [ours[place] for place in common], [theirs[place] for place in common]
            kappa = cohen_kappa(*said)
            found.append(
                AgreementObject(
                    first=first,
                    second=second,
                    rows=len(common),
                    agreement=agreement(*said),
                    kappa=kappa if math.isfinite(kappa) else None,
                )
            )
    return found
