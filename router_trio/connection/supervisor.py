"""Supervises one connection: connect, serve, lose, wait and reconnect, for as long as the router runs.

Decisions are made by pure code (`attempts`). There is one session at a time, and two only while moving away from a
server in lame duck mode. Everything that is published passes through the outbox, which outlives every link.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import trio

from router_trio.connection.advisories import Advisories
from router_trio.connection.attempts import Attempts
from router_trio.connection.backoff import Attempt
from router_trio.connection.destinations import Destinations
from router_trio.connection.latch import Latch, cancel_when
from router_trio.connection.listener import Listener
from router_trio.connection.platform import REAL_PLATFORM, Platform
from router_trio.connection.pull_credit import PullBudget
from router_trio.connection.session import Session, Source
from router_trio.connection.shares import Shares
from router_trio.connection.source_retries import SourceRetries
from router_trio.connection.streams import Streams
from router_trio.errors import LinkError, UnexpectedError, reasons
from router_trio.events import (
    ConnectionEstablished,
    ConnectionLost,
    ConnectionRestored,
    Emit,
    UnexpectedLinkError,
)
from router_trio.link import Connect, Link
from router_trio.outbox.ledger import Counters, Ledger
from router_trio.outbox.outbox import Outbox
from router_trio.protocol.framing import DEFAULT_CONTROL_LINE
from router_trio.protocol.metadata import Metadata
from router_trio.settings import ConnectionSettings
from router_trio.states import ConnectionState
from router_trio.subjects.inboxes import new_inbox

HAND_OVER_WITHIN = 2.0
"""Seconds in which operations in flight may still be confirmed on a link that is being left for another server."""

SWEEP_EVERY = 1.0

_WHERE = (
    "servers",
    "proxy",
    "websocket_headers",
    "credentials_file",
    "nkey_seed_file",
    "user",
    "token",
    "domain",
    "api_prefix",
)
"""The settings that decide which servers and which account a connection uses."""


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """The counts of a connection, which are kept after its end."""

    name: str
    state: ConnectionState
    ledger: Ledger
    counters: Counters


class Connection:
    """A named connection. `run` keeps it up; all other methods are synchronous or only wait."""

    def __init__(
        self,
        name: str,
        settings: ConnectionSettings,
        connect: Connect,
        emit: Emit,
        platform: Platform = REAL_PLATFORM,
        *,
        refusal_ends: bool = True,
        metadata: Metadata = dict,
    ) -> None:
        """`refusal_ends`: whether a refusal by a server ends `run`."""
        self.name = name
        self.settings = settings
        self.platform = platform
        self.metadata: Metadata = metadata
        """Identifies the router in the metadata of what it creates."""
        self.state: ConnectionState = ConnectionState(
            name, platform.wall_clock, fence_bound=2 * settings.liveness_interval
        )
        self._attempts = Attempts(
            settings,
            self.state,
            emit=emit,
            clock=trio.current_time,
            uniform=platform.random.uniform,
            refusal_ends=refusal_ends,
        )
        self.listener: Listener = Listener(name, settings, self._attempts, emit)
        """Receives the reports of each link."""
        self.outbox: Outbox = self.listener.outbox
        self.counters: Counters = self.outbox.counters
        """The results of publishes, acks, naks and subscriptions."""
        self.destinations: Destinations = self.listener.destinations
        self.advisories: Advisories = self.listener.advisories
        """The reports of servers about the streams and durables that routes use."""
        self.streams: Streams = Streams(self.state, emit, metadata)
        self._message_ids = platform.token_hex(8).encode()
        self._message_numbers = count(1)
        self.inbox: bytes = self._new_inbox()
        """Where the PubAcks of the link are sent: an unguessable subject, different for each link."""
        self.max_payload: int = 1024 * 1024
        self.max_control_line: int = DEFAULT_CONTROL_LINE
        self.pull_budget: PullBudget = PullBudget(trio.current_time)
        self.source_retries: SourceRetries = SourceRetries()
        self.first_attempt_over: trio.Event = trio.Event()
        self._connect = connect
        self._emit = emit
        self._sources: dict[Source, None] = {self.destinations: None, self.advisories: None}
        self._last: list[Source] = []
        self._at_once = trio.Event()
        self._changed = trio.Event()
        self._change_listeners: dict[Callable[[], None], None] = {}
        self._room = trio.lowlevel.ParkingLot()
        self.shares: Shares = Shares(self.outbox.capacity)
        self._lost_at: float | None = None

    # --- for routes and publishers ---

    def attach(self, source: Source) -> None:
        """Add a source that reads from every link of this connection, from the next turn on."""
        self._sources[source] = None
        if self.listener.session is not None:
            self.listener.session.serve_also(source)

    def attach_last(self, source: Source) -> None:
        """Add a source that reads from every link of this connection once the others have subscribed there.

        Called before `run`.
        """
        self._last.append(source)

    def detach(self, source: Source) -> None:
        """Remove a source, and cancel serving it."""
        self._sources.pop(source, None)
        if self.listener.session is not None:
            self.listener.session.stop_serving(source)

    def make_streams(self) -> Latch | None:
        """Create what is missing of `streams`, which have changed. Returns an event that is set once each was tried.

        Returns None without a link, or with one so new that it is doing so.
        """
        return None if self.listener.session is None else self.listener.session.serve_again(self.streams)

    def try_at_once(self) -> None:
        """Make the next attempt to connect without its delay. Does nothing while connected."""
        if not self.connected:
            self._at_once.set()

    @property
    def link(self) -> Link | None:
        """The current link, or None."""
        return self.listener.session.link if self.listener.session is not None else None

    @property
    def connected(self) -> bool:
        """True if there is a link."""
        return self.outbox.connected

    async def changed(self) -> None:
        """Wait until the connection is established or lost."""
        await self._changed.wait()

    async def wait_for_capacity(self) -> None:
        """Wait while the queue is full, until there is room or waiting makes no sense any more."""
        while self.outbox.blocks:
            await self._room.park()
        # Publishers are woken one at a time and each wakes the next, so that a thousand routes don't compete for one
        # place.
        self._room.unpark()

    async def idle(self) -> None:
        """Wait until every accepted operation has its fate."""
        while self.outbox.pending or self.outbox.in_flight:
            await self._when_nothing_in_flight().wait()

    def new_message_id(self) -> bytes:
        """Return an id for a message that has none. It is unique across processes."""
        return b"%b-%d" % (self._message_ids, next(self._message_numbers))

    def has_same_streams(self, other: Connection) -> bool:
        """Return True if both have the same name and their settings lead to the same streams."""
        ours, theirs = self.settings, other.settings
        return self.name == other.name and all(getattr(ours, key) == getattr(theirs, key) for key in _WHERE)

    @property
    def counts(self) -> ConnectionCounts:
        """Return the counts, which are kept after the end of the connection."""
        return ConnectionCounts(self.name, self.state, self.outbox.ledger, self.counters)

    def continue_counts(self, before: ConnectionCounts) -> None:
        """Add the counts of the ended connection that had this name before. All of its operations are settled."""
        self.state.add_counts(before.state)
        self.outbox.add_counts(before.ledger, before.counters)

    # --- the supervisor ---

    async def run(self) -> None:
        """Keep the connection up until cancelled.

        Raises `ConnectionExhaustedError` with `on_reconnect_exhausted = "stop"`, and `AuthorizationError` or
        `CertificateError` if the first server that answers refuses: those are mistakes to correct, not outages to wait
        for. With `refusal_ends=False` it keeps trying instead.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            while True:
                session: Session | None = await self._establish(nursery)
                while session is not None:
                    session = await self._serve(session, nursery)

    async def _serve(self, session: Session, nursery: trio.Nursery) -> Session | None:
        """Serve this link until it is lost. Returns the session that takes over on another server, or else None."""
        if session.link is None:
            # It was lost while the previous link was being left.
            error = session.error or LinkError("closed before its use")
            self._attempts.failed(Attempt(1, 0.0, session.server), error)
            return None
        self._up(session, session.link)
        successor: Session | None = None
        async with trio.open_nursery() as race:
            race.start_soon(cancel_when, session.ended, race.cancel_scope)
            await self.listener.moving.wait()
            successor = await self._move_from(session, nursery)
            race.cancel_scope.cancel()
        if successor is None:
            await session.ended.wait()
            why = LinkError("closed by the router", reason=reasons.CLOSED)
        else:
            await self._leave(session)
            why = LinkError("moved to another server", reason=reasons.LAME_DUCK)
        self._down(session, session.error or why)
        return successor

    # --- attempts to connect: each is a session of its own, which runs in the nursery of `run` ---

    async def _establish(self, nursery: trio.Nursery) -> Session:
        """Try to connect until a server accepts the connection."""
        while True:
            attempt = self._attempts.next()
            session = await self._try(attempt, nursery)
            if session.error is None:
                return session
            self.outbox.server_unreachable()
            self.first_attempt_over.set()
            self._attempts.end_of_round()

    async def _move_from(self, session: Session, nursery: trio.Nursery) -> Session:
        """Connect to another server while the old link still works. Returns when one accepts the connection."""
        self._attempts.lost(trio.current_time() - session.connected_at)  # it is about to be
        failed_passes = 0
        while True:
            tried = False
            for attempt in self._attempts.elsewhere(session.server, failed_passes):
                tried = True
                successor = await self._try(attempt, nursery)
                if successor.error is None:
                    return successor
            if tried:
                failed_passes += 1
            else:
                await self.listener.announced.wait()  # no other server is known yet

    async def _try(self, attempt: Attempt, nursery: trio.Nursery) -> Session:
        """Make an attempt once it is due. Returns its session, which has an `error` if it failed."""
        with trio.move_on_after(attempt.delay):
            await self._at_once.wait()
        self._at_once = trio.Event()
        self._attempts.begins(attempt)
        session = await self._dial(attempt.server, nursery)
        if session.error is not None:
            self._attempts.failed(attempt, session.error)
        return session

    async def _dial(self, server: str, nursery: trio.Nursery) -> Session:
        """Make one attempt. Returns when it is connected or has failed. If cancelled, it leaves nothing behind."""
        session = Session(
            server,
            self._new_inbox(),
            self.outbox,
            fenced=self.state.fenced,
            progress=self._progress,
            refused=self.listener.not_written,
            answers=self.listener.answers,
        )
        nursery.start_soon(self._run_session, session)
        try:
            await _either(session.connected, session.ended)
        except BaseException:
            session.end()
            raise
        if session.ended.is_set() and session.error is None:
            session.error = LinkError("closed while connecting")
        return session

    async def _run_session(self, session: Session) -> None:
        await session.run(
            self._connect,
            self.listener,
            self._sources,
            first=[self.streams],  # also if there is none yet: a reload may add one during the dial
            last=self._last,
            connect_timeout=self.settings.connect_timeout,
            liveness_interval=self.settings.liveness_interval,
        )
        if isinstance(session.error, UnexpectedError):
            self._emit(
                UnexpectedLinkError(
                    at=trio.current_time(),
                    connection=self.name,
                    server=session.server,
                    error_type=session.error.error_type,
                    place=session.error.place,
                )
            )

    # --- link up and down ---

    def _up(self, session: Session, link: Link) -> None:
        now = trio.current_time()
        self.listener.use(session)
        failed_attempts = self._attempts.succeeded(session.server)
        self.inbox = session.inbox
        self.max_payload = link.max_payload
        self.max_control_line = link.max_control_line
        first = self._lost_at is None
        self.state.link_up(link.server, session.fenced_at, first=first)
        # An address without a scheme is shown as nats://.
        server = session.server if session.server.startswith(("tls://", "ws://", "wss://")) else link.server
        if self._lost_at is None:
            self._emit(ConnectionEstablished(at=now, connection=self.name, server=server))
        else:
            self._emit(
                ConnectionRestored(
                    at=now,
                    connection=self.name,
                    server=server,
                    outage_seconds=round(now - self._lost_at, 6),
                    reconnect_attempts=failed_attempts + 1,
                    pending_count=self.outbox.pending,
                )
            )
            self.destinations.reconnected(now - self._lost_at, self.outbox.unanswered())
        self.outbox.link_up(session.inbox)
        session.serve()
        self._notify_changed()
        self.first_attempt_over.set()
        if link.lame_duck:
            self.listener.lame_duck()

    async def _leave(self, session: Session) -> None:
        """Let operations in flight be confirmed before the link is closed. The next link sends the others again."""
        session.leave()
        with trio.move_on_after(HAND_OVER_WITHIN):
            while self.outbox.in_flight and not session.ended.is_set():
                await _either(session.ended, self._when_nothing_in_flight())
        session.end()
        await session.ended.wait()

    def _down(self, session: Session, error: LinkError) -> None:
        now = trio.current_time()
        self.listener.use(None)
        self.listener.read_done()  # for a read that was cut short by an error
        self._lost_at = now
        self._attempts.lost(now - session.connected_at)
        self.outbox.link_down(error.reason)
        if error.reason in (reasons.CLOSED, reasons.SLOW_CONSUMER):
            # A server sends no error to a client that it cuts for being slow.
            self.pull_budget.cut()
        self.state.link_down(str(error))
        self._emit(
            ConnectionLost(
                at=now,
                connection=self.name,
                server=session.server,
                reason=error.reason,
                detail=str(error),
                pending_count=self.outbox.pending,
            )
        )
        self._notify_changed()

    def _new_inbox(self) -> bytes:
        return new_inbox(self.settings.inbox_prefix, self.platform.token_hex(11))

    def _when_nothing_in_flight(self) -> trio.Event:
        empty = trio.Event()
        self.outbox.when_nothing_in_flight(empty.set)
        return empty

    def when_changed(self, notify: Callable[[], None]) -> None:
        """Call `notify` each time the connection is established or lost."""
        self._change_listeners[notify] = None

    def stop_notifying(self, notify: Callable[[], None]) -> None:
        """Undo `when_changed`."""
        self._change_listeners.pop(notify, None)

    def _notify_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        for notify in tuple(self._change_listeners):
            notify()
        self._room.unpark_all()
        self.shares.wake_all()

    def _progress(self) -> None:
        """Wake publishers that wait for room."""
        self._room.unpark()
        if self.shares.waiting:
            self.shares.look()

    def shut_down(self) -> int:
        """Drop what has no fate, as `Outbox.shut_down` does, and wake publishers that wait for room."""
        left = self.outbox.shut_down()
        self._notify_changed()
        return left

    async def _sweep(self) -> None:
        """Resend, fail or drop publishes that have waited for long, also while there is no link."""
        refusals, max_age = self.outbox.refusals, self.settings.pending_max_age
        while True:
            await trio.sleep(min(SWEEP_EVERY, max_age / 4) if max_age else SWEEP_EVERY)
            refusals.sweep()
            if max_age:
                self._room.unpark_all()


async def _either(*events: trio.Event) -> None:
    """Return when one of the events has happened."""
    async with trio.open_nursery() as race:
        for event in events:
            race.start_soon(cancel_when, event, race.cancel_scope)
