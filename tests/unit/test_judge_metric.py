"""Pairs of answers that a model judges: both orders, ties, what needs no judge, and agreement with labels."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from tunewright.api.gateway.external_judge import ExternalJudge
from tunewright.config import ServerOptions
from tunewright.errors import EngineUnavailable, Internal, InvalidRequest, TunewrightError
from tunewright.evaluator.asking import AnswersFile, Kept
from tunewright.evaluator.folder import Asked, AskedJudge, EvaluationSpec
from tunewright.evaluator.judging import Judgements, Judging, labelled_pairs
from tunewright.evaluator.pairs import INSTRUCTIONS, Pair, winner
from tunewright.evaluator.questions import Question
from tunewright.metrics.agreement import cohen_kappa
from tunewright.metrics.intervals import difference

KAPPAS = [
    ("ATTABTBTTATABBTAATBTTBBTAATATB", "TATABTBBTAABTTBBTTBATABTTTTATA", 0.22680412371134018),
    ("BABAABBBAATTABTTBTBTAABAAATTAA", "BABABTTATTABTBTTBTBBTTTTABBTBB", 0.1332263242375602),
    ("TBBBAATTTABTATBABATBTTAATBBTAB", "ABABAAATTABTATBABTBAATTBTBTBAT", 0.40099833610648916),
    ("BAAAATTABTAABTAATBATATTBATABAB", "TABAAATAATBABTBATAATATTBATABAB", 0.6341463414634146),
    ("TBTBAATTTTAATTATATBTAAAATABTTB", "TBTBAABATTATTTATATBTAAAATABTBB", 0.7916666666666667),
]  # fmt: skip
JUDGE = AskedJudge(name="j", content="9", at_once=2)


@pytest.mark.parametrize(("first", "second", "kappa"), KAPPAS)
def test_kappa_is_that_of_scikit_learn(first: str, second: str, kappa: float) -> None:
    """Those of cohen_kappa_score of scikit-learn 1.9.1."""
    assert cohen_kappa(first, second) == pytest.approx(kappa, abs=1e-12)


def test_kappa_is_not_known_where_chance_alone_agrees() -> None:
    assert math.isnan(cohen_kappa("AAA", "AAA"))
    assert math.isnan(cohen_kappa("", ""))
    assert cohen_kappa("AB", "BA") == -1.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"winner": "A"}', "A"), ('```json\n{"winner": "b"}\n```', "B"), ('I think {"winner": "Tie"}', "tie"),
        ("A", "A"), ("[[B]]", "B"), ("tie.", "tie"), ("A is better than B", None), ('{"winner": "C"}', None),
        ("", None), ("[1]", None), ('{"winner": ["A"]}', None), ("{" * 5000, None),
    ],
)  # fmt: skip
def test_what_a_judge_says_is_read_or_is_no_verdict(text: str, said: str | None) -> None:
    assert winner(text) == said


def question(place: int = 1) -> Question:
    return Question(place, "4", messages=[{"role": "user", "content": "2 + 2?"}])


def spec(**fields: Any) -> EvaluationSpec:
    models = [Asked(name=name, content="1", at_once=1) for name in ("new", "old")]
    least = {
        "job_id": "e", "socket": "s", "request_timeout": 1, "models": models, "file": "f", "rows_in_file": 1,
        "seed": 1, "max_tokens": 5, "memory_bytes": 1,
    }  # fmt: skip
    return EvaluationSpec.model_validate({**least, **fields})


def judged(
    tmp_path: Path, pairs: list[Pair], said: list[tuple[str, str]], labelled: list[Pair] | None = None
) -> Judgements:
    judging = Judging(spec(), JUDGE, [pairs], labelled or [])
    answers = AnswersFile(tmp_path / "j.jsonl")
    flat = [one for both in said for one in both]
    assert len(judging.questions) == len(flat)
    for row, one in enumerate(flat):
        answers.keep((0, row, "answer"), Kept(json.dumps({"winner": one})))
    found = judging.judged(answers)
    answers.close()
    return found


def test_an_answer_wins_only_in_both_orders(tmp_path: Path) -> None:
    pairs = [Pair(question(n), f"new {n}", f"old {n}") for n in range(7)]
    said = [
        ("A", "B"),
        ("B", "A"),
        ("A", "A"),
        ("B", "B"),
        ("tie", "tie"),
        ("A", "tie"),
        ("?", "B"),
    ]
    found = judged(tmp_path, pairs, said)
    assert found.outcomes(1) == ["win", "loss", "tie", "tie", "tie", "tie", "tie"]
    (report,) = found.report(["old"])
    assert (report.wins, report.ties, report.losses) == (1, 5, 1)
    assert (report.inconsistent, report.unjudged) == (2, 1)
    assert report.first_preferred == 5 / 10
    ours, theirs = found.pair(1)
    assert (ours.value(), theirs.value()) == (0.5, 0.5)
    assert difference(ours, theirs, 0, 500).value == 0.0
    assert found.table(0).value() == 0.5


def test_of_three_models_each_pair_has_its_own_win_rate() -> None:
    from tunewright.evaluator.pairs import Judgement

    win, loss = Judgement("win"), Judgement("loss")
    found = Judgements("j", [[win, win], [win, loss]], [], 0)
    assert found.table(0).value() == 0.75
    assert [found.table(other).value() for other in (1, 2)] == [0.0, 0.5]
    assert [found.pair(other)[0].value() for other in (1, 2)] == [1.0, 0.5]


def test_equal_and_missing_answers_need_no_judge(tmp_path: Path) -> None:
    pairs = [Pair(question(), "a", "a"), Pair(question(), None, "a"), Pair(question(), "a", None)]
    found = judged(tmp_path, [*pairs, Pair(question(), None, None)], [])
    assert found.outcomes(1) == ["tie", "loss", "win", "tie"]
    assert found.report(["old"])[0].first_preferred is None


def test_the_judge_sees_the_request_the_reference_and_both_orders() -> None:
    first, second = Pair(question(), "four", "five").questions(JUDGE)
    assert first.messages is not None
    assert first.messages[0] == {"role": "system", "content": INSTRUCTIONS}
    text = first.messages[1]["content"]
    for part in ("2 + 2?", "[Reference answer]\n4", "[Answer A]\nfour", "[Answer B]\nfive"):
        assert part in text
    assert second.messages is not None
    assert "[Answer A]\nfive" in second.messages[1]["content"]
    assert first.asked()["response_format"]["type"] == "json_schema"
    hidden = JUDGE.model_copy(update={"show_expected": False, "instructions": "Mine."})
    other = Pair(question(), "four", "five").questions(hidden)[0]
    assert other.messages is not None
    assert other.messages[0]["content"] == "Mine."
    assert "Reference" not in other.messages[1]["content"]


def test_a_judge_is_calibrated_on_pairs_of_which_the_better_is_known(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled = labelled_pairs(spec(file=str(file)), 30)
    assert len(labelled) == 30
    assert (labelled[3].first, labelled[3].second, labelled[3].row.expected) == ("good 3", "bad 3", "")
    right = judged(tmp_path, [], [("A", "B")] * 30, labelled).calibration()
    assert right is not None
    assert (right.rows, right.agreement, right.kappa, right.ties) == (30, 1.0, 1.0, 0)
    (tmp_path / "j.jsonl").unlink()
    random = np.random.default_rng(2)
    guesses = [("A", "B") if random.random() < 0.5 else ("B", "A") for _ in range(30)]
    chance = judged(tmp_path, [], guesses, labelled).calibration()
    assert chance is not None
    assert chance.kappa is not None
    assert abs(chance.kappa) < 0.5
    assert judged(tmp_path, [Pair(question(), "a", "a")], []).calibration() is None


# elsewhere


async def _with_judge(handler: Any, **options: Any) -> Any:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    given = {
        "judge_url": f"http://127.0.0.1:{port}/v1/", "judge_model": "big", "judge_api_key": "secret", **options,
    }  # fmt: skip
    judge = ExternalJudge.of(ServerOptions(**given))
    assert judge is not None
    try:
        return await judge.ask({"model": "other", "messages": []})
    finally:
        await judge.close()
        await runner.cleanup()


def test_a_judge_elsewhere_is_asked_with_the_operators_model_and_key() -> None:
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.headers.get("Authorization"), await request.json()))
        return web.json_response({"choices": []})

    assert asyncio.run(_with_judge(answer)) == (200, b'{"choices": []}')
    assert seen == [("Bearer secret", {"model": "big", "messages": []})]
    assert ExternalJudge.of(ServerOptions(judge_url="https://a.example/v1")) is None
    assert ExternalJudge.of(ServerOptions()) is None


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (429, EngineUnavailable, "engine_unavailable"),
        (503, EngineUnavailable, "engine_unavailable"),
        (500, Internal, "internal_error"),
        (401, InvalidRequest, "judge_refused"),
        (302, InvalidRequest, "judge_refused"),
        (400, InvalidRequest, "invalid_value"),
    ],
)
def test_what_a_judge_elsewhere_refuses_is_told(status: int, error: type[TunewrightError], code: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text="no", headers={"Location": "http://127.0.0.1:1/"})

    with pytest.raises(error, match=f"answered with {status}: no") as caught:
        asyncio.run(_with_judge(answer))
    assert caught.value.code == code


@pytest.mark.parametrize("url", ["ftp://a/v1", "https://user:key@a/v1", "a.example", "https://a/v1?key=1"])
def test_what_is_no_url_of_a_judge_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="judge_url"):
        ServerOptions(judge_url=url)
