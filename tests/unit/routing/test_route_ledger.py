"""The ledger of a core route: received = in hand + settled, at each step, and each message has one fate."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from router_trio.message import Message, stored
from router_trio.routing.core import intake_queue
from router_trio.testing import FakeBroker
from router_trio.testing.frames import raw
from tests.performance.instructions import Bench
from tests.support.compiled import looks_inside
from tests.support.eventually import eventually
from tests.support.world import World, core, handled, to, world
from tests.unit.routing.both_ways import ONE, bench
from tests.unit.routing.both_ways import to as here


def brokers(**edge: Any) -> dict[str, FakeBroker]:
    return {"main": FakeBroker(), "edge": FakeBroker(**edge)}


async def until(w: World, received: int, in_hand: int, **settled: int) -> None:
    await eventually(lambda: w.route_ledger() == (received, in_hand, settled), 60, w.route_ledger)


# --- one destination -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jetstream", [False, True])
async def test_an_unconfirmed_message_is_in_hand_until_it_is_routed(autojump_clock: MockClock, jetstream: bool) -> None:
    two = brokers()
    two["edge"].add_stream("S", ["out"])
    async with world([core("in", to("out", "edge", jetstream=jetstream), connection="main")], brokers=two) as w:
        assert w.route_ledger() == (0, 0, {})
        two["edge"].stall(1.0)
        for _ in range(3):
            w.broker.publish("in", b"x")
        await until(w, 3, 3)
        await until(w, 3, 0, routed=3)
        await w.lose("edge")
        w.broker.publish("in", b"x")
        await until(w, 4, 1, routed=3)
        await w.find("edge")
        await until(w, 4, 0, routed=4)


async def test_a_message_the_handler_drops_is_filtered_and_one_it_fails_at_is_lost(autojump_clock: MockClock) -> None:
    def halve(message: Message) -> Message | None:
        number = int(message.payload)
        if number == 7:
            raise ValueError("seven")
        return message if number % 2 else None

    async with world(handlers=[handled(halve, subject="in", to="out")]) as w:
        for number in range(10):
            w.broker.publish("in", b"%d" % number)
        await until(w, 10, 0, routed=4, filtered=5, lost=1)
        assert w.route.filtered == {"handler": 5}
        assert w.route.failed == {"handler_error": 1}


async def test_a_message_with_several_answers_is_one_message_of_the_ledger(autojump_clock: MockClock) -> None:
    def thrice(message: Message) -> list[Message]:
        return [message.replace(payload=message.payload * size) for size in (1, 2, 3)]

    async with world(
        handlers=[handled(thrice, subject="in", to="out")], brokers={"main": FakeBroker(max_payload=100)}
    ) as w:
        for size in (10, 40, 60, 1):
            w.broker.publish("in", b"x" * size)
        await until(w, 4, 0, routed=2, lost=2)
        assert w.route.routed == {"out": 3 + 2 + 1 + 3}


@pytest.mark.parametrize("passes", [True, False], ids=["passes through", "as a batch"])
async def test_a_message_that_can_not_be_sent_is_lost(autojump_clock: MockClock, passes: bool) -> None:
    two = brokers(max_payload=100)
    two["edge"].add_stream("S", ["out.>"])
    destination = to("out.{{split(1,-)}}", "edge", jetstream=not passes)
    async with world([core("in.*", destination, connection="main")], brokers=two) as w:
        for _ in range(3):
            w.broker.publish("in.a", b"x")
            w.broker.publish("in.--x", b"fits no mapping")
            w.broker.publish("in.b", b"x" * 101)
            w.broker.publish("in.b", b"x")
        await until(w, 12, 0, routed=6, lost=6)
        assert w.route.failed == {"mapping": 3, "too_large": 3}


async def test_a_message_that_a_full_queue_rejects_or_drops_is_lost(autojump_clock: MockClock) -> None:
    for on_full in ("reject", "drop_oldest"):
        edge = {"max_pending_operations": 2, "on_pending_full": on_full}
        route = core("in", to("out", "edge"), connection="main")
        async with world([route], brokers=brokers(), connections={"edge": edge}) as w:
            await w.lose("edge")
            for _ in range(5):
                w.broker.publish("in", b"x")
            await until(w, 5, 2, lost=3)
            await w.find("edge")
            await until(w, 5, 0, routed=2, lost=3)


async def test_messages_beyond_the_intake_queue_are_lost(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_queue, "MAX_MESSAGES", 10)
    gate = trio.Event()

    async def wait(message: Message) -> Message:
        await gate.wait()
        return message

    async with world(handlers=[handled(wait, subject="in", to="out")]) as w:
        w.broker.publish("in", b"first")
        await until(w, 1, 1)
        for _ in range(15):
            w.broker.publish("in", b"x")
        await until(w, 16, 11, lost=5)
        gate.set()
        await until(w, 16, 0, routed=11, lost=5)
        assert w.route.failed == {"slow_consumer": 5}


async def test_messages_left_at_the_shutdown_are_lost(autojump_clock: MockClock) -> None:
    async def never(message: Message) -> Message:
        if message.payload == b"x":
            await trio.sleep_forever()
        return message

    async with world(handlers=[handled(never, subject="in", to="out")], shutdown_timeout=1.0) as w:
        w.broker.publish("in", b"first")
        await until(w, 1, 0, routed=1)
        for _ in range(5):
            w.broker.publish("in", b"x")
        await until(w, 6, 5, routed=1)
    assert w.route_ledger() == (6, 0, {"routed": 1, "lost": 5})
    assert w.route.failed == {"shutdown": 5}


@pytest.mark.parametrize("answers", [0, 1, 2])
async def test_an_answer_returned_after_the_shutdown_changes_no_fate(autojump_clock: MockClock, answers: int) -> None:
    async def slow(message: Message) -> list[Message]:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return [message] * answers

    async with world(handlers=[handled(slow, subject="in", to="out")], shutdown_timeout=1.0) as w:
        for _ in range(3):
            w.broker.publish("in", b"x")
        await until(w, 3, 3)
    assert w.route_ledger() == (3, 0, {"lost": 3})


async def test_a_message_that_an_outbox_drops_at_the_shutdown_is_lost(autojump_clock: MockClock) -> None:
    route = core("in", to("here"), to("out", "edge"), connection="main")
    async with world([route], brokers=brokers(), shutdown_timeout=1.0) as w:
        await w.lose("edge")
        for _ in range(4):
            w.broker.publish("in", b"x")
        await until(w, 4, 4)
    assert w.route_ledger() == (4, 0, {"lost": 4})


async def test_a_message_that_its_stream_has_deduplicated_is_a_duplicate(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("S", ["out.*"])
    for destinations in ([to("out.a", jetstream=True)], [to("out.b", jetstream=True), to("core")]):
        async with world([core("in", *destinations)], brokers={"main": broker}) as w:
            for number in range(10):
                broker.publish("in", b"%d" % number, {"Nats-Msg-Id": f"id-{number % 3}"})
                await trio.sleep(0.1)
            await until(w, 10, 0, routed=3, duplicate=7)
            assert w.route.failed == {"duplicate": 7}


# --- two destinations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["main", "edge"])
@pytest.mark.parametrize("with_handler", [False, True])
async def test_a_message_that_one_of_two_destinations_does_not_get_is_lost(
    autojump_clock: MockClock, second: str, with_handler: bool
) -> None:
    two = brokers()
    destinations = [to("out.{{wildcard(1)}}"), to("copy.{{split(1,-)}}", second)]

    def handler(message: Message) -> Message:
        return message.replace(payload=message.payload + b"!")

    routes, handlers = [core("in.*", *destinations, connection="main")], []
    if with_handler:
        routes, handlers = [], [handled(handler, subject="in.*", connection="main", to=destinations)]
    async with world(routes, handlers=handlers, brokers=two) as w:
        for subject in ("in.a", "in.--x", "in.b", "in.--x", "in.c"):
            w.broker.publish(subject, b"x")
        await until(w, 5, 0, routed=3, lost=2)
        assert w.route.routed == {"out.{{wildcard(1)}}": 5, "copy.{{split(1,-)}}": 3}


async def test_a_message_that_one_of_two_destinations_does_not_get_is_lost_when_the_other_confirms_later(
    autojump_clock: MockClock,
) -> None:
    edge = {"max_pending_operations": 2, "on_pending_full": "reject"}
    route = core("in.*", to("out.{{split(1,-)}}"), to("copy.{{wildcard(1)}}", "edge"), connection="main")
    async with world([route], brokers=brokers(), connections={"edge": edge}) as w:
        await w.lose("edge")
        for subject in ("in.--x", "in.a", "in.b", "in.c"):
            w.broker.publish(subject, b"x")
        # The first message fits no mapping, and still takes a place in the other queue; so the last two find it full.
        await until(w, 4, 2, lost=2)
        assert w.route.failed == {"queue_full": 2}
        await w.find("edge")
        await until(w, 4, 0, routed=1, lost=3)
        assert w.route.failed == {"queue_full": 2, "mapping": 1}


# --- drawn -----------------------------------------------------------------------------------------------------------

BATCH = st.lists(
    st.tuples(
        st.sampled_from([b"in.a", b"in.b-c", b"in.--x"]),
        st.sampled_from([1, 500]),
        st.sampled_from(["stored", "duplicate", "refused"]),
    ),
    max_size=8,
)
"""The messages of a batch: each with its subject (`in.--x` fits no mapping), size (500 is too large), and PubAck."""

ONE_STREAM = [here("stored.{{wildcard(1)}}", jetstream=True)]
STORED = [*ONE, *ONE_STREAM]
TWO_STREAMS = [*STORED, here("copy.{{wildcard(1)}}", jetstream=True)]
TWO_OF_CORE = [*ONE, here("copy.{{wildcard(1)}}")]


@looks_inside
@given(
    batch=BATCH,
    to=st.sampled_from([ONE_STREAM, STORED, TWO_STREAMS, TWO_OF_CORE]),
    fate_of_core=st.sampled_from(["fenced", "all denied", "each denied"]),
    data=st.data(),
)
def test_each_message_of_a_batch_has_one_fate_whatever_fails(
    batch: list[tuple[bytes, int, str]], to: list[dict[str, Any]], fate_of_core: str, data: st.DataObject
) -> None:
    """The batch is forwarded together; PubAcks arrive in any order, and core publishes are settled at any time."""

    async def run() -> None:
        made = bench(to)
        (state,) = [routing.state for routing in made.routings]
        messages = [raw(subject, b"", b"", b"%d:" % n + b"x" * size) for n, (subject, size, _) in enumerate(batch)]
        _, (route,) = made.core_routes()
        state.received += len(messages)
        route._forwarding._forward(trio.current_time(), messages)
        check(made)
        operations = []
        while written := made.outbox.sender.next_batch():
            operations += written
        check(made)
        steps: list[Any] = [one for one in operations if one.with_ack]
        steps = [*data.draw(st.permutations(steps))]
        steps.insert(data.draw(st.integers(0, len(steps))), None)
        answers: dict[int, str] = {}
        for step in steps:
            if step is None:
                settle_core(made, fate_of_core)
            else:
                number = int(step.frame.rpartition(b"\r\n\r\n")[2].partition(b":")[0])
                answers[number] = batch[number][2]
                if answers[number] == "refused":
                    made.outbox.refusals.ack_refused(step.order, "stream_error", "no", retriable=False)
                else:
                    fate = stored("S", step.order, duplicate=answers[number] == "duplicate")
                    made.outbox.acked([(step.order, fate)])
            check(made)
        expected = dict.fromkeys(state.fates, 0)
        for number, (subject, size, _) in enumerate(batch):
            unmapped = subject == b"in.--x" and to != ONE_STREAM
            answer = answers.get(number)
            denied = fate_of_core != "fenced" and to != ONE_STREAM
            if unmapped or size == 500 or answer == "refused" or denied:
                expected["lost"] += 1
            else:
                expected["duplicate" if answer == "duplicate" else "routed"] += 1
        assert (state.in_hand, state.settled) == (0, expected)

    trio.run(run, clock=MockClock())


def settle_core(made: Bench, fate: str) -> None:
    if fate == "all denied":
        made.outbox.refusals.something_denied("Permissions Violation")
    for subject in (b"out.a", b"out.b.c"):
        if fate == "each denied":
            made.outbox.refusals.publish_denied(subject, "Permissions Violation")
    made.outbox.fenced(made.outbox.fences.sent)


def check(made: Bench) -> None:
    for routing in made.routings:
        state = routing.state
        assert 0 <= state.in_hand == state.received_in_all - sum(state.settled.values())
