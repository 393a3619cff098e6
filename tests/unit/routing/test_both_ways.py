"""Code that is written twice for speed gives the same results for the same messages.

Each fast path names the test that holds it equal to its twin; more tests are in `test_both_ways_of_streams`,
`test_pubacks`, `test_deliveries` and `test_traces`. `tests/performance/test_fast_paths.py` measures what each gains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, cast

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from router_trio import Message, Receipt
from router_trio.errors import RouterError
from router_trio.link import SharedDelivery, SubscriptionBatch
from router_trio.message import FENCED
from router_trio.outbox.operation import FrameOwners, OperationBatch
from router_trio.protocol.framing import RawMessage
from router_trio.protocol.headers import EMPTY
from router_trio.routing.core.handler_batch import HandlerBatch
from router_trio.routing.core.passthrough import PassthroughRoute
from router_trio.routing.delivery import Delivery
from router_trio.routing.handlers.calls import Handler, HandlerCalls, begin
from router_trio.routing.handlers.messages import as_message
from router_trio.states import RouteState
from router_trio.testing.frames import raw
from tests.performance.instructions import Bench
from tests.support.compiled import looks_inside
from tests.unit.routing.both_ways import (
    BLOCKS,
    BODIES,
    CORE,
    KEPT,
    MAX_PAYLOAD,
    ONE,
    REPLIES,
    SUBJECTS,
    TWO,
    bench,
    both,
    of_route,
    to,
)

pytestmark = looks_inside


def singly(made: Bench, messages: Sequence[RawMessage]) -> None:
    """Forward each message by itself, as a traced message is."""
    (routing,) = made.routings
    for one in messages:
        routing.forward(Delivery(routing.state, one, trio.current_time()))


# --- core ---


@given(messages=CORE, to=st.sampled_from([ONE, KEPT]))
def test_a_batch_is_forwarded_like_its_messages_one_by_one(
    messages: list[RawMessage], to: list[dict[str, Any]]
) -> None:
    async def fast(made: Bench) -> None:
        _, (route,) = made.core_routes()
        route._forwarding._forward(trio.current_time(), messages)

    async def slow(made: Bench) -> None:
        singly(made, messages)

    both(lambda: bench(to), fast, slow)


LONGER_ID = 17
"""Bytes by which the id of a copy is longer than that of its message."""

TAKEN = CORE.map(lambda many: [one for one in many if one[0] != b"in.--x" and one[3] <= MAX_PAYLOAD - LONGER_ID])


WITH_STREAM = [*ONE, to("stored.{{wildcard(1)}}", jetstream=True)]


@given(messages=TAKEN, to=st.sampled_from([TWO, WITH_STREAM]))
def test_a_batch_to_several_destinations_is_forwarded_like_its_messages_one_by_one(
    messages: list[RawMessage], to: list[dict[str, Any]]
) -> None:
    """Messages that several destinations refuse are left out: in a batch each refusal counts."""

    async def fast(made: Bench) -> None:
        _, (route,) = made.core_routes()
        for one in messages:  # a batch is written destination by destination
            route._forwarding._forward(trio.current_time(), [one])

    async def slow(made: Bench) -> None:
        singly(made, messages)

    both(lambda: bench(to), fast, slow)


@given(messages=st.lists(st.tuples(st.integers(0, 2), CORE), max_size=4))
def test_passthrough_forwards_messages_as_their_routes_would(messages: list[tuple[int, list[RawMessage]]]) -> None:
    arrived = {number: batch for number, batch in messages if batch}

    async def fast(made: Bench) -> None:
        passthrough, routes = made.core_routes()
        passthrough.deliver([SubscriptionBatch(key(routes[number]), batch) for number, batch in arrived.items()])

    async def slow(made: Bench) -> None:
        _, routes = made.core_routes()
        for number, batch in arrived.items():
            routes[number]._received(batch)

    both(lambda: bench(ONE, KEPT, ONE), fast, slow)


def key(route: Any) -> PassthroughRoute:
    deliver = route.source.deliver
    assert isinstance(deliver, SharedDelivery)
    return cast(PassthroughRoute, deliver.key)


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=5), seconds=st.floats(0, 100))
def test_messages_fenced_together_are_counted_like_single_ones(counts: list[int], seconds: float) -> None:
    async def settled(together: bool) -> list[Any]:
        made = bench(*[ONE] * 5)
        _, routes = made.core_routes()
        owners = [key(route) for route in routes[: len(counts)]]
        frames = [b"PUB a 0\r\n\r\n"] * sum(counts)
        batch = OperationBatch(len(frames), frames, len(frames), FrameOwners([*owners], counts), 1.0)
        for operation in [batch] if together else batch.split():
            operation.settle(FENCED, 1.0 + seconds)
        return [of_route(routing.state) for routing in made.routings]

    assert trio.run(settled, True) == trio.run(settled, False)


# --- handlers ---


async def handler(message: Message) -> Any:
    """Answer as the first letter of the payload selects."""
    kind = message.payload[:1]
    if kind == b"0":
        return None
    if kind == b"1":
        return [message.replace(payload=b"one"), message.replace(payload=b"two", headers={"B": "c"})]
    if kind == b"2":
        raise ValueError("it can't")
    if kind == b"3":
        await trio.lowlevel.checkpoint()
    if kind == b"4":
        return message.replace(subject="other.x", reply="_INBOX.z", headers={"Nats-Msg-Id": "of-it", "Nats-TTL": "5"})
    if kind == b"5":
        return "no message"
    if kind == b"6":
        return message.replace(payload=cast(bytes, bytearray(b"no bytes")))
    if kind == b"7":
        return message.replace(payload=b"x" * (MAX_PAYLOAD + 1))
    return message.replace(payload=message.payload.upper())


HANDLED = st.lists(
    st.builds(raw, SUBJECTS, REPLIES, BLOCKS, BODIES | st.sampled_from([b"%d" % kind for kind in range(8)])), max_size=8
)


@given(messages=HANDLED, to=st.sampled_from([ONE, KEPT, TWO]))
def test_messages_handled_in_a_batch_are_handled_like_single_ones(
    messages: list[RawMessage], to: list[dict[str, Any]]
) -> None:
    async def fast(made: Bench) -> None:
        _, (route,) = made.core_routes()
        # With several destinations one by one: a batch is written destination by destination.
        for batch in [messages] if len(to) == 1 else [[one] for one in messages]:
            await route._handle(handler, trio.current_time(), batch)

    async def slow(made: Bench) -> None:
        (routing,) = made.routings
        for one in messages:
            await routing.route(handler, Delivery(routing.state, one, trio.current_time()))

    both(lambda: bench(to), fast, slow)


def plain(message: Message) -> Message:
    return message.replace(payload=message.payload[::-1])


def without_headers(message: Message) -> Message:
    return message.replace(payload=message.payload[::-1], headers=EMPTY)


@given(messages=CORE)
@pytest.mark.parametrize("handler", [plain, without_headers])
def test_a_changed_payload_is_sent_like_any_other_answer(handler: Handler, messages: list[RawMessage]) -> None:
    async def fast(made: Bench) -> None:
        handled = HandlerBatch(made.routings[0], handler, trio.current_time())
        assert handled.handle_each(HandlerCalls(handler, [(one, as_message(one, "main")) for one in messages])) is None
        handled.offer_kept()

    async def slow(made: Bench) -> None:
        (routing,) = made.routings
        handled = HandlerBatch(routing, handler, trio.current_time())
        for one in messages:
            answered(handled, handler, routing.state, one)
        handled.offer_kept()

    both(lambda: bench(ONE), fast, slow)


def answered(handled: HandlerBatch, handler: Handler, state: RouteState, one: RawMessage) -> None:
    message, context = as_message(one, "main"), copy_context()
    answer = begin(handler, message, context)
    handled._answered(answer, message, Delivery(state, one, trio.current_time()), context)


# --- the frame of a changed payload ---


@given(one=st.builds(raw, SUBJECTS, REPLIES, st.just(b""), BODIES), body=BODIES)
def test_the_frame_of_a_changed_payload_is_that_of_the_message(one: RawMessage, body: bytes) -> None:
    (outlet,) = bench(ONE).routings[0].outlets
    message = as_message(one, "main")

    def result_of(frame: Callable[[], bytes]) -> object:
        try:
            return frame()
        except RouterError as error:
            return type(error), str(error)

    fast = result_of(lambda: outlet.frame_of(body, one))
    assert fast == result_of(lambda: outlet.frame(message.replace(payload=body), message, one))


# --- a program ---


@given(script=st.lists(st.sampled_from(["publish", "publish", "write", "fence", "lose", "later"]), max_size=20))
@example(script=["publish", "publish", "write", "lose", "publish", "publish", "write", "fence", "write"])
def test_publishes_that_a_program_makes_together_are_accepted_like_single_ones(script: list[str]) -> None:
    async def run(together: bool) -> list[Any]:
        made = Bench(1)
        outbox = made.outbox
        receipts: list[Receipt] = []
        fates: list[Any] = []
        for number, step in enumerate(script):
            if step == "publish":
                frame = b"PUB a.%d 0\r\n\r\n" % number
                receipts.append(Receipt())
                fates.append(outbox.offer(frame, owner=receipts[-1], together=together))
            elif step == "write":
                fates.append(b"".join(made.written()))
            elif step == "fence":
                outbox.fenced(outbox.fences.sent)
            elif step == "lose":
                outbox.link_down("closed")
                outbox.link_up()
            else:
                cast(MockClock, trio.lowlevel.current_clock()).jump(0.002)
            fates.append((outbox.pending, outbox.in_flight, outbox.fences.unfenced, outbox.pending_bytes))
            fates.append([receipt.fate for receipt in receipts])
        counters = outbox.counters
        return [*fates, outbox.ledger.settled, outbox.ledger.accepted, counters.succeeded, +counters.failed]

    assert trio.run(run, True, clock=MockClock()) == trio.run(run, False, clock=MockClock())
