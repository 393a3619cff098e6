"""The committed dashboards: plain JSON, as Grafana reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dashboards.boards import NAMES, path_of


def dashboard(name: str) -> dict[str, Any]:
    """Return one dashboard."""
    found: dict[str, Any] = json.loads(path_of(name).read_text(encoding="utf-8"))
    return found


def panels(name: str) -> list[dict[str, Any]]:
    """Return the panels of a dashboard, without row headings."""
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str, str]]:
    """Yield every query of a panel or an annotation: its place, its expression, its legend."""
    for name in NAMES:
        for panel in panels(name):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']} {target['refId']}", target["expr"], target["legendFormat"]
        for annotation in dashboard(name)["annotations"]["list"]:
            yield f"{name}: annotation {annotation['name']}", annotation["expr"], ""
