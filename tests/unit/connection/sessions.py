"""A session over a stub of a link."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import trio
import trio.testing

from router_trio.client.receipt import Receipt
from router_trio.connection.latch import Latch
from router_trio.connection.session import Session, Source
from router_trio.events import Event
from router_trio.link import Connect, Link, LinkListener, Refusal
from router_trio.outbox.operation import Operation
from router_trio.outbox.outbox import Outbox
from router_trio.protocol.framing import publish

INTERVAL = 4.0


class StubLink:
    """A link that answers each fence `latency` seconds later, and refuses what `refuse` selects."""

    def __init__(self) -> None:
        self.latency = 0.0
        self.fences: list[float] = []
        self.sent: list[bytes] = []
        self.refuse: Callable[[Operation], bool] = lambda _: False
        self.send_takes = 0.0

    async def fence(self) -> None:
        self.fences.append(trio.current_time())
        await trio.sleep(self.latency)

    async def ping(self) -> None:
        await self.fence()

    @property
    def can_send_at_once(self) -> bool:
        return False

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        raise AssertionError("can_send_at_once is False")

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        await trio.sleep(self.send_takes)
        self.sent.extend(one.frame for one in operations if not self.refuse(one))
        return [Refusal(one, "too_large", "too much") for one in operations if self.refuse(one)]


class SessionSetup:
    """A session with its outbox, and a network controlled by the test."""

    def __init__(self) -> None:
        self.link = StubLink()
        self.events: list[Event] = []
        self.fenced: list[float] = []
        self.room = trio.lowlevel.ParkingLot()
        self.outbox = Outbox(
            "main",
            emit=self.events.append,
            clock=trio.current_time,
            wake=lambda: self.session.work.set(),
            fail_open=False,
            max_operations=100,
            max_bytes=10_000,
            on_full="reject",
            max_age=0.0,
        )
        self.session = Session(
            "nats://a:4222", b"_INBOX.x", self.outbox, fenced=self.fenced.append, progress=self._progress
        )
        self.dial_takes = 0.0
        self.dial_error: Exception | None = None
        self.death: Exception | None = None
        self.dying = trio.Event()
        self.closed = False

    def _progress(self) -> None:
        self.room.unpark()

    @asynccontextmanager
    async def connect(self, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[StubLink]:
        try:
            await trio.sleep(self.dial_takes)
            if self.dial_error is not None:
                raise self.dial_error
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live)
                yield self.link
                nursery.cancel_scope.cancel()
        finally:
            self.closed = True

    async def _live(self) -> None:
        await self.dying.wait()
        if self.death is not None:
            raise self.death

    def die(self, error: Exception) -> None:
        self.death = error
        self.dying.set()

    async def run(self, *sources: Source, first: Sequence[Source] = (), last: Sequence[Source] = ()) -> None:
        connect = cast(Connect, self.connect)
        listener = cast(LinkListener, None)
        await self.session.run(
            connect, listener, sources, first=first, last=last, connect_timeout=2.0, liveness_interval=INTERVAL
        )

    def publish(self, payload: bytes = b"x") -> Receipt:
        receipt = Receipt()
        receipt.status = self.outbox.offer(publish(b"out", payload), owner=receipt)
        return receipt


@asynccontextmanager
async def serving(
    setup: SessionSetup, *sources: Source, first: Sequence[Source] = (), last: Sequence[Source] = ()
) -> AsyncIterator[Session]:
    """Run a session that is connected and serves; end it after the body."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(setup.run, *sources, first=first, last=last))
        await setup.session.connected.wait()
        setup.outbox.link_up()
        setup.session.serve()
        yield setup.session
        setup.session.end()


# --- sources ---


class StubSource:
    """A source that records when it is served, and tries for as long as it is asked to."""

    def __init__(self, tries: float = 0.0, fails: Exception | None = None) -> None:
        self.served: list[Any] = []
        self.served_at: list[float] = []
        self.ended = 0
        self._tries = tries
        self._fails = fails

    async def serve(self, link: Link, tried: Latch) -> None:
        self.served.append(link)
        self.served_at.append(trio.current_time())
        try:
            await trio.sleep(self._tries)
            tried.set()
            if self._fails is not None:
                raise self._fails
            await trio.sleep_forever()
        finally:
            self.ended += 1
