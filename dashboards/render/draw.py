"""Draw one panel. Panels without a time axis (numbers, bars, tables) are drawn here, the others in `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from dashboards.render import plots, style
from dashboards.render.evaluate import Answers, Named
from dashboards.render.plots import Area
from dashboards.render.units import text

DRAWN_IN_PLOTS = {"timeseries": plots.lines, "state-timeline": plots.states, "heatmap": plots.heat}


def draw(panel: Mapping[str, Any], found: Sequence[Named], answers: Answers, area: Area, w: float, h: float) -> None:
    """Draw a panel with its series, into `w` by `h` pixels. Raises `ValueError` for an unknown kind of panel."""
    kind = panel["type"]
    if kind in DRAWN_IN_PLOTS:
        DRAWN_IN_PLOTS[kind](panel, found, answers, area, w, h)
    elif kind == "stat":
        _number(panel, found, area(0, 0, w, h), w, h)
    elif kind == "bargauge":
        _bars(panel, found, _flat(area(8, 0, w - 16, h - 6), w - 16, h - 6))
    elif kind == "table":
        _table(panel, found, _flat(area(8, 0, w - 16, h - 6), w - 16, h - 6))
    else:
        raise ValueError(f"no way to draw a panel of the kind {kind!r}: add it to {__name__}")


def _number(panel: Mapping[str, Any], found: Sequence[Named], axes: Axes, w: float, h: float) -> None:
    axes.set_axis_off()
    defaults, options = panel["fieldConfig"]["defaults"], panel["options"]
    one = found[0]
    value = _last(one)
    color = style.color_at(value, defaults["thresholds"]["steps"])
    has_history = options["graphMode"] == "area" and len(one.series.values) > 1
    content = one.name if options["textMode"] == "name" else text(value, defaults["unit"])
    size = min(28.0, 0.95 * w / max(4, len(content)))
    y = 0.66 if has_history else 0.55
    centred: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold", "transform": axes.transAxes}
    axes.text(0.5, y, content, size=size, color=color, **centred)
    if has_history:
        times, values = one.series.times, one.series.values
        most = max((number for number in values if not isnan(number)), default=0.0)
        axes.set_xlim(times[0], times[-1])
        axes.set_ylim(0, max(most, 1e-9) * 3.2)
        axes.fill_between(times, 0, values, color=color, alpha=0.18, linewidth=0)
        axes.plot(times, values, color=color, linewidth=1)


def _bars(panel: Mapping[str, Any], found: Sequence[Named], axes: Axes) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    most = defaults.get("max") or max((_last(one) for one in found), default=0.0) or 1.0
    width, height = axes.get_xlim()[1], axes.get_ylim()[0]
    label, number = 74.0, 84.0
    each = height / len(found)
    room = width - label - number
    for row, one in enumerate(found):
        value = _last(one)
        color = style.color_at(value, defaults["thresholds"]["steps"])
        y, thick = each * row + each * 0.2, each * 0.6
        axes.text(label - 8, y + thick / 2, one.name, size=9, color=style.TEXT, ha="right", va="center")
        axes.add_patch(Rectangle((label, y), room, thick, color=style.GRID))
        axes.add_patch(Rectangle((label, y), room * min(1.0, value / most), thick, color=color, alpha=0.75))
        written = text(value, defaults["unit"])
        axes.text(width - 4, y + thick / 2, written, size=10, color=color, ha="right", va="center", weight="bold")


def _table(panel: Mapping[str, Any], found: Sequence[Named], axes: Axes) -> None:
    organize = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
    names: Mapping[str, str] = organize["renameByName"]
    key = min(organize["indexByName"], key=organize["indexByName"].__getitem__)
    rows: dict[str, dict[str, float]] = {}
    for one in found:
        rows.setdefault(one.series.labels[key], {})[names[f"Value #{one.letter}"]] = _last(one)
    width = axes.get_xlim()[1]
    each = (width - 120) / len(names)
    axes.text(4, 11, key, size=8.5, color=style.NAMED["blue"], va="center", weight="bold")
    for column, name in enumerate(names.values()):
        x = 120 + each * (column + 1) - 8
        axes.text(x, 11, name, size=8.5, color=style.NAMED["blue"], ha="right", va="center", weight="bold")
    for row, (label, values) in enumerate(sorted(rows.items())):
        y = 11 + 26 * (row + 1)
        axes.plot([0, width], [y - 13, y - 13], color=style.EDGE, linewidth=0.8)
        axes.text(4, y, label, size=9, color=style.TEXT, va="center")
        for column, name in enumerate(names.values()):
            written = text(values.get(name, nan), panel["fieldConfig"]["defaults"]["unit"])
            axes.text(120 + each * (column + 1) - 8, y, written, size=9, color=style.TEXT, ha="right", va="center")


def _flat(axes: Axes, width: float, height: float) -> Axes:
    """Return the axes, measured in pixels from their top left corner."""
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


def _last(one: Named) -> float:
    return next((value for value in reversed(one.series.values) if not isnan(value)), nan)
