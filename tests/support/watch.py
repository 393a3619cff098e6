"""A router under observation, with the checks that every test of a failure needs.

**alive**: the router and its routes still work, nothing was restarted needlessly, no task is left; **accounted**: the
ledger adds up and every message has its fate; **visible**: the events that became log lines and counters, the status
gauge during the fault and after it. `assert_survived` checks all three.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from router_trio import Live, Router, Settings
from router_trio.events import Event
from router_trio.states import CONNECTED, RUNNING
from router_trio.telemetry.metrics.metric import Metric, Sources
from router_trio.telemetry.metrics.table import TABLE
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream


class Watch:
    """Every event of a router, and the changes of the gauge of each connection. An observer of `Router`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.live: Live | None = None
        self.gauges: dict[str, list[float]] = {}
        self._changed = trio.lowlevel.ParkingLot()

    def __call__(self, event: Event) -> None:
        """Record an event, see `events.Emit`."""
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

    @property
    def router(self) -> Live:
        """The open router."""
        assert self.live is not None
        return self.live

    def of(self, code: str) -> list[Any]:
        """Return the events with this code."""
        return [event for event in self.events if event.code == code]

    def count(self, code: str) -> int:
        """Return how often this happened; a merged event counts as often as it reports."""
        return sum(getattr(event, "count", 1) for event in self.of(code))

    def metric(self, name: str, **labels: str) -> float:
        """Return the value that a scrape would show now: the sum of a counter's or gauge's series that have these
        labels.
        """
        assert self.live is not None
        row = next(row for row in TABLE if row.name == name)
        assert isinstance(row, Metric)
        total = 0.0
        for values, number in row.read(Sources(self.live)):
            if labels.items() <= dict(zip(row.labels, values, strict=True)).items():
                total += number
        return total

    async def until(self, code: str, times: int = 1, within: float = 20.0) -> Any:
        """Wait for the `times`-th event with this code, and return it."""
        with trio.fail_after(within):
            while len(self.of(code)) < times:
                await self._changed.park()
        return self.of(code)[times - 1]


@asynccontextmanager
async def watched(
    router: Router | Settings, watch: Watch | None = None, *, alone: bool = True, **options: Any
) -> AsyncIterator[Watch]:
    """Open a router and check at the end that it is accounted for.

    `alone`: any router opened later has ended before, so that no task of any router is left at the end.
    """
    watch = watch or Watch()
    if isinstance(router, Settings):
        router = Router(router, observers=[watch], **{"log": False, **options})
    others = not alone or router_tasks()
    async with router.open() as live:
        watch.live = live
        for name, connection in live.connections.items():
            watch.gauges.setdefault(name, [connection.state.gauge])
        yield watch
        assert_accounted(live)
        unexpected = watch.of("NATS_UNEXPECTED_ERROR")
        assert not unexpected, unexpected
    assert others or router_tasks() == []
    assert_accounted(live)
    assert all(entry["pending"] == entry["in_flight"] == 0 for entry in live.ledger().values())


async def cut_off(proxy: TcpProxy, watch: Watch) -> None:
    """Reset a router's connections and refuse new ones; return when it has noticed."""
    losses = len(watch.of("NATS_CONNECTION_LOST"))
    proxy.refuse()
    proxy.reset()
    await watch.until("NATS_CONNECTION_LOST", losses + 1)


async def let_in(proxy: TcpProxy, watch: Watch) -> None:
    """Accept connections again; return when the router is connected."""
    times = len(watch.of("NATS_CONNECTION_RESTORED"))
    proxy.accept()
    await watch.until("NATS_CONNECTION_RESTORED", times + 1)


async def assert_survived(
    watch: Watch, *, seen: Iterable[str] = (), losses: int | None = 1, connection: str = "main", within: float = 10.0
) -> None:
    """Assert that a router is alive, accounted and visible, after a fault on a connection that was up at the start.

    `seen` are codes that must have been emitted, each at the level of its class; `losses` is how often the link was
    lost and restored (None: unknown): the gauge and the counters must agree.
    """
    live = watch.live
    assert live is not None
    # Alive: connected, every route running, and none started more often than its link or an error of its own explains.
    await assert_alive(live, within)
    for route in live.routes:
        state = live.connections[route.connection].state
        errors = [event for event in watch.of("NATS_SUBSCRIBE_ERROR") if event.route == route.name]
        starts = [event for event in watch.of("ROUTE_READY") if event.route == route.name]
        links = state.established + state.restored
        assert 1 <= len(starts) <= links + len(errors), f"{route.name}: {starts}, {links} links, {errors}"
    # Accounted: every accepted message has its fate, and the sum is right.
    await until_settled(live, within)
    assert_accounted(live)
    assert watch.metric("router_ledger_unbalanced") == 0
    # Visible: in the log, in the gauge, in the counters; and back to normal.
    assert set(seen) <= set(watch.codes), f"not seen: {set(seen) - set(watch.codes)}"
    assert watch.metric("router_nats_connection_status", connection=connection) == 1
    assert watch.metric("router_nats_pending_operations_count", connection=connection) == 0
    if losses is not None:
        assert_losses_visible(watch, losses, connection)


async def until_settled(live: Live, within: float = 10.0) -> None:
    """Wait until every accepted message has its fate."""
    await eventually(
        lambda: all(entry["pending"] == entry["in_flight"] == 0 for entry in live.ledger().values()),
        within,
        live.ledger,
    )


def assert_losses_visible(watch: Watch, losses: int, connection: str = "main") -> None:
    """Assert that the link was lost and restored that often, by the gauge, by the counters and by the log."""
    assert watch.gauges[connection] == [1.0, *[0.5, 1.0] * losses]
    for word, times in (("established", 1), ("lost", losses), ("restored", losses)):
        assert watch.metric(f"router_nats_connection_{word}_total", connection=connection) == times, word
        events = [e for e in watch.of(f"NATS_CONNECTION_{word.upper()}") if e.connection == connection]
        assert len(events) == times, word


def router_tasks() -> Sequence[str]:
    """Return the names of the router's tasks in this run of Trio."""
    found = []
    root = trio.lowlevel.current_root_task()
    assert root is not None
    open_tasks = [root]
    while open_tasks:
        task = open_tasks.pop()
        for nursery in task.child_nurseries:
            open_tasks.extend(nursery.child_tasks)
        if task.name.startswith("router_trio."):
            found.append(task.name)
    return found


def assert_accounted(live: Live) -> None:
    """Assert that the ledgers of every connection and of every route add up."""
    for route in live.routes:
        told = f"{route.name}: {route.received_in_all} received, {route.in_hand} in hand, {route.settled}"
        assert 0 <= route.in_hand == route.received_in_all - sum(route.settled.values()), told
    for name, entry in live.ledger().items():
        total = entry["pending"] + entry["in_flight"] + sum(entry["settled"].values())
        assert entry["accepted"] == total, f"{name}: {entry}"


async def assert_alive(live: Live, within: float = 10.0) -> None:
    """Wait until every connection is connected and every route runs again."""
    await eventually(
        lambda: (
            all(c.state.state == CONNECTED for c in live.connections.values())
            and all(route.state == RUNNING for route in live.routes)
        ),
        within,
        lambda: f"{[c.state.state for c in live.connections.values()]} {[(r.state, r.reason) for r in live.routes]}",
    )


async def until_nothing_is_unacked(stream: JetStream, within: float = 15.0) -> None:
    """Wait until the consumer `router` of SOURCE has nothing left to deliver and nothing unacknowledged."""

    async def nothing() -> bool:
        info = await stream.consumer_info("SOURCE", "router")
        return bool(info["num_pending"] == info["num_ack_pending"] == 0)

    await eventually(nothing, within)


async def until_stored(stream: JetStream, name: str, count: int, within: float = 60.0) -> None:
    """Wait until a stream holds that many messages."""

    async def stored() -> bool:
        return bool((await stream.stream_info(name))["state"]["messages"] >= count)

    await eventually(stored, within)
