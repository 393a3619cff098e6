"""Metrics, log codes and other names that the documentation uses exist in the code: renaming one fails here."""

from __future__ import annotations

import re
from functools import cache

from router_trio.cli.contract import collect
from tests.docs.pages import ROOT, Page, pages

CONTRACT = collect()
METRICS = {metric["name"]: metric for metric in CONTRACT["metrics"]}
CODES = {log["code"] for log in CONTRACT["logs"]}

# Without the package, which is router_trio, and without parts of a recording rule's name.
_METRIC = re.compile(r"(?<![\w:/.])router_(?!trio)[a-z_]+(?![\w:])")
_RECORDED = re.compile(r"\b[a-z_]+:router_[a-z_]+:[a-z0-9_]+")
_CODE = re.compile(r"\b(?:NATS|ROUTER|ROUTE)_(?!TRIO)[A-Z_]+\b")
_SNAKE = re.compile(r"[a-z]+(?:_[a-z]+)+")
_SUFFIXES = ("_bucket", "_sum", "_count")

OF_NATS_SERVER = {"allow_responses", "ping_max", "sync_interval"}
"""Keys of a server's configuration that pages explain, and that no test sets."""

OF_OTHER_TOOLS = {
    "correlation_id",
    "create_stream",
    "disconnected_cb",
    "drop_on",
    "fan_out",
    "group_by",
    "max_retries",
    "max_workers",
    "nats_jetstream",
    "pending_size",
    "rate_limit",
    "read_until",
    "reconnected_cb",
    "reject_errored",
    "round_robin",
    "sql_select",
}
"""Names in nats-py, FastStream, Watermill and Benthos, on the pages about moving from there."""


def test_metrics_of_the_pages_exist() -> None:
    named = [(one, name) for one in pages() for name in _METRIC.findall(one.text)]
    assert [f"{one}: {name}" for one, name in named if name not in METRICS and not _of_histogram(name)] == []


def test_recording_rules_of_the_pages_exist() -> None:
    rules = (ROOT / "alerts" / "router_trio.rules.yml").read_text(encoding="utf-8")
    named = [(one, name) for one in pages() for name in _RECORDED.findall(one.text)]
    assert [f"{one}: {name}" for one, name in named if f"record: {name}\n" not in rules] == []


def test_log_codes_of_the_pages_exist() -> None:
    named = [(one, code) for one in pages() for code in _CODE.findall(one.text)]
    assert [f"{one}: {code}" for one, code in named if code not in CODES] == []


def test_names_in_inline_code_occur_in_the_code() -> None:
    named = [(one, span) for one in pages() for span in one.spans if _SNAKE.fullmatch(span)]
    assert [f"{one}: {span}" for one, span in named if span not in known_on(one)] == []


def test_the_patterns_find_known_names() -> None:
    text = "".join(one.text for one in pages())
    assert len(set(_METRIC.findall(text))) >= 30
    assert len(set(_CODE.findall(text))) >= 20
    assert len(set(_RECORDED.findall(text))) >= 3
    assert sum(bool(_SNAKE.fullmatch(span)) for one in pages() for span in one.spans) >= 50


def known_on(one: Page) -> frozenset[str]:
    """Return the names that a page may use in code."""
    return words() | OF_NATS_SERVER | (OF_OTHER_TOOLS if one.path.stem.startswith("from-") else frozenset())


@cache
def words() -> frozenset[str]:
    """Return every word of the sources: of the package, the alerts, and the tests that pages explain."""
    sources = [*(ROOT / "router_trio").rglob("*.py"), *(ROOT / "alerts").glob("*.yml")]
    sources += [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "docs"]
    return frozenset(word for path in sources for word in re.findall(r"\w+", path.read_text(encoding="utf-8")))


def _of_histogram(name: str) -> bool:
    return any(
        name.endswith(suffix) and METRICS.get(name.removesuffix(suffix), {}).get("type") == "histogram"
        for suffix in _SUFFIXES
    )
