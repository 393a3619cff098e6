"""The pictures: queries without data are reported, every kind of panel is drawn, and the scenario gives data to all."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from math import nan
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dashboards.boards import NAMES
from dashboards.interpolation import Window
from dashboards.render.evaluate import evaluate
from dashboards.render.prometheus import Prometheus, Series
from dashboards.render.style import color_at
from dashboards.render.units import text
from tests.dashboards.committed import dashboard

WINDOW = Window(start=1000.0, end=1060.0, step=1, scrape_interval=1)
LABELS = {
    "kind": ("delay", "retry"),
    "connection": ("edge", "core"),
    "instance": ("router-1",),
    "route": ("orders",),
    "destination": ("out.{{wildcard(1)}}",),
    "destination_connection": ("core",),
    "reason": ("queue_full", "not_connected"),
    "fate": ("acked", "dropped"),
    "version": ("1.2.3",),
    "outcome": ("accepted", "refused"),
    "hash": ("628989adbe37",),
    "le": ("0.1", "1", "+Inf"),
}


class Invented(Prometheus):
    """Answers all queries except those of one metric, with the labels that a query groups by and values of states."""

    def __init__(self, without: str = "nothing at all") -> None:
        super().__init__("http://127.0.0.1:1")
        self._without = without

    def over(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        times = [start + step * n for n in range(round((end - start) / step) + 1)]
        values = [float(n % 2) for n in range(len(times))]
        if self._without in expression:
            values = [nan] * len(times)
        if "> 0" in expression and "increase" in expression:
            times, values = times[10:15] + times[40:44], [1.0] * 9
        return [Series(labels, times, values) for labels in self._labels(expression)]

    def at(self, expression: str, time: float) -> list[Series]:
        return [Series(one.labels, [time], [one.values[-1]]) for one in self.over(expression, time - 60, time, 1)]

    def _labels(self, expression: str) -> list[dict[str, str]]:
        grouped = re.search(r"by \((?P<labels>[^)]+)\)", expression)
        names = grouped["labels"].split(", ") if grouped else ["instance"]
        if "histogram_quantile" in expression:
            names.remove("le")
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*(LABELS[n] for n in names))]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_panel_is_drawn(name: str, tmp_path: Path) -> None:
    from dashboards.render.sheet import save  # matplotlib takes a while, which each worker would spend on collecting

    board = dashboard(name)
    answers = evaluate(board, Invented(), WINDOW)
    assert answers.missing == []
    assert set(answers.losses) == {1010.0, 1040.0}
    path = tmp_path / "picture.png"
    save(board, answers, path)
    with Image.open(path) as picture:
        assert picture.width > 1500
        assert picture.height > 1000
        # A picture of empty frames would have only a few colours.
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50


def test_a_query_without_data_is_reported() -> None:
    board = dashboard("pending")
    missing = evaluate(board, Invented(without="router_nats_pending_oldest_age_seconds"), WINDOW).missing
    assert [line.partition(":")[0] for line in missing] == [
        "Router Trio / Pending, Oldest A",
        "Router Trio / Pending, Age of the oldest A",
    ]


def test_legends_name_their_series() -> None:
    board = dashboard("delivery")
    answers = evaluate(board, Invented(), WINDOW)
    names = {panel["title"]: [one.name for one in answers.panels[panel["id"]]] for panel in board["panels"][1:]
             if panel["type"] == "timeseries"}  # fmt: skip
    assert names["Fates"] == ["acked", "dropped"]
    assert names["Acks and naks"] == ["edge ack", "core ack", "edge nak", "core nak"]


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0, "short", "0"),
        (1234, "short", "1.23 K"),
        (1234567, "locale", "1,234,567"),
        (12.34, "mps", "12.3 msg/s"),
        (0.0144, "percentunit", "1.44%"),
        (1536, "bytes", "1.5 KiB"),
        (0.0005, "s", "500 µs"),
        (90, "s", "1.5 min"),
        (0, "s", "0 s"),
        (nan, "s", "-"),
    ],
)
def test_numbers_are_written_in_their_unit(value: float, unit: str, written: str) -> None:
    assert text(value, unit) == written


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="no way to write the unit 'furlong'"):
        text(1, "furlong")


def test_thresholds_give_a_value_its_colour() -> None:
    steps: list[dict[str, Any]] = [
        {"color": "green", "value": None},
        {"color": "orange", "value": 1},
        {"color": "red", "value": 60},
    ]
    assert [color_at(value, steps) for value in (0, 1, 59, 60)] == ["#73bf69", "#ff9830", "#ff9830", "#f2495c"]


@pytest.mark.nightly
@pytest.mark.timeout(180)
async def test_a_real_outage_gives_data_to_every_panel(tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        reason = "prometheus is not installed: apt-get install prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from dashboards.render.__main__ import record

    seen = await record(45.0, tmp_path)
    assert [line for answers in seen.values() for line in answers.missing] == []
    # Both servers were killed once, and both losses are marked.
    assert len(seen["connections"].losses) == 2
    board = dashboard("delivery")
    off_by = next(panel["id"] for panel in board["panels"] if panel["title"] == "Ledger off by")
    assert all(value == 0 for one in seen["delivery"].panels[off_by] for value in one.series.values)
