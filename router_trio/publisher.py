"""Publishing from a program: refused before it is accepted, or accepted and followed to its fate."""

from __future__ import annotations

import trio

from router_trio import headers as header_codec
from router_trio import protocol
from router_trio.connection import Connection
from router_trio.dispatch.outlet import MESSAGE_ID, new_message_id
from router_trio.errors import PublishError, SubjectError
from router_trio.headers import Headers, HeadersLike
from router_trio.message import Fate
from router_trio.receipt import Receipt
from router_trio.subjects import validate_subject


class Publisher:
    """Publishes to one connection. See `Live.publish` and `Live.publish_with_ack` for the promises."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox = connection.outbox

    async def publish(self, subject: str, payload: bytes, headers: HeadersLike) -> Receipt:
        """A core publish."""
        target, block, body = self._checked(subject, payload, headers, reserve=0)
        receipt = Receipt()
        await trio.lowlevel.checkpoint_if_cancelled()
        blocked = await self._room(with_ack=False)
        # From here to the return nothing awaits: a caller that is cancelled knows that nothing was accepted.
        frame = protocol.publish(target, body, headers=block)
        receipt.status = self._outbox.offer(frame, owner=receipt, blocked=blocked)
        return receipt

    async def publish_with_ack(self, subject: str, payload: bytes, headers: HeadersLike, timeout: float) -> Receipt:  # noqa: ASYNC109 - a deadline of the operation itself: when it passes, the operation fails
        """A JetStream publish."""
        target, block, body = self._checked(subject, payload, headers, reserve=64)
        if header_codec.find(block, MESSAGE_ID) is None:
            block = header_codec.replace(block, MESSAGE_ID, new_message_id())
        receipt = Receipt()
        await trio.lowlevel.checkpoint_if_cancelled()
        blocked = await self._room(with_ack=True)
        order = self._outbox.next_order
        reply = b"%b.%d" % (self._connection.inbox, order)
        frame = protocol.publish(target, body, reply=reply, headers=block)
        receipt.status = self._outbox.offer(frame, with_ack=True, owner=receipt, blocked=blocked)
        if receipt.status != "failed_open" and self._connection.connected:
            await self._answer(receipt, order, timeout)
        return receipt

    async def _answer(self, receipt: Receipt, order: int, limit: float) -> None:
        """Wait for the PubAck, the end of the link or of the time. Cancelled, the message stays accepted."""
        with trio.move_on_after(limit) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_then_cancel, receipt.settled, nursery.cancel_scope)
                nursery.start_soon(_then_cancel, self._connection.changed, nursery.cancel_scope)
        if receipt.fate is None and scope.cancelled_caught:
            operation = self._outbox.find(order)
            if operation is not None:
                self._outbox.give_up(operation, "timeout", f"no PubAck within {limit:g} s")
        if receipt.fate is None:
            receipt.status = "queued"
            return
        fate = receipt.fate
        receipt.status = "acked" if fate.name == "acked" else fate.name
        if fate.name not in ("acked", "failed_open"):
            raise _failure(fate)

    async def _room(self, *, with_ack: bool) -> bool:
        """Wait while the queue is full. Returns whether the failure of not being connected was counted meanwhile."""
        if not self._outbox.blocks:
            return False
        if self._connection.connected:
            await self._connection.room()
            return False
        self._outbox.blocked(with_ack)
        await self._connection.room()
        return True

    def _checked(
        self, subject: str, payload: bytes, given: HeadersLike, *, reserve: int
    ) -> tuple[bytes, bytes, bytes]:
        """Subject, header block and payload, fit for a frame. `reserve` is kept for a header that is added."""
        connection = self._connection
        kind = "publish_with_ack" if reserve else "publish"
        try:
            try:
                validate_subject(subject)
                target = protocol.wire(subject)
            except (SubjectError, UnicodeEncodeError) as error:
                raise PublishError(str(error), reason="invalid_subject") from error
            if not isinstance(payload, bytes | bytearray | memoryview):
                raise PublishError(
                    f"a payload is bytes, this one is {type(payload).__name__}; encode it", reason="invalid_payload"
                )
            body = bytes(payload)
            block = header_codec.encode(Headers(given))
            size = len(block) + len(body) + reserve
            if size > connection.max_payload:
                raise PublishError(
                    f"{size} bytes with headers are more than the max_payload of {connection.max_payload} bytes of "
                    f"connection {connection.name!r}",
                    reason="too_large",
                )
        except PublishError as error:
            self._outbox.not_accepted(kind == "publish_with_ack", error.reason, str(error))
            raise
        return target, block, body


def _failure(fate: Fate) -> PublishError:
    reason = fate.reason or fate.name
    told = {
        "timeout": "no PubAck came in time; the stream may have stored the message all the same",
        "no_responders": "no stream takes this subject; create one, or publish without ack",
        "permission_denied": "the server does not let this user publish to that subject",
    }.get(reason, "the stream or the server refused it")
    return PublishError(f"{told} ({fate.name}: {reason})", reason=reason)


async def _then_cancel(wait: object, scope: trio.CancelScope) -> None:
    await wait()  # type: ignore[operator]
    scope.cancel()
