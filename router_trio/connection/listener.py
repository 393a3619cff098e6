"""Pass on what a link reports: PubAcks and refusals to the outbox, reasons to the destinations.

What is to be sent while a read is delivered is sent at its end, in the same turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from router_trio.connection.answers import Answers
from router_trio.connection.attempts import Attempts
from router_trio.connection.destinations import Destinations
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
    """See `link.LinkListener`. One for all links of a connection, whose outbox it has."""

    def __init__(self, name: str, settings: ConnectionSettings, attempts: Attempts, emit: Emit) -> None:
        self._name = name
        self._attempts = attempts
        self._emit = emit
        self.session: Session | None = None
        """The one that is in use; None while there is no link."""
        self.moving: trio.Event = trio.Event()
        """Set when the server of `session` has said that it will shut down."""
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
        """For routes that answer their streams, or ask them for messages."""
        self._api = settings.api
        belief = self.outbox.belief
        self.destinations: Destinations = Destinations(name, emit, belief.learn, self._stream_found)
        belief.ask(self.destinations)
        self._tell_when_read_done: list[Callable[[], None]] = []
        self._reading = self._woken = False

    def use(self, session: Session | None) -> None:
        """Send through this session from now on; None: through none."""
        assert session is None or self.session is None, "one link is used at a time"
        self.session = session
        self.moving = trio.Event()

    def more_to_send(self) -> None:
        """Have pending publishes sent: at the end of the read that is being delivered, or by the sender's own task."""
        if self._reading:
            self._woken = True
        elif self.session is not None:
            self.session.work.set()

    def when_read_done(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, when all that came at one time has been delivered. For who is told something by a link."""
        self._tell_when_read_done.append(tell)

    def not_written(self, refusal: Refusal) -> None:
        """Note for its destination why the link did not write a publish."""
        operation = refusal.operation
        if operation.with_ack:
            self.destinations.publish_refused(operation.subject, refusal.reason, refusal.detail, refusal.retriable)

    def _stream_found(self, stream: str, subjects: tuple[str, ...] | None) -> None:
        for order, reason, detail, retriable in self.outbox.stream_found(stream, subjects):
            self.ack_refused(order, reason, detail, retriable, stream=stream)
        self.read_done()  # what may be sent for that is sent now

    # --- what the link tells ---

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        self.outbox.acked(pubacks)

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        """See `link.LinkListener`. An error of a stream that does not take the publish is not its answer.

        One of a stream that does names it from here on. What is no answer of a stream at all decides nothing either:
        the publish is sent again, while there is time.
        """
        retriable = retriable or reason == reasons.BAD_ANSWER
        operation = self.outbox.answered_by(stream, (order, reason, detail, retriable))
        if operation is None:
            return
        if stream:
            detail = f"stream {excerpt(stream)!r}: {detail}"
        self.destinations.publish_refused(operation.subject, reason, detail, retriable)
        self._refusals.ack_refused(order, reason, detail, retriable)

    def expects(self, stream: str) -> bool:
        return self.outbox.expects(stream)

    def publish_denied(self, subject: bytes, detail: str) -> None:
        """See `link.LinkListener`. Here a refusal is attributed to what caused it: see `protocol.permissions`."""
        cause = cause_of(text(subject), self._api)
        if cause is None:
            self.destinations.publish_refused(subject, reasons.PERMISSION_DENIED, detail)
            if not self._refusals.publish_denied(subject, detail):
                # A server that maps subjects names another one than was published to.
                self.something_denied(detail)
        elif self._refusals.publish_denied(subject, detail):
            self.destinations.publish_refused(subject, reasons.PERMISSION_DENIED, detail)
        elif cause.kind != REQUEST:
            self.answers.refused(subject, cause, detail)

    def reply_denied(self, reply: bytes, detail: str) -> None:
        if not self._refusals.reply_denied(reply, detail):
            self.something_denied(detail)

    def something_denied(self, detail: str) -> None:
        """See `link.LinkListener`. All that may be meant fails, and its destination is in doubt."""
        self._emit(RefusalNotAttributed(at=trio.current_time(), connection=self._name, detail=detail))
        for subject in self._refusals.something_denied(detail):
            self.destinations.publish_refused(subject, reasons.PERMISSION_DENIED, detail)

    def read_begins(self) -> None:
        self._reading = True

    def read_done(self) -> None:
        """See `LinkListener.read_done`. What is to be sent now is sent in this turn."""
        if self._tell_when_read_done:
            waiting, self._tell_when_read_done = self._tell_when_read_done, []
            for tell in waiting:
                tell()
        self._reading = False
        if self._woken:
            self._woken = False
            if self.session is not None:
                self.session.send_at_once()

    def lame_duck(self) -> None:
        if self.session is not None and not self.moving.is_set():
            self._emit(LameDuck(at=trio.current_time(), connection=self._name, server=self.session.server))
            self.moving.set()

    def discovered(self, servers: Sequence[str]) -> None:
        self._attempts.discovered(servers)
