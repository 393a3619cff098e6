"""Passes on what a link reports: PubAcks and refusals to the outbox, reasons to the destinations.

Publishes that become due while a read is delivered are sent at the end of the read, in the same turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from router_trio.connection.advisories import Advisories
from router_trio.connection.answers import Answers
from router_trio.connection.attempts import Attempts
from router_trio.connection.destinations import Destinations
from router_trio.connection.responses import Responses
from router_trio.connection.session import Session
from router_trio.errors import reasons
from router_trio.errors.quotes import excerpt
from router_trio.events import Emit, LameDuck, RefusalNotAttributed
from router_trio.link import PubAck, Refusal
from router_trio.outbox.outbox import Outbox
from router_trio.protocol.framing import text
from router_trio.protocol.permissions import REQUEST, cause_of
from router_trio.settings import ConnectionSettings


class Listener:
    """The `link.LinkListener` of all links of a connection, and the owner of its outbox."""

    def __init__(self, name: str, settings: ConnectionSettings, attempts: Attempts, emit: Emit) -> None:
        self._name = name
        self._attempts = attempts
        self._emit = emit
        self.session: Session | None = None
        """The session in use; None while there is no link."""
        self.moving: trio.Event = trio.Event()
        """Set when the server of `session` announces that it will shut down."""
        self.announced: trio.Event = trio.Event()
        """Set, and replaced, when a server announces others."""
        self.outbox: Outbox = Outbox(
            name,
            emit=emit,
            clock=trio.current_time,
            wake=self.more_to_send,
            fail_open=settings.fail_open,
            max_operations=settings.max_pending_operations,
            max_bytes=settings.max_pending_bytes,
            on_full=settings.on_pending_full,
            max_age=settings.pending_max_age,
        )
        self._refusals = self.outbox.refusals
        self.answers: Answers = Answers(name, self.outbox.counters, emit)
        """For routes that send answers and pulls to their streams."""
        self.responses: Responses = Responses()
        """The answers to requests of other clients."""
        self._api = settings.api
        belief = self.outbox.belief
        self.advisories: Advisories = Advisories(name, emit)
        self.destinations: Destinations = Destinations(
            name, emit, belief.learn, self._stream_found, self.outbox.change_shut, advisories=self.advisories
        )
        belief.ask(self.destinations)
        self._read_done_listeners: list[Callable[[], None]] = []
        self._reading = self._woken = False

    def use(self, session: Session | None) -> None:
        """Send through this session from now on; None stops sending."""
        assert session is None or self.session is None, "one link is used at a time"
        self.session = session
        self.moving = trio.Event()

    def more_to_send(self) -> None:
        """Have pending publishes sent: at the end of the read being delivered, or else by the sender's task."""
        if self._reading:
            self._woken = True
        elif self.session is not None:
            self.session.work.set()

    def when_read_done(self, notify: Callable[[], None]) -> None:
        """Call `notify` once, when everything that one read returned has been delivered. For code called by a link."""
        self._read_done_listeners.append(notify)

    def not_written(self, refusal: Refusal) -> None:
        """Record for its destination why the link did not write a publish."""
        operation = refusal.operation
        if operation.with_ack:
            self.destinations.publish_refused(operation.subject, refusal.reason, refusal.detail, refusal.retriable)

    def _stream_found(self, stream: str, subjects: tuple[str, ...] | None) -> None:
        for order, reason, detail, retriable in self.outbox.stream_found(stream, subjects):
            self.ack_refused(order, reason, detail, retriable, stream=stream)
        self.read_done()  # sends what may be sent now because of it

    # --- reports of the link ---

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        self.outbox.acked(pubacks)

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        """Pass on an error unless it names a stream that does not take the publish, whose answer does not count.

        If its stream takes the publish, the detail names the stream. An answer that no stream sends decides nothing:
        the publish is sent again while there is time.
        """
        retriable = retriable or reason == reasons.BAD_ANSWER
        operation = self.outbox.answered_by(stream, (order, reason, detail, retriable))
        if operation is None:
            return
        if stream:
            detail = f"stream {excerpt(stream)!r}: {detail}"
        self.destinations.publish_refused(operation.subject, reason, detail, retriable)
        self._refusals.ack_refused(operation.order, reason, detail, retriable)

    def expects(self, stream: str) -> bool:
        return self.outbox.expects(stream)

    def publish_denied(self, subject: bytes, detail: str) -> None:
        """Attribute a denial to its cause, by `protocol.permissions`: a publish, or an answer or pull of a route.

        A denial that may be about a publish, or about an answer to a request of another client, counts as one of the
        publish, which is then never taken for delivered.
        """
        cause = cause_of(text(subject), self._api)
        if cause is None and not self.responses.includes(subject):
            self.destinations.publish_refused(subject, reasons.PERMISSION_DENIED, detail)
            if not self._refusals.publish_denied(subject, detail):
                # A server that maps subjects reports another subject than the publish has.
                self.something_denied(detail)
        elif self._refusals.publish_denied(subject, detail):
            self.destinations.publish_refused(subject, reasons.PERMISSION_DENIED, detail)
        elif cause is None:
            self.responses.denied(subject, detail)
        elif cause.kind != REQUEST:
            self.answers.refused(subject, cause, detail)

    def reply_denied(self, reply: bytes, detail: str) -> None:
        if not self._refusals.reply_denied(reply, detail):
            self.something_denied(detail)

    def something_denied(self, detail: str) -> None:
        """Fail everything that the denial may be about, and mark its destinations as refused."""
        self._emit(RefusalNotAttributed(at=trio.current_time(), connection=self._name, detail=detail))
        for subject in self._refusals.something_denied(detail):
            self.destinations.publish_refused(subject, reasons.PERMISSION_DENIED, detail)

    def read_begins(self) -> None:
        self._reading = True

    def read_done(self) -> None:
        """End the read, and send in this turn what is to be sent because of it."""
        if self._read_done_listeners:
            waiting, self._read_done_listeners = self._read_done_listeners, []
            for notify in waiting:
                notify()
        self._reading = False
        if self._woken:
            self._woken = False
            if self.session is not None:
                self.session.send_at_once()

    def lame_duck(self) -> None:
        """Have the session in use moved to another server. `Link.lame_duck` records it for a session not yet in use."""
        if self.session is not None and not self.moving.is_set():
            self._emit(LameDuck(at=trio.current_time(), connection=self._name, server=self.session.server))
            self.moving.set()

    def discovered(self, servers: Sequence[str]) -> None:
        self._attempts.discovered(servers)
        self.announced.set()
        self.announced = trio.Event()
