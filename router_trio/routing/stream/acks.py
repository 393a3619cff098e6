"""Acks and naks of one route: sent on the current link, and counted.

The subject of an ack outlives the connection that its message was received on. An ack that can't be sent while
disconnected is sent after reconnecting, and so is one that was written to a link and not confirmed before the link
died. An ack that the server refused is sent again when the server accepts acks: otherwise the message would count as
delivered and unsettled for the entire ack wait. The stream is looked up first (`consumer/owed_acks.py`): it may have
been rolled back since, and may have given the sequence to another message.

A durable that was deleted may be that of another stream when it is found again. Until then no ack is sent, since it
could ack another message.

A nak need not be sent again, since the message is redelivered anyway. It is only if other messages wait for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import trio

from router_trio.connection.answers import Kind
from router_trio.connection.supervisor import Connection
from router_trio.errors import LinkError, SourceError, reasons
from router_trio.errors.quotes import bounded
from router_trio.events import AckFailed, Emit, NakFailed
from router_trio.link import ConsumerSpec, Link
from router_trio.protocol import ack_reply
from router_trio.protocol.permissions import ACK, PULL
from router_trio.routing.source_status import SourceStatus
from router_trio.routing.stream.delivery import StreamDelivery
from router_trio.routing.stream.subject_order import Awaited

MOST_REFUSED = 65_536
"""Refused acks that are sent again when the server accepts acks; beyond that number the oldest are forgotten."""


class Acks:
    """Sends the acks, naks and terms of a route to its stream, and is their `Answering`.

    No method raises. All but `wait_for_owed` are synchronous.
    """

    def __init__(self, connection: Connection, emit: Emit) -> None:
        self.connection: Connection = connection
        self._counters = connection.outbox.counters
        self._answers = connection.listener.answers
        self._emit = emit
        self.incarnation: int = 0
        """The incarnation of the stream whose messages are acked."""
        self._unsent: list[bytes] = []
        self._refused: dict[bytes, bytes] = {}
        """Acks that the server refused, by the sequences of their messages."""
        self._accepts = trio.Event()
        """Set when the server accepts acks while `_refused` has some."""
        self._on_hold = False
        self._held: list[bytes] = []

    def on(self, connection: Connection) -> Acks:
        """Send acks on this connection from now on, which may be the same one, also those that are still unsent."""
        self.connection = connection
        self._counters = connection.outbox.counters
        self._answers = connection.listener.answers
        return self

    def belong_to(
        self,
        status: SourceStatus,
        spec: ConsumerSpec,
        pull_denied: Callable[[SourceError], None],
        ack_denied: Callable[[], None],
    ) -> None:
        """Belong to the source with this status from now on.

        `pull_denied` gets the error of a refused pull, `ack_denied` is called when an answer was refused.
        """
        self._status = status
        self._pull_denied = pull_denied
        self._ack_denied = ack_denied
        self.pull_listener: Callable[[], None] | None = None
        """The function passed to `await_pull`, until `await_no_pull`. It is read for each message: no property."""
        self._answers.belong_to(spec.stream, spec.durable, self)

    def await_pull(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the server has accepted a pull, or none is to be sent; see `await_no_pull`."""
        self.pull_listener = listener

    def await_no_pull(self) -> None:
        """Stop calling the function that was passed to `await_pull`."""
        self.pull_listener = None

    def ack(self, replies: Sequence[bytes]) -> None:
        """Ack the messages with these reply subjects, so that they are not redelivered."""
        if self._on_hold:
            self._held += replies
            return
        link = self.connection.link
        failed = [(reply, _not_connected()) for reply in replies] if link is None else link.ack(replies)
        if failed:
            unsent = {reply for reply, _ in failed}
            replies = [reply for reply in replies if reply not in unsent]
        if replies:
            self._answers.sent("ack", self, replies)
        if self._refused:
            for reply in replies:
                self._refused.pop(_sequence(reply), None)  # this ack replaces it, or is refused as well
        for reply, error in failed:
            self._unsent.append(reply)
            self._failed("ack", AckFailed, error)

    def nak(self, reply: bytes, delay: float) -> None:
        """Have the message with this reply subject redelivered after `delay` seconds."""
        link = self.connection.link
        try:
            if link is None:
                raise _not_connected()
            link.nak(reply, delay)
        except LinkError as error:
            self._failed("nak", NakFailed, error)
        else:
            self._answers.sent("nak", self, (reply,))

    def term(self, reply: bytes, reason: str) -> None:
        """Terminate the message with this reply subject, so that it is not redelivered. Sent again as an ack is."""
        if self._on_hold:
            self._held.append(reply)  # an ack ends the deliveries as well
            return
        link = self.connection.link
        try:
            if link is None:
                raise _not_connected()
            link.term(reply, reason)
        except LinkError as error:
            self._unsent.append(reply)  # an ack ends the deliveries as well
            self._failed("nak", NakFailed, error)
        else:
            self._answers.sent("term", self, (reply,))

    def hold(self) -> None:
        """Keep acks and terms unsent until `flush_unsent`, since the durable was deleted.

        Messages of another stream may have their sequences by now: `clear` forgets the acks if that is found.
        """
        self._on_hold = True

    def flush_unsent(self, link: Link) -> None:
        """Send the held acks, and the unsent ones, which were counted as failed for lack of a link or with a lost one.

        Acks that can't be sent on this link either, or are lost with it, are sent on the next one: a route does not end
        a link. Acks that the server refuses are sent again when it accepts acks.
        """
        if self._on_hold:
            self._on_hold = False
            held, self._held = self._held, []
            if held:
                self.ack(held)  # they were not counted before
        owed, self._unsent = self._unsent, [reply for reply, _ in link.ack(self._unsent)]
        if self._unsent:
            unsent = {*self._unsent}
            owed = [reply for reply in owed if reply not in unsent]
        if owed:
            self._answers.sent("owed", self, owed)

    def renak(self, link: Link, awaited: Iterable[Awaited[StreamDelivery]]) -> None:
        """Send naks again on a new link for awaited messages, with the remaining delays."""
        now = trio.current_time()
        with suppress(LinkError):
            for one in awaited:
                link.nak(one.ack_subject, max(0.0, one.due - now))

    async def wait_for_owed(self) -> tuple[int, bytes]:
        """Wait until there are refused acks and the server accepts acks. Can be cancelled. For one task at a time.

        Returns the sequence and the time of the last message among theirs.
        """
        await self._accepts.wait()
        while not self._refused:
            self._accepts = trio.Event()
            await self._accepts.wait()
        last = max(self._refused, key=int)
        return int(last), ack_reply.tokens(self._refused[last])[ack_reply.TIME]

    def resend_up_to(self, last: int, *, confirmed: bool) -> None:
        """Send refused acks of messages up to the sequence `last`, or forget them if these were not `confirmed`."""
        self._accepts = trio.Event()
        owed = [sequence for sequence in self._refused if int(sequence) <= last]
        replies = [self._refused.pop(sequence) for sequence in owed]
        if confirmed and replies:
            self.ack(replies)

    @property
    def has_unsent(self) -> bool:
        """Return True if `flush_unsent` has acks to send."""
        return bool(self._unsent or self._held)

    def clear(self) -> None:
        """Forget all unsent acks: their stream is gone, and they would ack messages of the next one.

        Acks that were written before this call and are refused later, or lost with their link, are not sent again.
        """
        self.incarnation += 1
        self._unsent.clear()
        self._held.clear()
        self._refused.clear()

    # --- answers of the server ---

    @property
    def route(self) -> str:
        """The name of the route."""
        return self._status.name

    def asked(self, kind: Kind, subjects: Sequence[bytes]) -> None:
        """Record sent requests that are neither acks nor naks: see `connection.answers`."""
        self._answers.sent(kind, self, subjects)

    def refused(self, cause: str, subject: str, detail: str) -> bool:
        fresh = cause not in self._status.obstacles
        if cause == ACK:
            what = "acks and naks, so its stream redelivers messages that were routed"
        else:
            what = "pull requests, so it receives no messages"
        described = f"the server refuses its {what}; {detail}; allow this user to publish to {subject}"
        self._status.add_obstacle(cause, bounded(described))
        if cause == ACK:
            self._ack_denied()
        if cause == PULL:
            self._pull_denied(SourceError(described, reason=reasons.PERMISSION_DENIED))
        return fresh

    def passed(self, cause: str) -> None:
        self._status.remove_obstacle(cause)
        if cause == PULL and self.pull_listener is not None:
            self.pull_listener()
        if cause == ACK and self._refused:
            self._accepts.set()

    def not_taken(self, replies: Sequence[bytes], incarnation: int, *, refused: bool) -> None:
        """Record that answers were refused, or may be lost. An ack settles messages that were given up as well.

        One that was refused before its link was lost is sent again once: when the server takes acks.
        """
        if incarnation != self.incarnation:
            return
        if not refused:
            if self._refused:
                replies = [reply for reply in replies if _sequence(reply) not in self._refused]
            self._unsent += replies
            return
        for reply in replies:
            self._refused[_sequence(reply)] = reply
            if len(self._refused) > MOST_REFUSED:
                del self._refused[next(iter(self._refused))]

    def pull_answered(self) -> None:
        """Record that the consumer sent something, so the server has accepted a pull without a fence."""
        if self.pull_listener is not None:
            self.passed(PULL)

    def nothing_asked(self) -> None:
        """Record that no pull has to be sent now, so none can be refused."""
        if self.pull_listener is not None and PULL not in self._status.obstacles:
            self.pull_listener()

    def _failed(self, operation: str, event: type[AckFailed] | type[NakFailed], error: LinkError) -> None:
        self._counters.fail(operation, error.reason)
        self._emit(
            event(at=trio.current_time(), connection=self.connection.name, route=self.route, reason=error.reason)
        )


def _sequence(reply: bytes) -> bytes:
    return ack_reply.tokens(reply)[ack_reply.SEQUENCE]


def _not_connected() -> LinkError:
    return LinkError("not connected", reason=reasons.NOT_CONNECTED)
