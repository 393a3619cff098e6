"""Batches of fast ingest against a stream, with whatever can happen to them: all is stored once, in order."""

from __future__ import annotations

import json
import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_trio.link import StreamConfig
from router_trio.message import stored
from router_trio.outbox.batch import ENDS_WITHIN, LINGER
from router_trio.outbox.fast_ingest import REST, WORTH
from router_trio.outbox.retries import ACK_BUDGET, RESEND_UNACKED_AFTER
from router_trio.protocol import fast_ingest
from router_trio.testing.frames import parse
from router_trio.testing.streams import Stream
from tests.unit.outbox.ingest_desk import IngestDesk


@pytest.mark.parametrize("how", ["recalled", "given up", "expired"])
def test_a_try_that_waits_for_the_end_of_a_batch_and_is_taken_back_leaves_its_lane_to_others(how: str) -> None:
    desk = IngestDesk(max_age=6.0)
    desk.copies(2)
    desk.taken()
    desk.now = 3.0
    desk.copies(WORTH)
    desk.taken()
    desk.now = 3.0 + LINGER + 1e-9
    desk.taken()
    desk.now = RESEND_UNACKED_AFTER
    desk.outbox.refusals.sweep()
    assert desk.taken() == [], "the first is to be tried again, and waits for the end of the batch, which is late"
    outbox = desk.outbox
    (first,) = (one for one in outbox.queue._waiting if one.order == 1)
    match how:
        case "recalled":
            outbox.recall(lambda operation: operation.order <= 2)
        case "given up":
            assert outbox.refusals.give_up(first, "timeout", "its publisher's time is over")
        case "expired":
            desk.now = 6.1
    desk.copies(1)
    written = [one.order for _ in range(5) for one in desk.taken()]
    assert written, "the next of its subject is tried"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_all_is_stored_once_in_the_order_of_each_subject(seed: int) -> None:
    _play(random.Random(seed), steps=60)


def _play(draw: random.Random, steps: int) -> None:
    """Publish, lose answers and links, forget and forbid batches; then mend all, and look at the stream."""
    desk = IngestDesk()
    config = StreamConfig("IN", ("in.>",), allow_batched=True)
    stream = Stream("IN", ["in.>"], created="", duplicate_window=1e9, max_messages=None, config=config)
    answers: list[tuple[bytes, bytes]] = []
    inboxes = 0

    def write(losing: bool) -> None:
        for operation in desk.taken():
            publish = parse(operation.frame)
            if publish.reply.endswith(b".$FI"):
                store = partial(stream.store, publish, desk.now)
                found = stream.ingest.answers_to(publish, desk.now, store, stream.config.allow_batched)
            else:
                found = [stream.store(publish, desk.now)]
            answers.extend((publish.reply, answer) for answer in found if not losing or draw.random() > 0.2)

    def answer(count: int) -> None:
        for reply, body in answers[:count]:
            told, about = json.loads(body), fast_ingest.answered(reply)
            if about is None:
                desk.outbox.acked([(int(reply.rpartition(b".")[2]), stored("IN", told["seq"]))])
            elif told.get("type") == "ack":
                desk.outbox.ingest.stored(about[0], told["seq"], told["msgs"])
            else:
                desk.outbox.ingest.ended(about[0], told.get("count"))
        del answers[:count]

    for _ in range(steps):
        what = draw.choice(["copies", "copies", "few", "write", "write", "answer", "answer", "time", "rare"])
        if what in ("copies", "few"):
            most = 3 if what == "few" else 3 * WORTH
            for _ in range(draw.randrange(most)):
                desk.copies(1, subject=draw.choice([b"in.a", b"in.b", b"in.c"]), shares=draw.random() > 0.01)
        elif what == "write":
            write(losing=draw.random() < 0.3)
        elif what == "answer":
            answer(draw.randrange(len(answers) + 1))
        elif what == "time":
            # A publish whose answer is lost last of all is still sent again before its budget is over.
            latest = ACK_BUDGET - 2 * RESEND_UNACKED_AFTER
            desk.now = min(desk.now + draw.choice([0.001, LINGER, ENDS_WITHIN, 1.0, REST]), latest)
            desk.outbox.refusals.sweep()
        else:
            rare = draw.choice(["link", "forget", "forbid", "allow"])
            if rare == "link":
                answers.clear()
                inboxes += 1
                desk.outbox.link_down("closed")
                desk.link_up(b"_INBOX.l%02d" % inboxes)
            elif rare == "forget":
                stream.ingest.forget_batches()
            else:
                stream.allow_batched(rare == "allow")
    stream.allow_batched(True)
    for _ in range(200):
        write(losing=False)
        answer(len(answers))
        desk.now = max(desk.now, desk.outbox.sender.next_batch_at() or desk.now + 1.0)
        desk.outbox.refusals.sweep()
    assert desk.outbox.queue.pending_bytes == 0
    accepted = desk.outbox.ledger.accepted
    assert desk.books() == (accepted, 0, 0, {"acked": accepted} if accepted else {})
    kept = stream.messages()
    assert sorted(int(one.payload) for one in kept) == list(range(1, accepted + 1))
    for subject in ("in.a", "in.b", "in.c"):
        orders = [int(one.payload) for one in kept if one.subject == subject]
        assert orders == sorted(orders)
