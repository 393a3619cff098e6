"""Draw a dashboard into one picture: the grid of panels, their frames and titles, and the headings of rows."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from dashboards.render import style
from dashboards.render.draw import draw
from dashboards.render.evaluate import Answers

DPI = 100
COLUMNS = 24
UNIT_WIDTH, UNIT_HEIGHT = 66.0, 34.0
"""Pixels of one cell of Grafana's grid."""
GAP = 4.0
HEADER = 62.0
TITLE_BAR = 26.0
COLORS = 160
"""Colours in the palette of the picture: enough for lines on a dark background, at a quarter of the file size."""


def save(board: Mapping[str, Any], answers: Answers, path: Path) -> None:
    """Draw a dashboard into a PNG file."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    width, height = COLUMNS * UNIT_WIDTH + 2 * GAP, rows * UNIT_HEIGHT + HEADER + 2 * GAP
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=style.PAGE)
    page = _Page(figure, width, height)
    page.header(board)
    for panel in board["panels"]:
        if panel["type"] == "row":
            page.heading(panel)
        else:
            page.panel(panel, answers)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


class _Page:
    """A figure measured in pixels from its top left corner."""

    def __init__(self, figure: Figure, width: float, height: float) -> None:
        self._figure = figure
        self._width = width
        self._height = height

    def header(self, board: Mapping[str, Any]) -> None:
        self._text(3 * GAP, 22, board["title"], size=14, color=style.TEXT, weight="bold")
        self._text(3 * GAP, 44, board["description"], size=9, color=style.FAINT)
        names = [one["name"] for one in board["templating"]["list"] if one["type"] != "datasource"]
        choices = "     ".join(f"{name.capitalize()}: All" for name in names)
        self._text(self._width - 3 * GAP, 22, choices, size=9, color=style.FAINT, align="right")

    def heading(self, row: Mapping[str, Any]) -> None:
        left, top, _, height = self._place(row["gridPos"])
        self._text(left + 2 * GAP, top + height / 2, row["title"], size=11, color=style.TEXT, weight="bold")

    def panel(self, panel: Mapping[str, Any], answers: Answers) -> None:
        left, top, width, height = self._place(panel["gridPos"])
        frame = FancyBboxPatch(
            self._fraction(left, top + height),
            width / self._width,
            height / self._height,
            boxstyle="square,pad=0",
            facecolor=style.PANEL,
            edgecolor=style.EDGE,
            linewidth=0.8,
            zorder=-1,
            transform=self._figure.transFigure,
        )
        self._figure.add_artist(frame)
        self._text(left + 8, top + 13, panel["title"], size=style.TITLE_SIZE, color=style.TEXT, weight="bold")

        def area(x: float, y: float, w: float, h: float) -> Axes:
            """Return axes placed in pixels from the top left corner below the panel's title."""
            corner = self._fraction(left + x, top + TITLE_BAR + y + h)
            return self._figure.add_axes((*corner, w / self._width, h / self._height))

        draw(panel, answers.panels[panel["id"]], answers, area, width, height - TITLE_BAR)

    def _place(self, grid: Mapping[str, int]) -> tuple[float, float, float, float]:
        left, top = GAP + grid["x"] * UNIT_WIDTH, HEADER + GAP + grid["y"] * UNIT_HEIGHT
        return left + GAP / 2, top + GAP / 2, grid["w"] * UNIT_WIDTH - GAP, grid["h"] * UNIT_HEIGHT - GAP

    def _fraction(self, x: float, y: float) -> tuple[float, float]:
        return x / self._width, 1 - y / self._height

    def _text(
        self, x: float, y: float, content: str, *, size: float, color: str, weight: str = "normal", align: str = "left"
    ) -> None:
        x, y = self._fraction(x, y)
        self._figure.text(x, y, content, size=size, color=color, weight=weight, ha=align, va="center")
