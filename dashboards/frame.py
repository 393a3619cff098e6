"""The parts that all dashboards share: variables, links to each other, and annotations for lost connections."""

from __future__ import annotations

import json
from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from dashboards.panels import DATASOURCE, Panel
from dashboards.queries import CONNECTION, PROCESS, of_connection

TAG = "router-trio"
ANY = ".+"

Row = tuple[str, Sequence[Panel]]
"""A heading, and the panels below it from left to right. The widths of each line of panels add up to `WIDTH`."""

WIDTH = 24


def build(name: str, title: str, explanation: str, rows: Sequence[Row], *, routes: bool = False) -> model.Dashboard:
    """Build a dashboard; `name` becomes part of its uid. With `routes` it has a variable for routes as well.

    Raises `ValueError` if a row's panels don't fill its lines.
    """
    board = (
        dashboard.Dashboard(f"Router Trio / {title}")
        .uid(f"{TAG}-{name}")
        .description(explanation)
        .tags([TAG, "nats"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(_links())
        .annotation(_losses())
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("job", "router_info", ""))
        .with_variable(_variable("instance", "router_info", 'job=~"$job"'))
        .with_variable(_variable("connection", "router_nats_connection_status", PROCESS))
    )
    if routes:
        board.with_variable(_variable("route", "router_route_running", CONNECTION))
    number = 0
    for heading, panels in rows:
        _check_widths(title, heading, panels)
        number += 1
        board.with_row(dashboard.Row(heading).id(number))
        for panel in panels:
            number += 1
            board.with_panel(panel.id(number))
    return board.build()


def encode(board: model.Dashboard) -> str:
    """Return the JSON text of a dashboard; equal dashboards give equal texts."""
    found = json.loads(json.dumps(board, cls=JSONEncoder))
    for variable in found["templating"]["list"]:
        # The SDK writes these keys for every variable; Grafana's types have them for interval variables only.
        for key in ("auto", "auto_count", "auto_min"):
            del variable[key]
    return json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _variable(name: str, metric: str, matchers: str) -> dashboard.QueryVariable:
    selector = f"{metric}{{{matchers}}}" if matchers else metric
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .query(f"label_values({selector}, {name})")
        .datasource(DATASOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(ANY)
        .current(model.VariableOption(text="All", value="$__all", selected=True))
    )


def _links() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("Router Trio").type(model.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.as_dropdown(False).include_vars(True).keep_time(True).tooltip("").icon("external link").url("")


def _losses() -> dashboard.AnnotationQuery:
    lost = of_connection("router_nats_connection_lost_total")
    return (
        dashboard.AnnotationQuery()
        .name("Connection lost")
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color("red")
        .expr(f"sum by (instance, connection) (increase({lost}[1m])) > 0")
    )


def _check_widths(title: str, heading: str, panels: Sequence[Panel]) -> None:
    at = 0
    for panel in panels:
        place = panel.build().grid_pos
        at += place.w if place is not None else WIDTH
        if at > WIDTH:
            break
        at %= WIDTH
    if at:
        raise ValueError(f"{title}, row {heading!r}: the panels don't fill their lines; widths add up to {WIDTH}")
