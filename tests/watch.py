"""A router under watch: what every test of a failure asks of it, in one place.

**alive**: the router and its routes still work; **accounted**: the ledger adds up and every message has its fate;
**visible**: the events that became log lines and counters, the status gauge during the fault and after it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from router_trio import Live, Router, Settings
from router_trio.events import Event
from router_trio.states import CONNECTED, RUNNING
from tests.raw_jetstream import JetStream


class Watch:
    """Everything a router said, and the gauge of each connection as it changed. An observer of `Router`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.live: Live | None = None
        self.gauges: dict[str, list[float]] = {}
        self._changed = trio.lowlevel.ParkingLot()

    def __call__(self, event: Event) -> None:
        """See `events.Emit`."""
        self.events.append(event)
        if self.live is not None:
            for name, connection in self.live.connections.items():
                seen = self.gauges.setdefault(name, [])
                if not seen or seen[-1] != connection.state.gauge:
                    seen.append(connection.state.gauge)
        self._changed.unpark_all()

    @property
    def codes(self) -> list[str]:
        """The code of each event, in order."""
        return [event.code for event in self.events]

    def of(self, code: str) -> list[Any]:
        """The events with this code."""
        return [event for event in self.events if event.code == code]

    def count(self, code: str) -> int:
        """How often this happened, merged events by their count."""
        return sum(getattr(event, "count", 1) for event in self.of(code))

    async def until(self, code: str, times: int = 1, within: float = 20.0) -> Any:
        """The `times`-th event with this code; waits for it."""
        with trio.fail_after(within):
            while len(self.of(code)) < times:
                await self._changed.park()
        return self.of(code)[times - 1]


@asynccontextmanager
async def watched(router: Router | Settings, watch: Watch | None = None, **options: Any) -> AsyncIterator[Watch]:
    """Open a router and check at the end that it is accounted for."""
    watch = watch or Watch()
    if isinstance(router, Settings):
        router = Router(router, observers=[watch], **options)
    async with router.open() as live:
        watch.live = live
        for name, connection in live.connections.items():
            watch.gauges.setdefault(name, [connection.state.gauge])
        yield watch
        assert_accounted(live)
    assert_accounted(live)
    assert all(entry["pending"] == entry["in_flight"] == 0 for entry in live.ledger().values())


def assert_accounted(live: Live) -> None:
    """The ledger adds up, on every connection."""
    for name, entry in live.ledger().items():
        total = entry["pending"] + entry["in_flight"] + sum(entry["settled"].values())
        assert entry["accepted"] == total, f"{name}: {entry}"


async def assert_alive(live: Live, within: float = 10.0) -> None:
    """Every connection connects and every route runs again."""
    await eventually(
        lambda: all(c.state.state == CONNECTED for c in live.connections.values())
        and all(route.state == RUNNING for route in live.routes),
        within,
        lambda: f"{[c.state.state for c in live.connections.values()]} {[(r.state, r.reason) for r in live.routes]}",
    )


async def eventually(
    true: Callable[[], bool], within: float = 10.0, otherwise: Callable[[], object] = lambda: "not in time"
) -> None:
    """Wait for plain state that nobody signals; fails with what `otherwise` says."""
    with trio.move_on_after(within):
        while not true():
            await trio.sleep(0.005)
        return
    raise AssertionError(otherwise())


def settings(url: str | list[str], *, routes: list[dict[str, Any]] | None = None, **connection: Any) -> Settings:
    """Settings with one connection `main`, no HTTP, and reconnects that are quick enough for a test."""
    quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms", "liveness_interval": "1s"}
    servers = [url] if isinstance(url, str) else url
    return Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": servers, **quick, **connection}},
        routes=routes or [],
    )


async def until_stored(stream: JetStream, name: str, count: int, within: float = 60.0) -> None:
    """Wait until a stream holds that many messages."""
    with trio.fail_after(within):
        while (await stream.stream_info(name))["state"]["messages"] < count:
            await trio.sleep(0.05)


def stream_route(
    stream: str, to: str, *, name: str = "route", durable: str = "router", **source: Any
) -> dict[str, Any]:
    """A route from a stream to a stream."""
    return {
        "name": name,
        "from": {"stream": stream, "durable": durable, **source},
        "to": [{"subject": to, "jetstream": True}],
    }


def core_route(subject: str, to: str, *, name: str = "route", **source: Any) -> dict[str, Any]:
    """A route from a core subject to a core subject."""
    return {"name": name, "from": {"subject": subject, **source}, "to": [{"subject": to}]}
