"""Answers to batches of fast ingest that are read together, against each by itself; what is stored grows."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from router_trio.nats.flow_acks import FlowAcks
from router_trio.protocol.framing import RawMessage


class Told:
    """What a listener is told: of what is stored of a batch, said several times in a row, the last."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def ingested(self, batch: bytes, sequence: int, flow: int) -> None:
        if self.calls and self.calls[-1][:2] == ("ingested", batch):
            self.calls.pop()
        self.calls.append(("ingested", batch, sequence, flow))

    def ingest_ended(self, *about: object) -> None:
        self.calls.append(("ended", *about))

    def ingest_refused(self, *about: object) -> None:
        self.calls.append(("refused", *about))


def answer(subject: bytes, body: bytes, headers: bytes = b"") -> RawMessage:
    size = len(headers) + len(body)
    sizes = b"%d %d" % (len(headers), size) if headers else b"%d" % size
    return subject, b"", len(headers), size, b"%b\r\n%b%b\r\n" % (sizes, headers, body)


def acked(sequence: int, flow: int) -> bytes:
    return b'{"type":"ack","seq":%d,"msgs":%d}' % (sequence, flow)


SUBJECTS = st.sampled_from([b"_INBOX.a.%b.10.fail.%d.1.$FI" % (batch, at) for batch in (b"x", b"y") for at in (1, 7)])
BODIES = (
    st.builds(acked, st.integers(0, 30), st.sampled_from([0, 10, 65_535]))
    | st.sampled_from([
        b'{"type":"gap","last_seq":3,"seq":5}',
        b'{"type":"err","seq":4,"error":{"code":400,"err_code":10077,"description":"maximum messages exceeded"}}',
        b'{"type":"err","seq":4,"error":{"code":400,"err_code":10206,"description":"batch publish ID unknown"}}',
        b'{"stream":"IN","seq":9,"batch":"x","count":9}',
        b'{"msgs":10,"seq":12,"type":"ack"}',
        b'{"type":"ack","seq":12,"msgs":10,"more":1}',
        b'{"type": "ack", "seq": "x", "msgs": 10}',
        b'{"type": "ack", "seq": 13, "msgs": 10}',
        b"[]",
        b"",
    ])
)  # fmt: skip
ANSWERS = st.builds(answer, SUBJECTS | st.just(b"elsewhere"), BODIES) | st.builds(
    answer, SUBJECTS, BODIES, st.sampled_from([b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 503\r\n\r\n"])
)


@given(answers=st.lists(ANSWERS, max_size=12))
def test_what_is_read_together_comes_to_the_same_as_each_by_itself(answers: list[RawMessage]) -> None:
    together, singly = Told(), Told()
    FlowAcks(cast(Any, together)).read(answers)
    one_by_one = FlowAcks(cast(Any, singly))
    for one in answers:
        one_by_one.read([one])
    assert together.calls == singly.calls


def test_of_what_is_stored_of_a_batch_one_read_tells_once() -> None:
    told: list[tuple[bytes, int, int]] = []

    class Listener:
        def ingested(self, *about: Any) -> None:
            told.append(about)

    subject = b"_INBOX.a.x.10.fail.1.1.$FI"
    FlowAcks(cast(Any, Listener())).read([answer(subject, acked(at, 10)) for at in (10, 20, 30)])
    assert told == [(b"x", 30, 10)]
