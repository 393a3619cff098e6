"""Draw panels with a time axis: lines, bands of states, heat maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import ceil, isnan, log2, nan
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, MultipleLocator

from dashboards.render import style
from dashboards.render.evaluate import Answers, Named
from dashboards.render.units import text

Area = Callable[[float, float, float, float], Axes]
"""Makes axes at x, y with a width and a height, in pixels from the top left corner below the panel's title."""

LEFT, RIGHT, BOTTOM = 62.0, 12.0, 22.0
LEGEND_LINE = 15.0
LEGEND_LINES = 5
"""Series in a legend, as many as fit. Grafana scrolls instead."""


def lines(panel: Mapping[str, Any], found: Sequence[Named], answers: Answers, area: Area, w: float, h: float) -> None:
    """Draw lines, steps or stacked areas, with the table of the legend below."""
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    shown = min(len(found), LEGEND_LINES)
    legend = LEGEND_LINE * (shown + 1) + 6
    axes = area(LEFT, 4, w - LEFT - RIGHT, h - BOTTOM - legend - 4)
    _time_axis(axes, answers)
    colors = [_color(panel, index, one.name) for index, one in enumerate(found)]
    is_stacked = custom.get("stacking", {}).get("mode") == "normal"
    where: Literal["post"] | None = "post" if custom.get("lineInterpolation") == "stepAfter" else None
    drawstyle: Literal["steps-post", "default"] = "steps-post" if where else "default"
    opacity = custom.get("fillOpacity", 0) / 100
    base = [0.0] * len(_grid(answers))
    for one, color in zip(found, colors, strict=True):
        times, values = _on_grid(one, answers)
        if is_stacked and _greatest(one) > 0:
            base, low = [b + (0 if isnan(v) else v) for b, v in zip(base, values, strict=True)], base
            axes.fill_between(times, low, base, color=color, alpha=opacity, linewidth=0)
            axes.plot(times, base, color=color, linewidth=1.2)
        if is_stacked:
            continue
        dash = (0, (5, 4)) if _override(panel, one.name, "custom.lineStyle") else "solid"
        axes.plot(times, values, color=color, linewidth=1.3, linestyle=dash, drawstyle=drawstyle)
        if opacity and dash == "solid":
            axes.fill_between(times, 0, values, color=color, alpha=opacity, linewidth=0, step=where)
    most = max(max(base), *(_greatest(one) for one in found), 0.0)
    top = defaults.get("max") or (most * 1.12 if most > 0 else 1.0)
    axes.set_ylim(0, top * 1.02 if "max" in defaults else top)
    if "thresholds" in defaults:
        for step in defaults["thresholds"]["steps"][1:]:
            if step["value"] <= axes.get_ylim()[1]:
                axes.axhline(step["value"], color=style.NAMED[step["color"]], linewidth=1, linestyle=(0, (4, 4)))
    axes.yaxis.set_major_locator(_ticks(defaults["unit"], axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value, defaults["unit"])))
    _losses(axes, answers)
    _legend(area(8, h - legend, w - 16, legend - 2), found, colors, defaults["unit"], shown)


def states(panel: Mapping[str, Any], found: Sequence[Named], answers: Answers, area: Area, w: float, h: float) -> None:
    """Draw a band for each series, with the colour and the text of each state for as long as it lasts."""
    mapping = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    left = 130.0
    axes = area(left, 4, w - left - RIGHT, h - BOTTOM - 8)
    _time_axis(axes, answers)
    axes.grid(False)
    per_second = axes.bbox.width / (answers.window.end - answers.window.start)
    for row, one in enumerate(found):
        for start, end, value in _runs(one, answers.window.step):
            state = mapping[f"{value:g}"]
            axes.broken_barh([(start, end - start)], (row - 0.4, 0.8), color=style.NAMED[state["color"]], alpha=0.8)
            if (end - start) * per_second > 6.5 * len(state["text"]):
                axes.text((start + end) / 2, row, state["text"], ha="center", va="center", size=8, color="#111217")
    axes.set_yticks(range(len(found)), [one.name for one in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    _losses(axes, answers)


def heat(panel: Mapping[str, Any], found: Sequence[Named], answers: Answers, area: Area, w: float, h: float) -> None:
    """Draw a histogram over time as cells. Prometheus' buckets are cumulative: a cell is what its bucket adds."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    buckets = sorted(found, key=lambda one: float(one.series.labels["le"]))
    rows: list[list[float]] = []
    below = [0.0] * len(_grid(answers))
    for one in buckets:
        values = [0.0 if isnan(value) else value for value in _on_grid(one, answers)[1]]
        rows.append([max(0.0, value - less) for value, less in zip(values, below, strict=True)])
        below = values
    used = [index for index, row in enumerate(rows) if any(value > 0 for value in row)]
    rows, buckets = rows[: used[-1] + 1], buckets[: used[-1] + 1]
    axes = area(LEFT, 4, w - LEFT - RIGHT, h - BOTTOM - 10)
    _time_axis(axes, answers)
    axes.grid(False)
    cells = [[value if value > 0 else nan for value in row] for row in rows]
    most = max(value for row in rows for value in row)
    grid = _grid(answers)
    edges = [*grid, grid[-1] + answers.window.step]
    norm = PowerNorm(0.5, 0, most)
    axes.pcolormesh(edges, range(len(rows) + 1), cells, cmap=colormaps["Oranges_r"].reversed(), norm=norm)
    names = [_bound(one.series.labels["le"], unit) for one in buckets]
    every = 1 + len(names) // 12
    axes.set_yticks([n + 1 for n in range(len(names))][::every], names[::every])
    _losses(axes, answers)


# --- inside ---


def _time_axis(axes: Axes, answers: Answers) -> None:
    window = answers.window
    axes.set_facecolor("none")
    axes.set_xlim(window.start, window.end)
    axes.grid(True, color=style.GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=style.FAINT, labelsize=style.SMALL_SIZE, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    first = window.start - window.start % 15 + 15
    ticks = [first + 15 * n for n in range(int((window.end - first) // 15) + 1)]
    axes.set_xticks(ticks, [f"{datetime.fromtimestamp(tick, UTC):%H:%M:%S}" for tick in ticks])


def _ticks(unit: str, top: float) -> Locator:
    if unit == "bytes":
        return MultipleLocator(2 ** ceil(log2(top / 5)))
    return MaxNLocator(5, integer=unit == "short")


def _losses(axes: Axes, answers: Answers) -> None:
    for time in answers.losses:
        axes.axvline(time, color=style.NAMED["red"], linewidth=0.9, linestyle=(0, (2, 3)), alpha=0.9)


def _legend(axes: Axes, found: Sequence[Named], colors: Sequence[str], unit: str, shown: int) -> None:
    axes.set_axis_off()
    width, height = axes.bbox.width, axes.bbox.height
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    columns = (("Mean", width - 84), ("Max", width - 4))
    more = f"Name   (and {len(found) - shown} more)" if len(found) > shown else "Name"
    axes.text(2, 7, more, size=style.SMALL_SIZE, color=style.FAINT, va="center")
    for name, x in columns:
        axes.text(x, 7, name, size=style.SMALL_SIZE, color=style.FAINT, ha="right", va="center")
    room = int((width - 190) / 5.0)
    for row, (one, color) in enumerate(zip(found[:shown], colors[:shown], strict=True)):
        y = LEGEND_LINE * (row + 1) + 7
        axes.plot([3, 15], [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
        name = one.name if len(one.name) <= room else one.name[: room - 1] + "…"
        axes.text(21, y, name, size=style.SMALL_SIZE, color=style.TEXT, va="center")
        numbers = [value for value in one.series.values if not isnan(value)]
        mean = sum(numbers) / len(numbers) if numbers else nan
        for (_, x), value in zip(columns, (mean, max(numbers, default=nan)), strict=True):
            axes.text(x, y, text(value, unit), size=style.SMALL_SIZE, color=style.TEXT, ha="right", va="center")


def _color(panel: Mapping[str, Any], index: int, name: str) -> str:
    fixed = _override(panel, name, "color")
    return style.NAMED[fixed["fixedColor"]] if fixed else style.SERIES[index % len(style.SERIES)]


def _override(panel: Mapping[str, Any], name: str, key: str) -> Any:
    for override in panel["fieldConfig"].get("overrides", ()):
        matcher = override["matcher"]
        matches = matcher["options"] == name if matcher["id"] == "byName" else re.fullmatch(matcher["options"], name)
        for one in override["properties"]:
            if matches and one["id"] == key:
                return one["value"]
    return None


def _grid(answers: Answers) -> list[float]:
    window = answers.window
    return [window.start + window.step * n for n in range(round((window.end - window.start) / window.step) + 1)]


def _on_grid(one: Named, answers: Answers) -> tuple[list[float], list[float]]:
    """Return a series at every step of the window, with NaN where it has no point so that gaps are visible."""
    points = dict(zip((round(time, 3) for time in one.series.times), one.series.values, strict=True))
    grid = _grid(answers)
    return grid, [points.get(round(time, 3), nan) for time in grid]


def _greatest(one: Named) -> float:
    return max((value for value in one.series.values if not isnan(value)), default=0.0)


def _runs(one: Named, step: float) -> list[tuple[float, float, float]]:
    runs: list[tuple[float, float, float]] = []
    for time, value in zip(one.series.times, one.series.values, strict=True):
        if runs and runs[-1][2] == value and time - runs[-1][1] < step:
            runs[-1] = (runs[-1][0], time + step, value)
        else:
            runs.append((time, time + step, value))
    return runs


def _bound(le: str, unit: str) -> str:
    return "more" if le == "+Inf" else text(float(le), unit)
