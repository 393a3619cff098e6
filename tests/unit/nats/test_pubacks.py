"""A stream's answers to publishes, in every form that a server sends."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.message import PubAck
from router_trio.nats.jetstream import pubacks
from router_trio.nats.jetstream.pubacks import FEW, PubAcks
from router_trio.testing.frames import raw
from tests.support.odd_answers import BODIES, DIGITS, json_values


class Listener:
    def __init__(self) -> None:
        self.reports: list[tuple[object, ...]] = []

    def acked(self, pubacks: Sequence[PubAck]) -> None:
        assert all(fate.name == "acked" and fate.reason is None for _, fate in pubacks)
        self.reports += [(order, fate.stream, fate.sequence, fate.duplicate) for order, fate in pubacks]

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        self.reports.append((order, reason, retriable))

    def expects(self, stream: str) -> bool:
        raise AssertionError("not from here")

    def publish_denied(self, subject: bytes, detail: str) -> None:
        raise AssertionError("not from here")

    def reply_denied(self, reply: bytes, detail: str) -> None:
        raise AssertionError("not from here")

    def something_denied(self, detail: str) -> None:
        raise AssertionError("not from here")

    def read_begins(self) -> None:
        pass

    def read_done(self) -> None:
        raise AssertionError("not from here")

    def lame_duck(self) -> None:
        raise AssertionError("not from here")

    def discovered(self, servers: Sequence[str]) -> None:
        raise AssertionError("not from here")


def reports(*bodies: bytes, block: bytes = b"") -> list[tuple[object, ...]]:
    """Return the calls of a listener for these answers to the publishes 1, 2, 3..."""
    listener = Listener()
    answers = [raw(b"_INBOX.x.%d" % number, b"", block, body) for number, body in enumerate(bodies, 1)]
    PubAcks(listener).read(answers)
    return listener.reports


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
def test_a_puback_is_parsed_the_same_each_time_and_among_others(body: bytes, expected: tuple[object, ...]) -> None:
    other = b'{"stream":"OTHER", "seq":%d}'
    found = reports(body, other % 1, body, other % 2, body)
    assert found == [
        (1, *expected),
        (2, "OTHER", 1, False),
        (3, *expected),
        (4, "OTHER", 2, False),
        (5, *expected),
    ]


@pytest.mark.parametrize("end", [b"7", b"x}", b"}", b"7]"])
def test_an_answer_that_only_begins_like_a_puback_is_refused(end: bytes) -> None:
    found = reports(b'{"stream":"OUT", "seq":7}', b'{"stream":"OUT", "seq":' + end)
    assert found == [(1, "OUT", 7, False), (2, "bad_answer", False)]


def test_an_error_reports_whether_a_retry_may_help() -> None:
    passing = b'{"error":{"code":503,"err_code":10008,"description":"temporarily unavailable"}}'
    final = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"}}'
    assert reports(passing, final) == [(1, "jetstream_10008", True), (2, "wrong_expectation", False)]


def test_a_subject_without_a_stream_has_no_responders() -> None:
    assert reports(b"", block=b"NATS/1.0 503\r\n\r\n") == [(1, "no_responders", True)]


def test_a_reply_subject_without_a_number_settles_no_publish() -> None:
    listener = Listener()
    PubAcks(listener).read([raw(b"_INBOX.x.", b"", b"", b"{}"), raw(b"_INBOX.x.1_0", b"", b"", b"{}")])
    assert listener.reports == []


def test_pubacks_of_more_streams_than_are_remembered_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubacks, "MAX_REMEMBERED", 2)
    names = ["A", "B", "C", "A", "B", "C"]
    bodies = [b'{"stream":"%b", "seq":5}' % name.encode() for name in names]
    assert reports(*bodies) == [(number, name, 5, False) for number, name in enumerate(names, 1)]


# --- streams that may not exist ---


class Asking(Listener):
    """A listener behind `PubAcks` that looks streams up."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []
        self.handed_out_times = 0
        self.pubacks = PubAcks(self, self.asked.append)

    def read_begins(self) -> None:
        pass

    def read_done(self) -> None:
        self.handed_out_times += 1

    def hear(self, *bodies: bytes, first: int = 1) -> None:
        answers = [raw(b"_INBOX.x.%d" % number, b"", b"", body) for number, body in enumerate(bodies, first)]
        self.pubacks.read(answers)


OUT, GHOST = b'{"stream":"OUT", "seq":7}', b'{"stream":"GHOST", "seq":7}'


def test_the_first_pubacks_of_a_stream_wait_until_it_is_known_to_exist() -> None:
    heard = Asking()
    heard.hear(OUT, b'{"stream":"OUT", "seq":8,"duplicate": true}')
    heard.hear(OUT, first=3)
    assert (heard.reports, heard.asked) == ([], [("OUT", "")])
    heard.pubacks.found(("OUT", ""), True)
    assert heard.reports == [(1, "OUT", 7, False), (2, "OUT", 8, True), (3, "OUT", 7, False)]
    assert heard.handed_out_times == 1, "what is acked together is acked now"
    heard.hear(OUT, OUT, first=4)
    assert heard.reports[3:] == [(4, "OUT", 7, False), (5, "OUT", 7, False)]
    assert len(heard.asked) == 1


def test_pubacks_of_a_known_stream_wait_for_nothing_until_the_stream_is_gone() -> None:
    heard = Asking()
    heard.pubacks.found(("OUT", ""), True)
    heard.hear(OUT, OUT)
    assert heard.reports == [(1, "OUT", 7, False), (2, "OUT", 7, False)]
    heard.pubacks.found(("OUT", ""), False)
    assert (heard.asked, heard.handed_out_times) == ([], 0)
    heard.hear(OUT, first=3)
    assert heard.asked == [("OUT", "")]
    heard.pubacks.found(("OUT", ""), False)
    assert heard.reports[2:] == [(3, "bad_answer", False)]


def test_pubacks_that_name_a_missing_stream_are_refused_each_time() -> None:
    heard = Asking()
    for first in (1, 3):
        heard.hear(GHOST, GHOST, first=first)
        heard.pubacks.found(("GHOST", ""), False)
    assert heard.reports == [(number, "bad_answer", False) for number in (1, 2, 3, 4)]
    assert heard.asked == [("GHOST", "")] * 2


def test_a_forged_puback_does_not_affect_the_right_one() -> None:
    heard = Asking()
    heard.hear(GHOST)
    heard.hear(OUT)
    heard.pubacks.found(("GHOST", ""), False)
    assert heard.reports == []
    heard.pubacks.found(("OUT", ""), True)
    assert heard.reports == [(1, "OUT", 7, False)]


def test_a_stream_of_another_domain_is_another_stream() -> None:
    heard = Asking()
    heard.hear(OUT)
    heard.pubacks.found(("OUT", ""), True)
    heard.hear(b'{"stream":"OUT","domain":"hub","seq":9}', first=2)
    assert heard.asked == [("OUT", ""), ("OUT", "hub")]
    assert len(heard.reports) == 1


def test_pubacks_that_wait_for_a_lookup_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubacks, "MAX_KEPT", 10)
    monkeypatch.setattr(pubacks, "MAX_ASKED_ABOUT", 3)
    heard = Asking()
    heard.hear(*[b'{"stream":"S%d", "seq":7}' % number for number in range(5)], *[OUT] * 20)
    assert heard.asked == [("S0", ""), ("S1", ""), ("S2", "")]
    heard.hear(*[b'{"stream":"S0", "seq":7}'] * 20)
    for number in range(3):
        heard.pubacks.found((f"S{number}", ""), True)
    assert len(heard.reports) == 10
    heard.hear(OUT)
    assert heard.asked[-1] == ("OUT", "")


# --- any input that a peer may send ---

NOT_A_PUBACK = {
    **{name: body for name, body in BODIES.items() if name not in ("error is empty", "code is null")},
    "sequence 0": b'{"stream":"OUT", "seq":0}',
    "sequence below 0": b'{"stream":"OUT", "seq":-7}',
    "sequence above the last": b'{"stream":"OUT", "seq":18446744073709551616}',
    "sequence of 20 digits": b'{"stream":"OUT", "seq":99999999999999999999}',
    "sequence of 4,000 digits": b'{"stream":"OUT", "seq":%b}' % DIGITS[:4000],
    "sequence of 5,000 digits": b'{"stream":"OUT", "seq":%b}' % DIGITS,
    "sequence with zeros before it": b'{"stream":"OUT", "seq":007}',
    "sequence is infinite": b'{"stream":"OUT", "seq":1e999}',
    "sequence is not a number": b'{"stream":"OUT", "seq":NaN}',
    "sequence is a fraction": b'{"stream":"OUT", "seq":7.0}',
    "sequence is true": b'{"stream":"OUT", "seq":true}',
    "sequence is a text": b'{"stream":"OUT", "seq":"7"}',
    "sequence is null": b'{"stream":"OUT", "seq":null}',
    "sequence is a list": b'{"stream":"OUT", "seq":[7]}',
    "no sequence": b'{"stream":"OUT"}',
    "no stream": b'{"seq":7}',
    "stream is a number": b'{"stream":7, "seq":7}',
    "stream is null": b'{"stream":null, "seq":7}',
    "stream is an object": b'{"stream":{}, "seq":7}',
    "stream is long": b'{"stream":"%b", "seq":7}' % (b"x" * 256),
    "stream is very long": b'{"stream":"%b", "seq":7}' % (b"x" * 900_000),
    "stream has a line break": b'{"stream":"A\\nB", "seq":7}',
    "stream has a control character": b'{"stream":"A\x07B", "seq":7}',
    "stream has an escape": b'{"stream":"A\\u001b[31m", "seq":7}',
    "stream is no UTF-8": b'{"stream":"\xff", "seq":7}',
    "stream has half a surrogate": b'{"stream":"\\ud800", "seq":7}',
    "duplicate is a number": b'{"stream":"OUT", "seq":7,"duplicate":1}',
    "duplicate is a text": b'{"stream":"OUT", "seq":7,"duplicate":"true"}',
    "stream twice": b'{"stream":"OUT", "stream":"IN", "seq":7}',
    "sequence twice": b'{"stream":"OUT", "seq":7, "seq":8}',
    "a bomb in a field of no use": b'{"stream":"OUT", "seq":7, "x":%b}' % (b"[" * 100_000),
}


@pytest.mark.parametrize("body", NOT_A_PUBACK.values(), ids=NOT_A_PUBACK.keys())
def test_an_invalid_puback_is_one_refusal_and_its_neighbours_are_parsed(body: bytes) -> None:
    good = b'{"stream":"OUT", "seq":7}'
    assert reports(good, body, good) == [(1, "OUT", 7, False), (2, "bad_answer", False), (3, "OUT", 7, False)]


def test_the_largest_sequence_is_parsed() -> None:
    body = b'{"stream":"OUT", "seq":18446744073709551615}'
    assert reports(body, body) == [(1, "OUT", 2**64 - 1, False), (2, "OUT", 2**64 - 1, False)]


@pytest.mark.parametrize("number", ["9" * 19, "9" * 5000, "٣", "-1", "+1", "1_0", "0x1", "", " 1"])
def test_a_number_that_no_publish_has_is_ignored(number: str) -> None:
    listener = Listener()
    PubAcks(listener).read([raw(b"_INBOX.x." + number.encode(), b"", b"", b'{"stream":"OUT", "seq":7}')])
    assert listener.reports == []


def test_the_description_of_an_error_is_bounded_and_printable_and_its_code_is_known() -> None:
    details: list[str] = []

    class Details(Listener):
        def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
            super().ack_refused(order, reason, detail, retriable, stream=stream)
            details.append(detail)

    listener = Details()
    words = b'{"error":{"code":400,"err_code":%d,"description":"a\\nb\\u001b\\ud800%b"}}'
    bodies = [words % (10_071, b"x" * 5000), words % (77_777, b"x"), b"", b'{"error":{"code":400}}']
    PubAcks(listener).read([raw(b"_INBOX.x.1", b"", b"NATS/1.0 400 " + b"y" * 5000, body) for body in bodies])
    assert [reason for _, reason, _ in listener.reports] == [
        "wrong_expectation",
        "jetstream",
        "bad_answer",
        "jetstream",
    ]
    assert details[0].startswith("a\\nb\\x1b\\ud800xxx")
    assert all(detail.isprintable() and 0 < len(detail) <= 300 for detail in details)


@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()), block=st.binary())
def test_any_answer_is_reported_exactly_once(body: bytes, block: bytes) -> None:
    (heard,) = reports(body, block=block)
    assert heard[0] == 1
    if len(heard) == 4:
        _, stream, sequence, duplicate = heard
        assert isinstance(stream, str)
        assert len(stream) <= 255
        assert type(sequence) is int
        assert 0 < sequence < 2**64
        assert type(duplicate) is bool


@given(
    stream=st.text(st.characters(codec="utf-8"), min_size=1, max_size=300),
    sequences=st.lists(st.integers(-5, 2**65), min_size=1, max_size=5),
    compact=st.booleans(),
)
def test_the_cache_of_stream_names_changes_no_answer(stream: str, sequences: list[int], compact: bool) -> None:
    separators = (",", ":") if compact else (", ", ":")
    bodies = [
        json.dumps({"stream": stream, "seq": sequence}, separators=separators, ensure_ascii=False).encode()
        for sequence in sequences
    ]
    together = reports(*bodies)
    alone = [reports(body)[0][1:] for body in bodies]
    assert [heard[1:] for heard in together] == alone


def puback(sequence: int) -> bytes:
    return b'{"stream":"OUT", "seq":%d}' % sequence


USUAL = st.lists(st.tuples(st.integers(0, 10**17).map(str), st.integers(10, 99).map(puback)), min_size=FEW + 1)
ODD = st.tuples(
    st.sampled_from(["7", "", "x", "9" * 18, "9" * 19]),
    st.integers(0, 199).map(puback)
    | st.sampled_from([b'{"stream":"OTHER", "seq":7}', b'{"stream":"OUT", "seq":07}', b""])
    | st.binary(max_size=5).map(lambda tail: b'{"stream":"OUT", "seq":' + tail),
)


def both_ways(answers: list[tuple[str, bytes]]) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    heard = []
    for way in (PubAcks.read, PubAcks.one_by_one):
        listener = Listener()
        pubacks = PubAcks(listener)
        pubacks.read([raw(b"_INBOX.x.1", b"", b"", puback(sequence)) for sequence in (1, 11)])
        way(pubacks, [raw(f"_INBOX.x.{order}".encode(), b"", b"", body) for order, body in answers])
        heard.append(listener.reports)
    return heard[0], heard[1]


@given(answers=USUAL, odd=ODD, at=st.integers(0, FEW))
def test_both_ways_to_read_pubacks_are_the_same(
    answers: list[tuple[str, bytes]], odd: tuple[str, bytes], at: int
) -> None:
    for batch in (answers, [*answers[:at], odd, *answers[at:]]):
        fast, slow = both_ways(batch)
        assert fast == slow


def test_ordinary_pubacks_are_parsed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PubAcks, "one_by_one", None)
    pubacks = PubAcks(Listener())
    pubacks._streams[b'26\r\n{"stream":"OUT", "seq":'] = "OUT"
    pubacks.read([raw(b"_INBOX.x.1", b"", b"", puback(11))] * (FEW + 1))
