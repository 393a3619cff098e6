"""What a stream answers to a publish, in every form that a server gives it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from router_trio.message import PubAck
from router_trio.nats import pubacks
from router_trio.nats.pubacks import PubAcks
from router_trio.testing.frames import raw


class Listener:
    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        assert all(fate.name == "acked" and fate.reason is None for _, fate in pubacks)
        self.told += [(order, fate.stream, fate.sequence, fate.duplicate) for order, fate in pubacks]

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool) -> None:
        self.told.append((order, reason, retriable))

    def publish_denied(self, subject: bytes, detail: str) -> None:
        raise AssertionError("not from here")

    def handed_out(self) -> None:
        raise AssertionError("not from here")

    def lame_duck(self) -> None:
        raise AssertionError("not from here")

    def discovered(self, servers: Sequence[str]) -> None:
        raise AssertionError("not from here")


def told(*bodies: bytes, block: bytes = b"") -> list[tuple[object, ...]]:
    """What a listener hears of these answers, to the publishes 1, 2, 3..."""
    listener = Listener()
    answers = [raw(b"_INBOX.x.%d" % number, b"", block, body) for number, body in enumerate(bodies, 1)]
    PubAcks(listener).read(answers)
    return listener.told


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":"OUT", "seq":7}', ("OUT", 7, False)),
        (b'{"stream":"OUT", "seq":8,"duplicate": true}', ("OUT", 8, True)),
        (b'{"stream":"OUT","domain":"hub","seq":9}', ("OUT", 9, False)),
        (b'{"stream":"OUT", "seq":9,"domain":"7"}', ("OUT", 9, False)),
        (b'{"stream":"OUT", "seq": 10}', ("OUT", 10, False)),
        (b'{"seq":11,"stream":"OUT"}', ("OUT", 11, False)),
        ('{"stream":"O:ÜT", "seq":12}'.encode(), ("O:ÜT", 12, False)),
    ],
)
def test_a_puback_is_read_the_same_each_time_and_among_others(body: bytes, expected: tuple[object, ...]) -> None:
    other = b'{"stream":"OTHER", "seq":%d}'
    found = told(body, other % 1, body, other % 2, body)
    assert found == [
        (1, *expected),
        (2, "OTHER", 1, False),
        (3, *expected),
        (4, "OTHER", 2, False),
        (5, *expected),
    ]


@pytest.mark.parametrize("end", [b"7", b"x}", b"}", b"7]"])
def test_what_begins_like_a_puback_and_is_none_is_refused(end: bytes) -> None:
    found = told(b'{"stream":"OUT", "seq":7}', b'{"stream":"OUT", "seq":' + end)
    assert found == [(1, "OUT", 7, False), (2, "bad_answer", False)]


def test_an_error_says_whether_a_later_try_may_help() -> None:
    passing = b'{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}'
    final = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"}}'
    assert told(passing, final) == [(1, "jetstream_10008", True), (2, "wrong_expectation", False)]


def test_nobody_takes_the_subject() -> None:
    assert told(b"", block=b"NATS/1.0 503\r\n\r\n") == [(1, "no_responders", True)]


def test_what_does_not_end_in_a_number_is_for_no_publish() -> None:
    listener = Listener()
    PubAcks(listener).read([raw(b"_INBOX.x.", b"", b"", b"{}"), raw(b"_INBOX.x.1_0", b"", b"", b"{}")])
    assert listener.told == []


def test_more_streams_than_are_remembered_are_read_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubacks, "MAX_REMEMBERED", 2)
    names = ["A", "B", "C", "A", "B", "C"]
    bodies = [b'{"stream":"%b", "seq":5}' % name.encode() for name in names]
    assert told(*bodies) == [(number, name, 5, False) for number, name in enumerate(names, 1)]
