"""The documentation page of the dashboards, generated from them so that the two can't differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel, RowPanel

PATH = Path(__file__).parent.parent / "docs" / "dashboards.md"

INTRODUCTION = """\
# Dashboards

<!-- Made by `python -m dashboards`. Change the code in dashboards/, not this page. -->

Five Grafana dashboards (Grafana 11.6 or newer) for the metrics of the router. Import the JSON files from
[`dashboards/`](../dashboards), or point Grafana's provisioning at that directory; then choose your Prometheus as the
data source at the top. They work with any job and instance, and link to each other and to the runbooks of the alerts.
Each panel has a description in Grafana: hover over the *i* beside its title.

The pictures show real data: `python -m dashboards.render` runs a router with traffic from a server `edge` to a server
`core`, kills `core` for a while and `edge` briefly, has a real Prometheus scrape the router every second, and draws
each panel from Prometheus' answers. It fails if a single panel has no data. The pictures are not drawn by Grafana, so
details look different there; red dashed lines mark lost connections, as annotations do in Grafana.
"""


def page(boards: Mapping[str, Dashboard]) -> str:
    """Return the text of the page."""
    return "\n".join([INTRODUCTION, *(line for name, board in boards.items() for line in _board(name, board))])


def _board(name: str, board: Dashboard) -> Iterator[str]:
    title = (board.title or name).rpartition("/")[2].strip()
    yield f"## {title}\n"
    yield f"{board.description}\n"
    yield f"![The dashboard {title}](img/dashboard-{name}.png)\n"
    yield "| row | panels | alerts |"
    yield "|---|---|---|"
    rows: dict[str, list[Panel]] = {}
    for panel in board.panels or ():
        if isinstance(panel, RowPanel):
            rows[panel.title or ""] = panels = []
        else:
            panels.append(panel)
    for row, panels in rows.items():
        titles = "; ".join(panel.title or "" for panel in panels)
        alerts = dict.fromkeys((link.title or "").rpartition(" ")[2] for panel in panels for link in panel.links or ())
        yield f"| {row} | {titles} | {', '.join(f'[{alert}](runbooks/{alert}.md)' for alert in alerts)} |"
    yield ""
