"""Routers as telemetry sees them, without a router: states and outboxes that tests set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from router_trio.events import Event
from router_trio.outbox.outbox import Outbox
from router_trio.settings import Settings
from router_trio.settings.reload.state import ConfigState
from router_trio.states import ConnectionState, RouteState

SETTINGS = Settings(connections={"main": {"servers": ["nats://127.0.0.1:4222"]}})
"""The configuration that views have."""


@dataclass
class Connection:
    """A `ConnectionView`."""

    state: ConnectionState
    outbox: Outbox


@dataclass
class View:
    """A `RouterView`."""

    name: str = "test-router"
    connections: dict[str, Connection] = field(default_factory=dict)
    routes: list[RouteState] = field(default_factory=list)
    fatal: str | None = None
    config: ConfigState = field(default_factory=lambda: ConfigState(SETTINGS, 1_700_000_000.0))
    events: list[Event] = field(default_factory=list)
    now: float = 0.0


def make_view(connections: Sequence[str] = ("main",), routes: Sequence[str] = ()) -> View:
    """Return a view with connections and routes from the first of them, each to `out.{{wildcard(1)}}` and `copy`."""
    view = View()
    for name in connections:
        outbox = Outbox(
            name,
            emit=view.events.append,
            clock=lambda: view.now,
            wake=lambda: None,
            fail_open=False,
            max_operations=10,
            max_bytes=1000,
            on_full="drop_oldest",
            max_age=0.0,
        )
        view.connections[name] = Connection(ConnectionState(name), outbox)
    view.routes = [RouteState(name, connections[0], ["out.{{wildcard(1)}}", "copy"]) for name in routes]
    return view
