"""The gain of each fast path: the instructions that it saves per message, against its twin, in a typical case.

Each bound is about a fifth below the count with Python 3.11, which is in the comment. If a twin becomes cheaper, so
that a test here fails, delete the fast path. The comment at the fast path names the test that holds both equal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from time import thread_time_ns
from typing import Any, cast

import pytest
from trio.testing import MockClock

from router_trio import Message
from router_trio.expressions.output import _is_plain, _Writer
from router_trio.link import SubscriptionBatch
from router_trio.message import Fate
from router_trio.nats.jetstream.pubacks import PubAcks
from router_trio.outbox.operation import Operation
from router_trio.routing.content.routing import ContentRouting
from router_trio.routing.core.handler_batch import HandlerBatch
from router_trio.routing.delivery import Delivery
from router_trio.routing.handlers.calls import OVER, HandlerCalls, begin
from router_trio.routing.handlers.messages import as_messages
from router_trio.routing.stream.cursor import StreamCursor
from router_trio.routing.stream.deliveries import Deliveries
from router_trio.routing.stream.delivery import StreamDelivery, columns_of, delivery_of
from router_trio.routing.stream.in_hand import StreamInHand
from tests.performance.instructions import BODY, Bench, delivered, finish, instructions, puback, raw
from tests.support.compiled import looks_inside

pytestmark = looks_inside

MESSAGES = 256
"""A typical large batch of one read."""


@pytest.fixture(autouse=True)
def clock(mock_clock: MockClock) -> None:
    """Stop the clock; otherwise the messages accepted at one time would depend on the machine."""


def saved(fast: Callable[[], object], slow: Callable[[], object], messages: int = MESSAGES) -> float:
    """Return the instructions that `fast` saves for each of the messages that both take."""
    slow_count = instructions(slow)
    fast_count = instructions(fast)
    assert fast_count > 0
    return (slow_count - fast_count) / messages


def plain(number: int = 7) -> list[Any]:
    return [raw(b"in.0000.%d" % (one % number), b"") for one in range(MESSAGES)]


def carrying(header: bytes, subject: bytes) -> Any:
    """Return a message with that header."""
    block = b"NATS/1.0\r\n%b\r\n\r\n" % header
    return (
        subject,
        b"",
        len(block),
        len(block) + 128,
        b"%d %d\r\n%b%b\r\n" % (len(block), len(block) + 128, block, BODY),
    )


class Listener:
    def acked(self, pubacks: object) -> None:
        """Ignore them."""


async def test_pubacks_that_are_read_together() -> None:
    pubacks = PubAcks(cast(Any, Listener()))
    batch = [puback(order) for order in range(1000, 1000 + MESSAGES)]
    pubacks.one_by_one(batch)
    assert saved(lambda: pubacks.read(batch), lambda: pubacks.one_by_one(batch)) >= 75  # 92


async def test_deliveries_that_are_read_together() -> None:
    deliveries, cursor = Deliveries(Bench(1, stream=True).stream_source().keeper, "IN", "router"), StreamCursor()
    batch = [delivered(number) for number in range(1, 1 + MESSAGES)]
    assert (
        saved(lambda: deliveries.read(batch, cursor, 0.0), lambda: deliveries.one_by_one(batch, cursor, 0.0)) >= 90
    )  # 116


async def test_deliveries_that_follow_are_taken_together() -> None:
    fast, slow = StreamInHand(), StreamInHand()
    keeper = Bench(1, stream=True).stream_source().keeper

    def came(pending: StreamInHand) -> list[StreamDelivery]:
        return [delivery_of(keeper, pending.cursor, delivered(number), 0.0) for number in range(1, 1 + MESSAGES)]

    together, singly = came(fast), came(slow)
    columns = columns_of(together)

    def one_by_one() -> None:
        for delivery in singly:
            slow._add(delivery, 5.0, Listener().acked)

    assert saved(lambda: fast.add(together, columns, 5.0, Listener().acked), one_by_one) >= 180  # 225


async def test_messages_that_are_stored_together() -> None:
    def under_way() -> tuple[Bench, list[Operation]]:
        bench = Bench(1, stream=True)
        bench.stream_source().received([delivered(number) for number in range(1, 1 + MESSAGES)])
        bench.written()
        return bench, [*bench.outbox._queue.in_flight.unacked.values()]

    (bench, together), (_, singly) = under_way(), under_way()
    fate = Fate("acked", None, "OUT", 7)

    def fast() -> None:
        for operation in together:
            operation.settle(fate, 0.0)
        bench.connection.listener.read_done()

    def slow() -> None:
        for operation in singly:
            Delivery.settle(cast(Any, operation).owner, operation, 1, fate, 0.0)

    assert saved(fast, slow) >= 230  # 300


async def test_messages_of_a_stream_that_are_forwarded_together() -> None:
    def came() -> tuple[Bench, list[StreamDelivery]]:
        bench = Bench(1, stream=True)
        keeper = bench.stream_source().keeper
        numbers = range(1, 1 + MESSAGES)
        bench.stream(MESSAGES)()
        return bench, [delivery_of(keeper, StreamCursor(), delivered(number), 0.0) for number in numbers]

    (fast, together), (slow, singly) = came(), came()

    def one_by_one() -> None:
        for delivery in singly:
            slow.routings[0].forward(delivery)

    assert saved(lambda: fast.routings[0].forward_each(together), one_by_one) >= 370  # 466


def settled(bench: Bench) -> None:
    """Have all of it written and fenced."""
    bench.written()
    bench.written()
    bench.outbox.fenced(bench.outbox.fences.sent)
    assert not bench.outbox.pending + bench.outbox.in_flight


async def test_core_messages_that_are_forwarded_together() -> None:
    bench, messages = Bench(1), plain()
    bench.core(MESSAGES)()
    _, (route,) = bench.core_routes()

    def together() -> None:
        route._forwarding._forward(0.0, messages)
        settled(bench)

    def one_by_one() -> None:
        for one in messages:
            route.routing.forward(Delivery(route.state, one, 0.0))
        settled(bench)

    assert saved(together, one_by_one) >= 600  # 746


async def test_a_read_with_messages_for_many_routes() -> None:
    bench = Bench(MESSAGES)
    passthrough, routes = bench.core_routes()
    came = [(route, [raw(b"in.%04d.7" % number, b"")]) for number, route in enumerate(routes)]
    touched = [SubscriptionBatch(cast(Any, route.source.deliver).key, batch) for route, batch in came]

    def together() -> None:
        passthrough.deliver(touched)
        settled(bench)

    def one_by_one() -> None:
        for route, batch in came:
            route._received(batch)
        settled(bench)

    together()
    assert saved(together, one_by_one) >= 520  # 652


async def test_messages_that_go_by_their_content_together() -> None:
    source = {"connection": "main", "subject": "in.0000.*"}
    places = [{"connection": "main", "subject": f"{name}.{{{{wildcard(1)}}}}"} for name in ("high", "low")]
    places[0]["when"] = 'headers["class"] == "high"'
    bench = Bench(1, routes=[{"name": "r", "from": source, "to": places, "strategy": "first_match"}])
    _, (route,) = bench.core_routes()
    assert isinstance(route.routing, ContentRouting)
    messages = [
        carrying(b"class: high" if number % 2 else b"class: low", b"in.0000.%d" % (number % 7))
        for number in range(MESSAGES)
    ]

    def together() -> None:
        route._forwarding._forward_by_content(0.0, messages)
        settled(bench)

    def one_by_one() -> None:
        for one in messages:
            route.routing.forward(Delivery(route.state, one, 0.0))
        settled(bench)

    together()
    assert saved(together, one_by_one) >= 660  # 828


async def test_a_small_map_that_is_written_as_it_is() -> None:
    value = {"id": "c-1", "total": 12345.0}
    assert saved(lambda: _is_plain(value), lambda: _Writer(1024).plain(value, 0), 1) >= 140  # 176


async def shout(message: Message) -> Message:
    return message.replace(payload=message.payload.upper())


async def test_messages_that_are_handled_together() -> None:
    bench, messages = Bench(1), plain()
    bench.core(MESSAGES)()
    _, (route,) = bench.core_routes()

    def together() -> None:
        finish(route._handle(shout, 0.0, messages))
        settled(bench)

    def one_by_one() -> None:
        for one in messages:
            finish(route.routing.route(shout, Delivery(route.state, one, 0.0)))
        settled(bench)

    assert saved(together, one_by_one) >= 650  # 822


async def test_answers_with_only_a_new_payload() -> None:
    bench, raws = Bench(1), plain()
    bench.core(MESSAGES)()
    (routing,) = bench.routings
    messages = [*zip(raws, as_messages(raws, "main"), strict=True)]
    fast, slow = (HandlerBatch(routing, shout, 0.0) for _ in range(2))

    def one_by_one() -> None:
        for one, message in messages:
            context = copy_context()
            slow._answered(begin(shout, message, context), message, slow._delivery(one), context)

    assert saved(lambda: fast.handle_each(HandlerCalls(shout, messages)), one_by_one) >= 195  # 244


async def test_calls_one_after_another() -> None:
    """The saving is inside of instructions: no exception is raised. So this is measured in time, of the best run."""
    raws = plain()
    messages = [*zip(raws, as_messages(raws, "main"), strict=True)]

    async def echo(message: Message) -> Message:
        return message

    def one_after_another() -> None:
        steps = HandlerCalls(echo, messages).steps
        while copy_context().run(next, steps, OVER) is not OVER:
            pass

    def one_by_one() -> None:
        for _, message in messages:
            begin(echo, message, copy_context())

    times: dict[Callable[[], None], list[int]] = {one_after_another: [], one_by_one: []}
    for _ in range(50):
        for way, taken in times.items():
            began_at = thread_time_ns()
            way()
            taken.append(thread_time_ns() - began_at)
    assert min(times[one_after_another]) < 0.85 * min(times[one_by_one])  # 0.56


async def test_the_twin_saves_nothing() -> None:
    pubacks = PubAcks(cast(Any, Listener()))
    batch = [puback(order) for order in range(1000, 1000 + MESSAGES)]
    pubacks.one_by_one(batch)
    assert saved(lambda: pubacks.one_by_one(batch), lambda: pubacks.one_by_one(batch)) == 0
