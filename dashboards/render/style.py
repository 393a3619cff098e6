"""Colours and sizes of the pictures, similar to Grafana's dark theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PAGE, PANEL, EDGE, GRID = "#111217", "#181b1f", "#2c2f36", "#2a2d33"
TEXT, FAINT = "#d5d6da", "#8e9099"

NAMED = {
    "green": "#73bf69",
    "red": "#f2495c",
    "orange": "#ff9830",
    "yellow": "#fade2a",
    "blue": "#5794f2",
    "purple": "#b877d9",
    "transparent": "none",
}
SERIES = (
    "#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#7c4dff", "#37872d", "#e0b400",
)  # fmt: skip

TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 9.5, 8.0, 7.0


def color_at(value: float, steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the colour of a value by the thresholds of its panel."""
    color = steps[0]["color"]
    for step in steps[1:]:
        if value >= step["value"]:
            color = step["color"]
    return NAMED[color]
