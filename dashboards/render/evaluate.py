"""Run the queries of every panel as Grafana does. A query that returns no number is a mistake in the dashboard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dashboards.interpolation import Window
from dashboards.render.prometheus import Prometheus, Series

_LABEL = re.compile(r"{{\s*(\w+)\s*}}")


@dataclass(frozen=True)
class Named:
    """A series of a panel, with its name in the legend and the letter of its query."""

    name: str
    letter: str
    series: Series


@dataclass
class Answers:
    """Query results of one dashboard: series by panel id, times of lost connections, and queries without data."""

    window: Window
    panels: dict[int, list[Named]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def evaluate(board: Mapping[str, Any], prometheus: Prometheus, window: Window) -> Answers:
    """Run all queries of a dashboard. Blocks. `missing` of the result lists the queries without data."""
    answers = Answers(window)
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        found: list[Named] = []
        for target in panel["targets"]:
            expression = window.interpolate(target["expr"])
            if target.get("range"):
                series = prometheus.over(expression, window.start, window.end, window.step)
            else:
                series = prometheus.at(expression, window.end)
            if not any(one.has_data for one in series):
                answers.missing.append(f"{board['title']}, {panel['title']} {target['refId']}: {expression}")
            found += [Named(_name(target["legendFormat"], one), target["refId"], one) for one in series]
        answers.panels[panel["id"]] = found
    for annotation in board["annotations"]["list"]:
        expression = window.interpolate(annotation["expr"])
        for one in prometheus.over(expression, window.start, window.end, window.step):
            answers.losses += _beginnings(one, window.step)
        if not answers.losses:
            answers.missing.append(f"{board['title']}, annotation {annotation['name']}: {expression}")
    return answers


def _name(legend: str, series: Series) -> str:
    if legend == "__auto":
        return ", ".join(series.labels.values()) or "value"
    return _LABEL.sub(lambda match: series.labels.get(match[1], ""), legend)


def _beginnings(series: Series, step: float) -> list[float]:
    before = [float("-inf"), *series.times[:-1]]
    return [time for time, previous in zip(series.times, before, strict=True) if time - previous > 1.5 * step]
