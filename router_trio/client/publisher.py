"""Publishing from a program: a publish is refused before it is accepted, or accepted and followed to its fate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Protocol

import trio
from trio.lowlevel import checkpoint_if_cancelled

from router_trio.client.ack_deadlines import Deadlines
from router_trio.client.receipt import Receipt
from router_trio.connection.supervisor import Connection
from router_trio.errors import PublishError, SubjectError, reasons
from router_trio.message import Fate
from router_trio.protocol import framing, message_ids
from router_trio.protocol import headers as header_codec
from router_trio.protocol.headers import Headers, HeadersLike
from router_trio.routing.outlets.contents import measure
from router_trio.subjects.patterns import validate_subject

REMEMBERED_SUBJECTS = 2048
"""Valid subjects that are not checked again."""

SHORT_SUBJECT = 512
"""Bytes of a subject that fits into any control line."""

MAX_ORDER = 2**64
"""The highest number that an operation can have."""


class Answered(Protocol):
    """An event of Trio or asyncio."""

    def set(self) -> object:
        """Wake up the task that waits."""

    async def wait(self) -> object:
        """Wait until the event is set."""


WaitForPubAck = Callable[[Answered], Awaitable[None]]
"""Waits for a PubAck, and raises `PublishError` if there will be none. It waits for the given event, which the caller
has set when the receipt is settled."""


class ConnectionPublisher(Protocol):
    """Publishes on one connection.

    With `blocked` the publish has waited for room on an earlier connection while not connected, so that its failure is
    counted already.
    """

    async def publish(self, subject: str, payload: bytes, headers: HeadersLike, *, blocked: bool = False) -> Receipt:
        """Publish on this connection, as `Live.publish` does."""
        ...

    async def publish_with_ack(
        self,
        subject: str,
        payload: bytes,
        headers: HeadersLike,
        timeout: float,  # noqa: ASYNC109 - see `Live.publish_with_ack`
        stream: str | None = None,
        *,
        blocked: bool = False,
    ) -> Receipt:
        """Publish on this connection, as `Live.publish_with_ack` does."""
        ...

    def publish_now(
        self, subject: str, payload: bytes, headers: HeadersLike, *, blocked: bool | None = None
    ) -> Receipt | None:
        """Publish as `Live.publish` does, without waiting; None if `wait_for_room` has to be called first.

        `blocked` is what `wait_for_room` has returned. Called in the thread of the event loop, by a task or any other
        code.
        """
        ...

    async def wait_for_room(self, *, blocked: bool) -> bool:
        """Wait until `publish_now` may be called again. Returns its next `blocked`."""
        ...

    def publish_with_ack_now(
        self, subject: str, payload: bytes, headers: HeadersLike, timeout: float, stream: str | None = None
    ) -> tuple[Receipt, WaitForPubAck] | None:
        """Publish as `Live.publish_with_ack` does; None if it would have to wait before the message is accepted.

        Returns the receipt, and a function that waits for the PubAck. Called in the thread of the event loop, by a task
        or any other code.
        """
        ...


class Publisher:
    """Publishes on one connection, as described in `Live.publish` and `Live.publish_with_ack`.

    `run` has to be running while a caller waits for a PubAck: it ends the wait at its deadline.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox = outbox = connection.outbox
        self._capacity, self._refusals, self._settlement = outbox.capacity, outbox.refusals, outbox.settlement
        self._waiting: set[Answered] = set()
        self._waiting_for_room: set[trio.CancelScope] = set()
        self._successor: ConnectionPublisher | None = None
        self._deadlines = Deadlines(self._give_up)
        self.run: Callable[[], Awaitable[None]] = self._deadlines.run
        connection.when_changed(self._connection_changed)

    def hand_over(self, successor: ConnectionPublisher) -> None:
        """Let publishers that wait for room publish through `successor` instead: the connection is about to end."""
        self._successor = successor
        for scope in self._waiting_for_room:
            scope.cancel()

    def take_back(self) -> None:
        """Undo `hand_over` for publishers that call from now on."""
        self._successor = None

    async def publish(self, subject: str, payload: bytes, headers: HeadersLike, *, blocked: bool = False) -> Receipt:
        """Publish to core NATS."""
        target, block, body = self._checked(subject, payload, headers, False)
        frame = framing.publish(target, body, b"", block)
        receipt = Receipt()
        outbox = self._outbox
        await checkpoint_if_cancelled()
        # Nothing is awaited between accepting the publish and the return, so a cancelled caller knows that nothing was
        # accepted.
        if not outbox.connected or outbox.blocks:
            blocked = await self._wait_for_room(with_ack=False, blocked=blocked)
            if self._successor is not None:
                return await self._successor.publish(subject, payload, headers, blocked=blocked)
        receipt.status = outbox.offer(frame, owner=receipt, blocked=blocked, together=True)
        return receipt

    def publish_now(
        self, subject: str, payload: bytes, headers: HeadersLike, *, blocked: bool | None = None
    ) -> Receipt | None:
        """Publish to core NATS, or return None if `wait_for_room` has to be called first."""
        target, block, body = self._checked(subject, payload, headers, False)
        outbox = self._outbox
        if outbox.blocks or self._successor is not None or not (outbox.connected or blocked is not None):
            return None
        receipt = Receipt()
        frame = framing.publish(target, body, b"", block)
        receipt.status = outbox.offer(frame, owner=receipt, blocked=bool(blocked), together=True)
        return receipt

    async def wait_for_room(self, *, blocked: bool) -> bool:
        """Wait while the queue is full, until `hand_over`."""
        return await self._wait_for_room(with_ack=False, blocked=blocked)

    async def publish_with_ack(
        self,
        subject: str,
        payload: bytes,
        headers: HeadersLike,
        timeout: float,  # noqa: ASYNC109 - a deadline of the operation itself: when it passes, the operation fails
        stream: str | None = None,
        *,
        blocked: bool = False,
    ) -> Receipt:
        """Publish to JetStream and wait for the PubAck."""
        _check_timeout(timeout)
        target, block, body = self._checked(subject, payload, headers, True)
        receipt = Receipt()
        if self._capacity.refuses(target):
            await self._wait_for_share(target, timeout)
        blocked = await self._wait_for_room(with_ack=True, blocked=blocked)
        if self._successor is not None:
            return await self._successor.publish_with_ack(subject, payload, headers, timeout, stream, blocked=blocked)
        receipt.status, order = self._outbox.offer_with_ack(
            target, body, block, self._connection.inbox, owner=receipt, blocked=blocked, puback_from=stream
        )
        if receipt.status != "failed_open" and self._connection.connected:
            await self._wait_for_puback(receipt, order, timeout, receipt.event())
        return receipt

    def publish_with_ack_now(
        self, subject: str, payload: bytes, headers: HeadersLike, timeout: float, stream: str | None = None
    ) -> tuple[Receipt, WaitForPubAck] | None:
        """Publish to JetStream, or return None if it has to wait for room or for a link."""
        _check_timeout(timeout)
        target, block, body = self._checked(subject, payload, headers, True)
        outbox = self._outbox
        if not outbox.connected or outbox.blocks or self._capacity.refuses(target) or self._successor is not None:
            return None
        receipt = Receipt()
        receipt.status, order = outbox.offer_with_ack(
            target, body, block, self._connection.inbox, owner=receipt, puback_from=stream
        )
        return receipt, partial(self._wait_for_puback, receipt, order, timeout)

    def _connection_changed(self) -> None:
        """Stop waiting for PubAcks: the connection was established or lost."""
        self._deadlines.clear()
        for waiting in self._waiting:
            waiting.set()

    async def _wait_for_puback(self, receipt: Receipt, order: int, limit: float, answered: Answered) -> None:
        """Wait for the PubAck, the loss of the link or the deadline. If cancelled, the message stays accepted."""
        self._waiting.add(answered)
        self._deadlines.add(order, limit)
        try:
            await answered.wait()
        finally:
            self._deadlines.remove(order)
            self._waiting.discard(answered)
        if receipt.fate is None:
            receipt.status = "queued"
            return
        fate = receipt.fate
        receipt.status = fate.name
        if fate.name not in ("acked", "failed_open"):
            raise _failure(fate)

    def _give_up(self, order: int, limit: float) -> None:
        """Fail a publish at its deadline."""
        self._refusals.timed_out(order, limit)

    async def _wait_for_room(self, *, with_ack: bool, blocked: bool) -> bool:
        """Wait while the queue is full, until `hand_over`.

        Returns True if the failure for not being connected has been counted: here, or before if `blocked`.
        """
        if self._connection.connected:
            await checkpoint_if_cancelled()
        else:
            # Without a link a publisher does not wait for room, unless the policy is to block. It must still let other
            # tasks run, such as the one that reconnects.
            await trio.lowlevel.checkpoint()
        while self._outbox.blocks and self._successor is None:
            if not self._connection.connected and not blocked:
                self._capacity.blocked(with_ack)
                blocked = True
            await self._unless_handed_over(self._connection.wait_for_capacity)
        return blocked

    async def _wait_for_share(self, target: bytes, limit: float) -> None:
        """Wait, up to the publish's timeout, while its destination refuses and its share of the room is used up."""
        destination = target.partition(b".")[0]
        with trio.move_on_after(limit):
            await self._unless_handed_over(partial(self._connection.shares.wait, destination))
        if self._successor is not None:
            return
        if self._capacity.refuses(target) and self._capacity.waits_for(destination):
            reason = self._capacity.reason_late(target)
            detail = f"the queue of its destination is full, and within {limit:g} s nothing of it was sent"
            self._settlement.not_accepted(True, reason, detail, framing.text(target))
            raise PublishError(f"{detail} ({reason})", reason=reason)

    async def _unless_handed_over(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait, until `hand_over`."""
        with trio.CancelScope() as scope:
            self._waiting_for_room.add(scope)
            try:
                await wait()
            finally:
                self._waiting_for_room.discard(scope)

    def _checked(self, subject: str, payload: bytes, given: HeadersLike, with_ack: bool) -> tuple[bytes, bytes, bytes]:
        """Return subject, header block and payload for a frame. `with_ack` adds a `Nats-Msg-Id` if there is none."""
        try:
            target = _target(subject)
            body = payload if type(payload) is bytes else _body(payload)
            block = b"" if given is None else header_codec.encode(_headers(given))
            if with_ack and not message_ids.find(block):
                block = message_ids.replace(block, self._connection.new_message_id())
            size = len(block) + len(body)
            if size > self._connection.max_payload:
                measure(self._connection, size)
            if len(target) > SHORT_SUBJECT:
                self._check_line(target, len(block), size, with_ack)
        except PublishError as error:
            self._settlement.not_accepted(with_ack, error.reason, str(error), str(subject))
            raise
        return target, block, body

    def _check_line(self, target: bytes, header_size: int, size: int, with_ack: bool) -> None:
        reply = b"%b.%d" % (self._connection.inbox, MAX_ORDER) if with_ack else b""
        line = framing.control_line_size(target, reply, header_size, size)
        limit = self._connection.max_control_line
        if line > limit:
            raise PublishError(
                f"a subject of {len(target)} bytes makes a control line of {line}, more than the {limit} bytes "
                f"(max_control_line) that the server of connection {self._connection.name!r} takes; shorten it",
                reason=reasons.TOO_LARGE,
            )


class HeldPublisher:
    """Stands in for the `Publisher` of a connection that is being replaced, and publishes on its successor.

    It is a `ConnectionPublisher`.
    """

    def __init__(self, publisher: Callable[[], ConnectionPublisher], before: Publisher) -> None:
        """`publisher` returns the current publisher of the connection. Raises `ConfigurationError` without one.

        `before` is the publisher of the connection that is being replaced.
        """
        self._publisher = publisher
        self.before: Publisher = before
        self._released = trio.Event()

    def release(self) -> None:
        """Let publishers continue: the next connection exists, or there will be none."""
        self._released.set()

    async def publish(self, subject: str, payload: bytes, headers: HeadersLike, *, blocked: bool = False) -> Receipt:
        return await (await self._next()).publish(subject, payload, headers, blocked=blocked)

    async def publish_with_ack(
        self,
        subject: str,
        payload: bytes,
        headers: HeadersLike,
        timeout: float,  # noqa: ASYNC109 - see `Live.publish_with_ack`
        stream: str | None = None,
        *,
        blocked: bool = False,
    ) -> Receipt:
        """Publish on the next connection. The timeout starts when there is one."""
        publisher = await self._next()
        return await publisher.publish_with_ack(subject, payload, headers, timeout, stream, blocked=blocked)

    def publish_now(
        self, subject: str, payload: bytes, headers: HeadersLike, *, blocked: bool | None = None
    ) -> Receipt | None:
        return None

    async def wait_for_room(self, *, blocked: bool) -> bool:
        await self._released.wait()
        return blocked

    def publish_with_ack_now(
        self, subject: str, payload: bytes, headers: HeadersLike, timeout: float, stream: str | None = None
    ) -> tuple[Receipt, WaitForPubAck] | None:
        return None

    async def _next(self) -> ConnectionPublisher:
        await self._released.wait()
        return self._publisher()


@lru_cache(REMEMBERED_SUBJECTS)
def _target(subject: str) -> bytes:
    try:
        validate_subject(subject)
        return framing.wire(subject)
    except (SubjectError, UnicodeEncodeError) as error:
        raise PublishError(str(error), reason=reasons.INVALID_SUBJECT) from error


def _check_timeout(timeout: float) -> None:
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds, 0 or more; got {timeout}")


def _body(payload: object) -> bytes:
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise PublishError(
            f"payload must be bytes, got {type(payload).__name__}; encode it", reason=reasons.INVALID_PAYLOAD
        )
    return bytes(payload)


def _headers(given: HeadersLike) -> Headers:
    try:
        return Headers(given)
    except (TypeError, ValueError) as error:
        detail = f"headers must be a mapping of strings, or pairs of strings; got {type(given).__name__}: {error}"
        raise PublishError(detail, reason=reasons.INVALID_HEADER) from error


def _failure(fate: Fate) -> PublishError:
    reason = fate.reason or fate.name
    detail = {
        reasons.TIMEOUT: "no PubAck arrived in time; the stream may have stored the message anyway",
        reasons.NO_RESPONDERS: "no stream takes this subject; create one, or publish without ack",
        reasons.PERMISSION_DENIED: "the server does not permit this user to publish to that subject",
        reasons.SHUTDOWN: "the router or its connection ended before a PubAck arrived; the stream may have stored it",
        reasons.QUEUE_FULL: "it was dropped for newer messages, because the queue of its destination is full",
        reasons.EXPIRED: "it was dropped, because it waited for longer than pending_max_age",
    }.get(reason, "the stream or the server refused it" + (f": {fate.detail}" if fate.detail else ""))
    return PublishError(f"{detail} ({fate.name}: {reason})", reason=reason)
