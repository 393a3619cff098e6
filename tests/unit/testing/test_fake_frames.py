"""Parsing by the fake broker of the bytes that a link writes."""

from __future__ import annotations

import pytest

from router_trio.testing.frames import FrameError, Publish, parse, raw


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (b"SUB orders 1\r\n", "not a PUB"),
        (b"PUB orders.new 1 2 3\r\n\r\n", "not a PUB"),
        (b"PUB orders.new 3", "not a PUB"),
        (b"PUB  0\r\n\r\n", "subject"),
        (b"PUB a\tb 0\r\n\r\n", "subject"),
        (b"PUB a b\n 0\r\n\r\n", "reply"),
        (b"PUB a -1\r\n\r\n", "not a number"),
        (b"HPUB a x 3\r\nabc\r\n", "not a number"),
        (b"PUB a 3\r\nabcd\r\n", "announces 3 bytes"),
        (b"PUB a 3\r\nabc\n\n", "announces 3 bytes"),
        (b"PUB a 0\r\n\r\nPUB a 0\r\n\r\n", "announces 0 bytes"),
        (b"HPUB a 4 3\r\nabc\r\n", "more headers than bytes"),
    ],
)
def test_frames_that_a_server_would_refuse_are_refused(frame: bytes, complaint: str) -> None:
    with pytest.raises(FrameError, match=complaint):
        parse(frame)


@pytest.mark.parametrize(
    ("frame", "read"),
    [
        (b"PUB a.b 0\r\n\r\n", Publish(b"a.b", b"", b"", b"")),
        (b"PUB a.b r 3\r\na\r\n\r\n", Publish(b"a.b", b"r", b"", b"a\r\n")),
        (b"HPUB a.\xff 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", Publish(b"a.\xff", b"", b"NATS/1.0\r\n\r\n", b"hi")),
        (b"HPUB a r 8 8\r\nNATS/1.0\r\n", Publish(b"a", b"r", b"NATS/1.0", b"")),
    ],
)
def test_frames_are_parsed_and_an_incomplete_tail_is_kept(frame: bytes, read: Publish) -> None:
    assert parse(frame) == read
    assert raw(*read)[4] == frame.split(b" ", 2)[2]
