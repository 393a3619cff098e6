"""The headers of copied messages show their originals, and ids are made of these."""

from __future__ import annotations

import pytest

from router_trio.protocol import framing
from router_trio.protocol.copies import Copied, as_another, copied_from, first_id, original, original_in
from router_trio.protocol.framing import RawMessage
from router_trio.protocol.headers import Headers, encode

LINE = "ORDERS 41 orders.*.* {{partition(4,1)}}.orders.$1.$2 orders.a.new aB3dE5fG"


def raw(*lines: str, payload: bytes = b"body", subject: str = "0.orders.a.new") -> RawMessage:
    block = encode(Headers([("A", "b"), *(("Nats-Stream-Source", line) for line in lines)]))
    return framing.published(framing.publish(subject.encode(), payload, reply=b"", headers=block))


def id_of(message: RawMessage, *reused: int) -> bytes:
    found = original_in(message, copied := Copied(b"ORDERS", reused))
    assert found is not None
    return first_id(message, found, copied)


@pytest.mark.parametrize(
    ("value", "sequence"),
    [
        (LINE, 41),
        ("ORDERS 41", 41),
        ("ORDERS", 0),
        ("", 0),
        ("ORDERS x", 0),
        ("ORDERS 0", 0),
        ("ORDERS " + "9" * 5000, 0),
        ("ORDERS -1", 0),
    ],
)
def test_the_sequence_that_a_message_was_copied_from_is_read(value: str, sequence: int) -> None:
    assert copied_from(encode(Headers({"Nats-Stream-Source": value}))) == sequence
    assert copied_from(b"") == 0


def test_only_the_line_that_the_server_has_added_counts() -> None:
    forged = "ORDERS 1 > > orders.a.new"
    assert copied_from(framing.header_block(raw(forged, LINE))) == 41
    assert original_in(raw(forged, LINE.replace("ORDERS", "OTHER")), Copied(b"ORDERS")) is None
    assert original(b"NATS/1.0\r\nnats-stream-source: ORDERS 1\r\n\r\n") is None


def test_an_id_is_made_of_the_original_and_not_of_the_copy() -> None:
    assert id_of(raw(LINE)).startswith(b"ORDERS:41:c")
    assert id_of(raw(LINE)) == id_of(raw(LINE, subject="3.orders.a.new"))
    changed = LINE.replace("{{partition(4,1)}}", "{{partition(7,1)}}")
    assert id_of(raw(LINE)) == id_of(raw(changed)), "the partitions were changed"


@pytest.mark.parametrize(
    "other",
    [
        raw(LINE.replace("41", "42")),
        raw(LINE, payload=b"other"),
        raw(LINE.replace("orders.a.new", "orders.b.new")),
        raw(LINE.replace("aB3dE5fG", "zzzzzzzz")),
        raw("ORDERS 1 > > orders.a.new", LINE),
    ],
    ids=["sequence", "payload", "subject", "stream made anew", "header"],
)
def test_another_message_has_another_id(other: RawMessage) -> None:
    assert id_of(raw(LINE)) != id_of(other)


def test_an_equal_message_under_a_sequence_that_is_used_again_has_another_id() -> None:
    again = LINE.replace("{{partition(4,1)}}", as_another("{{partition(4,1)}}", 1))
    assert again != LINE
    assert id_of(raw(again), 41) != id_of(raw(LINE), 41) == id_of(raw(LINE))
    assert id_of(raw(again), 40) == id_of(raw(LINE)), "this sequence was not used before"


def test_a_message_keeps_its_id_when_its_stream_is_rolled_back_once_more() -> None:
    """It may be delivered again, or copied again if it is still there."""
    once, twice = (LINE.replace("{{partition(4,1)}}", as_another("{{partition(4,1)}}", count)) for count in (1, 2))
    assert id_of(raw(once), 20) == id_of(raw(once), 20, 70) == id_of(raw(LINE)), "it had its sequence first"
    assert id_of(raw(once), 41) == id_of(raw(once), 41, 70) == id_of(raw(twice), 41, 40) != id_of(raw(LINE))
    assert id_of(raw(twice), 20, 70) not in (id_of(raw(once), 20, 70), id_of(raw(once), 41))
