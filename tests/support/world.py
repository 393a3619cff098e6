"""A router on fake brokers, one for each connection, for the tests of routing and of publishing.

All of it runs on the autojump clock: minutes of the router take milliseconds of the test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import trio
import trio.testing

from router_trio import Live, Router, Settings
from router_trio.connection.platform import Platform
from router_trio.protocol.framing import RawMessage
from router_trio.states import RouteState
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish, raw
from router_trio.testing.links import FakeLink
from tests.support.eventually import eventually
from tests.support.settings import failing_of
from tests.support.watch import Watch, assert_accounted

Handled = tuple[Callable[..., Any], dict[str, Any]]


@dataclass
class World:
    """Brokers by the name of their connection, and the router between them."""

    brokers: dict[str, FakeBroker]
    watch: Watch
    live: Live
    configuration: Callable[..., Settings]
    """Build settings on the same brokers, from routes and from the other arguments of `world`."""

    @property
    def broker(self) -> FakeBroker:
        """The broker of `main`."""
        return self.brokers["main"]

    @property
    def route(self) -> RouteState:
        """The first route."""
        return self.live.routes[0]

    def entry(self, connection: str = "main") -> dict[str, Any]:
        """Return the ledger of a connection: the counts, and under `settled` only the fates that occurred."""
        assert_accounted(self.live)
        entry = self.live.ledger()[connection]
        return entry | {"settled": {fate: count for fate, count in entry["settled"].items() if count}}

    def route_ledger(self, number: int = 0) -> tuple[int, int, dict[str, int]]:
        """Return the ledger of a route: received, in hand, and the fates that occurred."""
        assert_accounted(self.live)
        route = self.live.routes[number]
        return route.received_in_all, route.in_hand, {fate: count for fate, count in route.settled.items() if count}

    def failures(self, operation: str, connection: str = "main") -> dict[str, int]:
        """Return the failures of one kind of operation, by reason."""
        failed = self.live.connections[connection].outbox.counters.failed
        return {reason: count for (kind, reason), count in failed.items() if kind == operation and count}

    def successes(self, operation: str, connection: str = "main") -> int:
        """Return how often one kind of operation succeeded: acks and naks when sent, unless refused."""
        found = self.live.connections[connection]
        succeeded = found.outbox.counters.succeeded[operation]
        if operation == "ack":
            return succeeded + found.listener.answers.unconfirmed("ack")
        return succeeded + (found.listener.answers.unconfirmed("nak") if operation == "nak" else 0)

    def subjects(self, connection: str = "main") -> list[str]:
        """Return the subjects of the router's publishes, in order."""
        return [message.subject for message in self.brokers[connection].published]

    def payloads(self, stream: str, connection: str = "main") -> list[bytes]:
        """Return the payloads that a stream holds, in order."""
        return [message.payload for message in self.brokers[connection].messages(stream)]

    async def lose(self, connection: str = "main") -> None:
        """Take the broker of a connection down; return when the router has noticed."""
        lost = self.live.connections[connection].state.lost
        self.brokers[connection].down()
        await eventually(lambda: self.live.connections[connection].state.lost > lost)

    async def find(self, connection: str = "main") -> None:
        """Bring the broker of a connection back; return when the router is connected again."""
        self.brokers[connection].up()
        await eventually(lambda: self.live.connections[connection].connected)


class LongestDelays(Random):
    """Draws the longest possible delays: retries happen at predictable times."""

    def uniform(self, a: float, b: float) -> float:
        """Return the higher bound."""
        return b


class _Deaf:
    """A link listener for a client that publishes nothing and so gets no answers."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@asynccontextmanager
async def another_link(broker: FakeBroker) -> AsyncIterator[FakeLink]:
    """Open the link of another client, to `other:4222`."""
    listener: Any = _Deaf()
    async with broker.connect("nats://other:4222", b"_INBOX.other", listener) as link:
        yield link


@asynccontextmanager
async def overhearing(broker: FakeBroker, pattern: str) -> AsyncIterator[list[RawMessage]]:
    """Subscribe another client to `pattern`; yield the list of received messages, replies included."""
    messages: list[RawMessage] = []
    async with another_link(broker) as link:
        await link.subscribe(pattern, messages.extend)
        yield messages


def handled(handler: Callable[..., Any], **route: Any) -> Handled:
    """Return a route through a handler; `route` are the arguments of `Router.route`."""
    return handler, {"name": "route", **route}


@asynccontextmanager
async def world(
    routes: Sequence[dict[str, Any]] = (),
    *,
    handlers: Sequence[Handled] = (),
    brokers: dict[str, FakeBroker] | None = None,
    connections: dict[str, dict[str, Any]] | None = None,
    shutdown_timeout: float = 10.0,
    streams: Sequence[dict[str, Any]] = (),
    router: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """Open a router on `brokers`, by default on one of its own. `options` are those of every connection.

    `connections` adds options for one connection, `streams` are those that it creates, `router` are keys of `[router]`.
    At the end everything must be accounted for.
    """
    brokers = brokers or {"main": FakeBroker()}
    quick = {"servers": ["nats://fake:4222"], "reconnect_delay": "50ms", "max_reconnect_delay": "300ms"}
    fakes = brokers

    def configuration(
        *routes: dict[str, Any],
        names: Sequence[str] = tuple(brokers),
        connections: dict[str, dict[str, Any]] | None = connections,
        streams: Sequence[dict[str, Any]] = streams,
        **sections: dict[str, Any],
    ) -> Settings:
        return Settings(
            router={"shutdown_timeout": shutdown_timeout} | sections.get("router", router or {}),
            telemetry={"listen": "", "handler_errors": "type"} | sections.get("telemetry", {}),
            connections={name: quick | options | (connections or {}).get(name, {}) for name in names},
            routes=list(routes),
            streams=list(streams),
        )

    config = configuration(*routes)
    watch = Watch()
    platform = Platform(random=LongestDelays(), watch_loop=False)
    opened = Router(
        config, observers=[watch], connect=lambda name, _: fakes[name].connect, platform=platform, log=False
    )
    for handler, route in handlers:
        opened.route(route.pop("subject", None), to=route.pop("to"), **route)(handler)
    async with opened.open() as live:
        watch.live = live
        yield World(brokers, watch, live, configuration)
        assert_accounted(live)
    assert_accounted(live)
    assert all(entry["pending"] == entry["in_flight"] == 0 for entry in live.ledger().values())
    assert [route.in_hand for route in live.routes] == [0] * len(live.routes)


def to(subject: str, connection: str = "main", *, jetstream: bool = False) -> dict[str, Any]:
    """Return a destination."""
    return {"subject": subject, "connection": connection, "jetstream": jetstream}


def core(subject: str, *to: str | dict[str, Any], name: str = "route", **source: Any) -> dict[str, Any]:
    """Return a route from a core subject. A destination that is text is a core subject on the same connection."""
    failing = failing_of(source)
    return {"name": name, "from": {"subject": subject, **source}, "to": [_destination(one) for one in to], **failing}


def stream(
    name: str, *to: str | dict[str, Any], route: str = "route", durable: str = "router", **source: Any
) -> dict[str, Any]:
    """Return a route from a stream. A destination that is text is a JetStream subject on the same connection."""
    failing = failing_of(source)
    origin = {"stream": name, "durable": durable, **source}
    return {"name": route, "from": origin, "to": [_destination(one, jetstream=True) for one in to], **failing}


def _destination(to: str | dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | {"subject": to} if isinstance(to, str) else to


# --- servers ---------------------------------------------------------------------------------------------------------


def map_subjects(broker: FakeBroker, of: str, to: str) -> None:
    """Have the server replace the first token of the subjects below one token by another."""
    server = broker._server
    receive = server.receive

    def receive_mapped(publish: Publish, now: float, is_own: Callable[[Any], bool]) -> None:
        first, dot, rest = publish.subject.partition(b".")
        subject = to.encode() + dot + rest if first == of.encode() else publish.subject
        receive(publish._replace(subject=subject), now, is_own)

    server.receive = receive_mapped  # type: ignore[method-assign]


# --- streams ---------------------------------------------------------------------------------------------------------


def two_brokers() -> dict[str, FakeBroker]:
    """Return two brokers: `main` has the stream `IN` of `in.*`, `edge` the stream `OUT` of `out.>`."""
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    brokers["main"].add_stream("IN", ["in.*"])
    brokers["edge"].add_stream("OUT", ["out.>"])
    return brokers


def one_broker() -> dict[str, FakeBroker]:
    """Return one broker: `main` has both streams."""
    broker = FakeBroker()
    broker.add_stream("IN", ["in.*"])
    broker.add_stream("OUT", ["out.>"])
    return {"main": broker}


def fill(broker: FakeBroker, count: int, *, first: int = 0, subjects: str = "x") -> None:
    """Publish messages into `IN`: consecutive numbers, each to all of these subjects in turn, of one letter each."""
    for payload in numbers(count, first=first):
        for subject in subjects:
            broker.publish(f"in.{subject}", payload)


def numbers(count: int, *, first: int = 0) -> list[bytes]:
    """Return the payloads of `fill`."""
    return [b"%d" % number for number in range(first, first + count)]


def unacked(w: World) -> int:
    """Return how many messages the consumer `router` of `IN` has delivered without getting an ack."""
    return w.broker.unacked("IN", "router")


async def all_acked(w: World, acked: int) -> None:
    """Wait until this many acks were sent, and the consumer waits for none."""
    await eventually(lambda: w.successes("ack") == acked, 600, lambda: (w.successes("ack"), acked))
    await eventually(lambda: unacked(w) == 0)


REMOTE = stream("IN", to("out.{{wildcard(1)}}", "edge", jetstream=True), connection="main", filter="in.*")
LOCAL = stream("IN", "out.{{wildcard(1)}}", filter="in.*")


async def hear(broker: FakeBroker, inbox: bytes, block: bytes) -> None:
    """Have a message with this header block delivered to an inbox; return when it has been read."""
    for receive in broker._server._receivers(inbox.decode()):
        receive(raw(inbox, b"", block, b""))
    await trio.testing.wait_all_tasks_blocked()
