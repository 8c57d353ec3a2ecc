"""Reports on models and model cards: what they say, and that nothing in them acts."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient
from tests.unit.test_api import BASE, Make, api, built, error, make, upload, worker  # noqa: F401

from counted import count_here
from judged import add_evaluation, report_of
from rows import FILE, Publish, create_job, engine_info
from tunewright.api.models.report.card import card_of
from tunewright.api.models.report.curves import curves
from tunewright.api.models.report.document import Document, Result, Section, Text
from tunewright.evaluator.report import LoadFigures
from tunewright.evaluator.verdict import judge
from tunewright.metrics.verdicts import Limit, Reason, TargetVerdict, Verdict, overall
from tunewright.registry.aliases import AliasRequirement, AliasTarget
from tunewright.store.records import Job
from tunewright.store.states import EngineState, JobState
from tunewright.store.store import Store
from tunewright.store.tables import jobs

pytestmark = pytest.mark.each_database

FT, PARENT = "ft:tunewright-tiny:quiz:2", "ft:tunewright-tiny:quiz:1"
ROWS = b"".join(
    json.dumps({"prompt": f"<script>{number}", "completion": str(number)}).encode() + b"\n"
    for number in range(40)
)
PARITY = {"verdict": "pass", "reason": "The engine does what peft does.", "checked_at": 1.0, "slope": 1.01}


class Page(HTMLParser):
    """The tags, the texts and the pictures of a page. Raises for anything that acts or comes from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.pictures: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in (
            "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "section", "table", "tr", "th",
            "td", "img", "footer",
        )  # fmt: skip
        for name, value in attrs:
            assert name in ("lang", "charset", "name", "content", "http-equiv", "class", "src", "alt")
            if name == "src":
                assert (value or "").startswith("data:image/svg+xml;base64,")
                self.pictures.append(base64.b64decode((value or "").partition(",")[2]).decode())
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


@pytest.fixture
def job(store: Store, api: TestClient) -> Job:  # noqa: F811
    file = upload(api, ROWS, "train <b>.jsonl")
    store.engines.starting(BASE, "/tmp/s", engine_info(fingerprint="f" * 64))
    store.engines.set_state(BASE, EngineState.READY)
    made = create_job(store, base=BASE, model=BASE, training_file=file, state=JobState.RUNNING)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.5)):
        data: dict[str, Any] = {"step": step, "train_loss": loss} | ({"valid_loss": 2.5} if step == 2 else {})
        store.jobs.add_event(made, {"level": "info", "type": "metrics", "message": "", "data": data})
    return made


@pytest.fixture
def model(store: Store, job: Job, publish_model: Publish) -> str:
    publish_model({"name": PARENT, "base": BASE, "sha256": "1" * 64})
    lineage = {
        "parent_sha256": "1" * 64, "training_file": job.file("training_file"), "training_sha256": "5" * 64, "seed": 4,
        "metrics": {"train_loss": 1.5},
    }  # fmt: skip
    row = {"name": FT, "base": BASE, "sha256": "2" * 64, "lineage": lineage, "parity": PARITY}
    publish_model(row, {**row, "name": f"{FT}:ckpt-2", "sha256": "3" * 64, "checkpoint_step": 2}, job=job)
    return FT


def evaluate(store: Store) -> str:
    report = report_of(FT, against={BASE: (0.5, 0.4, 0.6)})
    report.judgement = judge(report, [Limit(metric="accuracy", min=0.8)])
    return add_evaluation(store, {FT: "2" * 64, BASE: "f" * 64}, report, filename="test|<i>.jsonl")


def test_a_report_has_what_a_reviewer_asks_for(
    api: TestClient,  # noqa: F811
    store: Store,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count_here(monkeypatch)
    id = evaluate(store)
    verdict = TargetVerdict(
        model=FT, evaluation=id, verdict=Verdict.FAIL,
        reasons=[Reason(name="min", verdict=Verdict.FAIL, message="accuracy is 0.4")],
    )  # fmt: skip
    store.aliases.put(
        "quiz", (AliasTarget(FT),), require=AliasRequirement(no_forgetting=True), judge=lambda *_: [verdict],
        force=True, who="ann",
    )  # fmt: skip
    answer = api.get(f"/v1/models/{FT}/report")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = Page(answer.text)
    for told in (
        FT, "2" * 64, "lora", "q_proj",
        "train <b>.jsonl", "5" * 64, "tokens of an epoch",
        "checkpoint",
        "The engine does what peft does.", "1.01",
        "test|<i>.jsonl", id, "0.9 (0.85 to 0.94)", "0.5 (0.4 to 0.6)", "verdict", "min is 0.8",
        "<b>1 + 1?</b>", "The rows that differ most from tunewright-tiny in accuracy:",
        "quiz, version 1", "ann", "fail (set by force)", "accuracy is 0.4",
        PARENT, "1" * 64,
    ):  # fmt: skip
        assert told in page.text, told
    titles = [ElementTree.fromstring(picture)[0].text for picture in page.pictures]
    assert titles[0] == "Loss, nats per token"
    assert (titles[1] or "").startswith("train <b>.jsonl: 40 rows")
    assert "validation loss" in page.pictures[0]
    by_alias = api.get("/v1/models/quiz/report")
    assert Page(by_alias.text).texts[:2] == page.texts[:2]


def test_a_card_has_front_matter_that_hubs_read_and_escapes_the_rest(
    api: TestClient,  # noqa: F811
    store: Store,
    model: str,
) -> None:
    evaluate(store)
    answer = api.get(f"/v1/models/{FT}/card")
    assert answer.headers["content-type"].startswith("text/markdown")
    _, front, body = answer.text.split("---\n", 2)
    import yaml

    read = yaml.safe_load(front)
    assert (read["base_model"], read["library_name"], read["tags"]) == (BASE, "peft", ["tunewright", "lora"])
    result = read["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "test|<i>.jsonl"
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9}]
    assert "### test\\|\\<i\\>.jsonl" in body
    assert "<" not in body.replace("\\<", ""), "no HTML of a user's"
    for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_no_name_of_a_users_is_more_than_a_text_in_a_card() -> None:
    """What GitHub and the hubs make links, marks or entities of; and characters beyond JSON's sixteen bits, whose
    escapes YAML does not have."""
    import yaml

    name = (
        "\U0001f600 \\ud83d\\ude00 \u2028\x7f &lt; ~~a~~ www.a.example https://a.example a@a.example ![a](b) "
        "\u202e\x1b"
    )
    results = (Result(name, "5" * 64, name, 0.5),)
    card = card_of(Document(name, name, (Section(name, (Text(name),)),), base=name, results=results), name)
    _, front, body = card.split("---\n", 2)
    read = yaml.safe_load(front)
    assert read["base_model"] == read["model-index"][0]["name"] == name
    assert read["model-index"][0]["results"][0]["dataset"]["name"] == name
    told = r"\&lt; \~\~a\~\~ www\.a.example https\://a.example a\@a.example !\[a\](b)"
    assert body.count(told) == 5
    assert body.replace("\n", "").isprintable()


def test_latency_and_suites_are_told_too(api: TestClient, store: Store, model: str) -> None:  # noqa: F811
    """Evaluations without a file, and of latency without figures."""
    suite = report_of(FT)
    suite.why = "the suite mmlu"
    suite.judgement = overall([Reason(name="forgetting", verdict=Verdict.PASS, message="mmlu is 1.0% below")])
    add_evaluation(store, {FT: "2" * 64}, suite, filename="", sha256="", suite={"name": "mmlu"})
    loads = suite.model_copy(update={"models": [], "why": "latency under loads", "judgement": None})
    loads.loads = [
        LoadFigures(
            model=FT, at_once=4, requests=10, failed=0, first_error=None, prompt_tokens=16, tokens=50, seconds=2.0,
            tokens_per_second=25.0, tokens_per_second_low=20.0, tokens_per_second_high=30.0, first_token=None,
            between_tokens=None, whole=None, price_per_million_tokens=None, currency=None,
        )
    ]  # fmt: skip
    id = add_evaluation(store, {FT: "2" * 64}, suite)
    values = {"report": loads.model_dump(mode="json")}
    with store.database.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == id).values(**values))
    page = Page(api.get(f"/v1/models/{FT}/report").text)
    for told in ("the suite mmlu (eval-", "mmlu is 1.0% below", "tokens/s", "25"):
        assert told in page.text, told
    assert "the suite mmlu" in api.get(f"/v1/models/{FT}/card").text
    require = {"evaluation": {"data": FILE["id"], "metric": "accuracy"}, "min": 0.1}
    put = {"targets": [{"model": FT}], "wait": False, "require": require}
    refused = error(api.put("/v1/aliases/fast", json=put), 409)
    assert refused["code"] == "gate_not_passed", "one of latency has no figure for a gate"


def test_of_a_base_and_of_what_is_gone_the_rest_is_told(
    api: TestClient,  # noqa: F811
    store: Store,
    model: str,
    job: Job,
) -> None:
    base = Page(api.get(f"/v1/models/{BASE}/report").text)
    assert "A base that is served here as it is." in base.text
    assert "It was not evaluated here" in base.text
    file = job.file("training_file")
    assert api.delete(f"/v1/files/{file}").status_code == 200
    assert "the file is no longer here" in Page(api.get(f"/v1/models/{FT}/report").text).text


def test_what_is_no_one_model_is_refused(api: TestClient, store: Store, model: str) -> None:  # noqa: F811
    store.aliases.put("two", (AliasTarget(FT), AliasTarget(BASE)))
    for kind in ("report", "card"):
        assert error(api.get(f"/v1/models/none/{kind}"), 404)["code"] == "model_not_found"
        assert error(api.get(f"/v1/models/two/{kind}"), 400)["code"] == "alias_is_split"
        refused = api.put(f"/v1/aliases/a/{kind}", json={"targets": [{"model": FT}], "wait": False})
        assert f"/{kind}" in error(refused, 400)["message"], "its report could not be asked for"


def test_curves_show_each_finite_point_in_its_place() -> None:
    drawn = curves("Loss <1>", {"a": [(1, 3.0), (2, float("nan")), (3, 1.0)], "b": []})
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 1
    (left, top), (right, bottom) = (map(float, pair.split(",")) for pair in lines[0].attrib["points"].split())
    assert left < right
    assert top < bottom, "a smaller loss is lower"
    assert curves("x", {"a": [(1, float("inf"))]}) is None
    assert curves("x", {"a": [(5, 1.0)]}) is not None
    many = curves("x", {"a": [(step, 1.0 / (step + 1)) for step in range(100_000)]})
    assert many is not None
    assert len(many) < 100_000
    assert many.count(",") > 400
