"""A desk whose publishes are copies of a route, for a stream that takes batches."""

from __future__ import annotations

from router_trio.message import Fate
from router_trio.outbox.operation import Operation
from router_trio.protocol import fast_ingest, framing
from router_trio.protocol.headers import Headers, encode
from tests.unit.outbox.desk import Desk

INBOX = b"_INBOX.abc"
TO = ("route", "in.>")
ACKED = Fate("acked", stream="IN")


class IngestDesk(Desk):
    """A desk whose publishes are copies of a route, for a stream that takes batches."""

    destination = TO

    def __init__(self, **changes: object) -> None:
        super().__init__(max_operations=100_000, **changes)
        self.link_up(INBOX)

    def link_up(self, inbox: bytes) -> None:
        self.inbox = inbox
        self.outbox.link_up(inbox)
        self.outbox.ingest.use_for(TO, "IN")

    def copies(self, count: int, *, subject: bytes = b"in.a", shares: bool = True) -> None:
        for _ in range(count):
            order = self.outbox.next_order
            headers = encode(Headers({"Nats-Msg-Id": f"id-{order}"}))
            frame = framing.publish(subject, b"%d" % order, reply=b"%b.%d" % (self.inbox, order), headers=headers)
            self.outbox.offer(frame, with_ack=True, owner=self, ingest_to=TO if shares else None)

    def taken(self) -> list[Operation]:
        return self.outbox.sender.next_batch()

    def replies(self) -> list[tuple[bytes, int] | None]:
        """What the next ones that are written have for a batch and a number in it."""
        return [fast_ingest.answered(framing.published(one.frame)[1]) for one in self.taken()]
