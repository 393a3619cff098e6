"""The token of a partition is removed from the subjects of its deliveries, and from nothing else."""

from __future__ import annotations

from router_trio.routing.stream.consumer.tokens import token_of, without_tokens
from router_trio.testing.frames import raw

ACK = b"$JS.ACK.ORDERS-router.router-3.1.5.5.1700000000000000000.0"
DELIVERY = raw(b"3.orders.7.new", ACK, b"", b"x")
STATUS = raw(b"_INBOX.x", b"", b"NATS/1.0 409 Batch Completed\r\n\r\n", b"")


def test_deliveries_have_the_subject_of_the_source() -> None:
    batch = [DELIVERY, STATUS, raw(b"3.3.x", ACK, b"", b"y")]
    cut = without_tokens(batch, token_of(3))
    assert [one[0] for one in cut] == [b"orders.7.new", b"_INBOX.x", b"3.x"]
    assert [one[1:] for one in cut] == [one[1:] for one in batch]


def test_messages_of_others_and_statuses_stay_as_they_are() -> None:
    batch = [
        STATUS,
        raw(b"3.looks.like.it", b"", b"", b""),
        raw(b"30.orders.1", ACK, b"", b""),
        raw(b"x", b"y", b"", b""),
    ]
    assert without_tokens(batch, token_of(3)) == batch
