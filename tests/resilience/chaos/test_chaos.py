"""A few seeds on every run; a hundred, and some of each variant, at night. A broken promise names the command that
replays it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from math import inf

import pytest
import trio
import trio.testing

from router_trio.events import (
    AckFailed,
    ConnectionLost,
    DeliveryLimitReached,
    MessageFailed,
    PublishWithAckFailed,
    QueueFull,
)
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import RawMessage
from tests.resilience.chaos import claims
from tests.resilience.chaos.evidence import Journal
from tests.resilience.chaos.faults import FAULTS
from tests.resilience.chaos.hands import Hands
from tests.resilience.chaos.load import payload
from tests.resilience.chaos.run import LEFT_WITHIN, WHOLE_RUN_WITHIN, end_if_it_waits, run_seed
from tests.resilience.chaos.schedule import NETWORK, SERVER, STREAM, VARIANTS, Kind, Variant, draw
from tests.resilience.chaos.spy import Spy
from tests.resilience.chaos.verdict import (
    HEAD,
    left_on_a_dead_link,
    out_of_order,
    overtaken,
    row,
    sent_to_a_dead_link,
    too_large,
    unfinished_traces,
    were_in_flight,
)
from tests.resilience.chaos.workers.run import run_seed as run_with_workers
from tests.simulation.claims import JUDGES
from tests.support.otlp_receiver import ReceivedSpan
from tests.support.watch import Watch

pytestmark = pytest.mark.timeout(WHOLE_RUN_WITHIN + 2 * LEFT_WITHIN)
"""A run ends by itself before that, with its evidence."""

FEW = [(1, "stream", 500), (2, "stream", 1000), (7, "stream", 500), (14, "stream", 500)]
FEW_CORE = [(0, "core", 500), (8, "core", 1000), (13, "core", 500), (15, "core", 500)]
EVERY_NIGHT = 100
OF_EACH_VARIANT = 10


@pytest.mark.parametrize(("seed", "kind"), [(6, "stream"), (3, "core")])
async def test_a_seed_by_content_breaks_no_promise(seed: int, kind: Kind) -> None:
    outcome = await run_seed(seed, kind, 500, "content")
    assert not outcome.broken, outcome.report


@pytest.mark.parametrize("seed", [2, 5])
async def test_a_seed_by_key_breaks_no_promise(seed: int) -> None:
    outcome = await run_seed(seed, "stream", 500, "keys")
    assert not outcome.broken, outcome.report


@pytest.mark.parametrize(("seed", "kind"), [(6, "stream"), (3, "core")])
async def test_a_seed_by_websocket_breaks_no_promise(seed: int, kind: Kind) -> None:
    outcome = await run_seed(seed, kind, 500, "websocket")
    assert not outcome.broken, outcome.report


@pytest.mark.parametrize(("seed", "kind", "messages"), [*FEW, *FEW_CORE])
async def test_a_seed_breaks_no_promise(seed: int, kind: Kind, messages: int) -> None:
    outcome = await run_seed(seed, kind, messages)
    print(f"{HEAD}\n{row(outcome)}")
    assert not outcome.broken, outcome.report


@pytest.mark.parametrize(("seed", "kind"), [(25, "stream"), (2, "core")])
async def test_a_seed_with_workers_breaks_no_promise(seed: int, kind: Kind) -> None:
    outcome = await run_with_workers(seed, kind, 500, "plain", workers=2)
    assert not outcome.broken, outcome.report


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["stream", "core"])
@pytest.mark.parametrize("seed", range(EVERY_NIGHT))
async def test_a_hundred_seeds_with_workers_break_no_promise(seed: int, kind: Kind) -> None:
    outcome = await run_with_workers(seed, kind, 2_000, "plain", workers=2)
    assert not outcome.broken, outcome.report


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["stream", "core"])
@pytest.mark.parametrize("seed", range(EVERY_NIGHT))
async def test_a_hundred_seeds_break_no_promise(seed: int, kind: Kind) -> None:
    outcome = await run_seed(seed, kind, 2_000)
    assert not outcome.broken, outcome.report


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "variant"),
    [("core", "content"), ("core", "websocket"), *(("stream", variant) for variant in VARIANTS if variant != "plain")],
)
@pytest.mark.parametrize("seed", range(OF_EACH_VARIANT))
async def test_ten_seeds_of_each_variant_break_no_promise(seed: int, kind: Kind, variant: Variant) -> None:
    outcome = await run_seed(seed, kind, 2_000, variant)
    assert not outcome.broken, outcome.report


def test_a_seed_always_draws_the_same_schedule() -> None:
    assert draw(5, "stream", 100) == draw(5, "stream", 100)
    assert draw(5, "stream", 100) != draw(6, "stream", 100)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_has_the_faults_of_its_seed(variant: Variant) -> None:
    assert replace(draw(5, "stream", 100, variant), variant="plain") == draw(5, "stream", 100)


def test_a_message_is_in_hand_of_its_last_receiver_until_it_is_returned() -> None:
    hands, first, second = Hands(), object(), object()
    hands.brought(first, [_delivery(number) for number in range(4)])
    hands.brought(second, [_delivery(3)])
    hands.answered(_reply(0))
    hands.sent_back([1])
    assert [number in hands for number in range(5)] == [False, False, True, True, False]
    hands.left(first)
    assert [number in hands for number in range(5)] == [False, False, False, True, False]
    hands.brought(second, [_delivery(0)])
    assert 0 in hands


def _delivery(message: int, number: int = 1) -> RawMessage:
    return b"source.0", _reply(message, number), 0, 0, payload(message)


def _reply(message: int, number: int = 1) -> bytes:
    return ack_reply.subject(b"SOURCE", b"router", sequence=_sequence(message), number=number)


def _sequence(message: int) -> int:
    return message + 1


def test_every_fault_has_a_weight_and_is_drawn_by_the_hundred_seeds() -> None:
    assert {*NETWORK, *SERVER, *STREAM} == set(FAULTS)
    drawn = {fault for seed in range(EVERY_NIGHT) for fault in draw(seed, "stream", 1).faults}
    assert drawn == set(FAULTS)


def test_order_is_judged_by_subject_and_by_first_arrival() -> None:
    accepted = [0, 1, 10, 11, 20, 21]
    assert out_of_order(accepted, [1, 0, 11, 10, 10, 0, 20, 21]) == []
    assert out_of_order(accepted, [0, 20, 10, 1]) == [10]


@pytest.mark.parametrize(
    ("sent", "faults", "in_order"),
    [
        ([1, 11, 1], ["no_publish"], True),  # 1 was refused, the refusal died with the link, and 1 is sent again
        ([1, 11, 1], ["cut"], False),  # nothing is refused: 11 can't have arrived without 1
        ([11, 1, 1], ["no_publish"], False),  # sent out of order
        ([1, 1, 11], ["no_publish"], False),  # 11 was sent although it was known that 1 had to be sent again
        ([1, 11], ["no_publish"], False),  # never sent again: a server has lost it, or took them out of order
    ],
)
def test_only_messages_sent_before_a_refusal_was_known_may_overtake(
    sent: list[int], faults: list[str], in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10))
    monkeypatch.setattr("trio.current_time", lambda: float(next(clock)))
    spy = Spy()
    for message in sent:
        spy.takes(b"#%d;" % message)
    assert were_in_flight(spy, faults, 1, [11]) is in_order


@pytest.mark.parametrize(
    ("steps", "dropped", "in_order"),
    [
        (["1", "lost", "11"], True, True),  # 1 was dropped, and the network delivered it after 11
        (["1", "lost", "11"], False, False),  # nothing was dropped, so 1 should have been sent again before 11
        (["1", "lost", "1", "11"], True, False),  # 1 was sent again, and before 11
        (["1", "11", "lost"], True, False),  # both were sent on the same link
        (["lost", "1", "11"], True, False),
    ],
)
def test_only_a_dropped_message_may_be_late_by_the_link_that_was_lost(
    steps: list[str], dropped: bool, in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("trio.current_time", lambda: now)
    spy, watch = Spy(), Watch()
    for step in steps:
        now += 1.0
        if step == "lost":
            watch(ConnectionLost(at=now, connection="away", server="", reason="liveness", detail="", pending_count=2))
        else:
            spy.takes(b"#%d;" % int(step))
    if dropped:
        watch(QueueFull(at=now, connection="away", count=1, reason="dropped_oldest", queue_size=1, max_size=1))
    assert left_on_a_dead_link(spy, [watch], 1, [11]) is in_order


@pytest.mark.parametrize(
    ("looked_up", "delivered", "astray"),
    [
        (1, [(20, 3), (10, 4)], {10}),  # delivery 2 is missing, and was not made when the link looked up the durable
        (2, [(20, 3), (10, 4)], set()),  # it was: the router can request the message again, before it takes others
        (1, [(20, 2), (10, 3)], set()),  # none is missing
        (1, [(20, 2), (30, 4), (10, 5)], set()),  # 20 came before the one that is missing, so 10 had its turn
        (1, [(10, 2), (20, 4)], set()),  # 10 had arrived
        (1, [(20, 3), (0, 4), (10, 5)], {0}),  # two are late, and one delivery is missing
    ],
)
def test_as_many_messages_may_be_late_as_were_sent_to_a_dead_link(
    looked_up: int, delivered: list[tuple[int, int]], astray: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("trio.current_time", lambda: float(next(clock)))
    spy, last = Spy(), looked_up
    for message, number in delivered:
        last = spy.brought(object(), [_delivery(message, number)], last)
    arrived = [message for message, _ in delivered]
    assert sent_to_a_dead_link(spy, overtaken(sorted(arrived), arrived)) == astray


@pytest.mark.parametrize(
    ("every", "ends_at"),
    [
        (0.5, None),  # a busy machine, for minutes
        (2.0, 60.0),  # as slowly as ack waits end
        (inf, 30.0),
    ],
)
async def test_a_router_hangs_if_it_waits_and_not_if_its_machine_is_busy(
    every: float, ends_at: float | None, autojump_clock: trio.testing.MockClock
) -> None:
    spy, began, over = Spy(), trio.current_time(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_if_it_waits, spy, over)
        with over, trio.move_on_after(200.0):
            for number in count():
                await trio.sleep(every)
                spy.stored.append(number)
        nursery.cancel_scope.cancel()
    assert over.cancelled_caught is (ends_at is not None)
    if ends_at is not None:
        assert trio.current_time() - began == pytest.approx(ends_at, abs=3.0)


def test_evidence_has_one_line_for_what_happens_to_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 1.001, 1.002, 1.5, 3.0])
    monkeypatch.setattr("trio.current_time", lambda: next(clock))
    journal = Journal()
    for text, messages in (("stored", [5]), ("stored", [6, 7]), ("ack", [5]), ("ack", [3, 4]), ("ends: kill", [])):
        journal.note(text, messages)
    lines = [line.split(maxsplit=1) for line in journal.lines([(2.0, "ConnectionLost")])]
    assert [line[1] for line in lines] == ["stored 5-7", "ack 5", "ack 3-4", "ConnectionLost", "ends: kill"]


async def test_messages_that_failed_for_their_size_are_named() -> None:
    spy, watch = Spy(), Watch()
    spy.brought(object(), [_delivery(number) for number in (400, 401, 450)], 0)
    for number, reason in ((400, "too_large"), (400, "too_large"), (450, "expression")):
        watch(MessageFailed(at=0.0, route="route", reason=reason, stream="SOURCE", sequence=_sequence(number)))
    assert too_large(spy, [watch]) == {400}


async def test_large_messages_whose_publish_a_server_refused_for_its_size_were_nakked() -> None:
    spy, watch = Spy(), Watch()
    spy.brought(object(), [_delivery(number) for number in (400, 401, 450)], 0)
    spy.nakked.update((400, 401))
    assert too_large(spy, [watch]) == set()
    watch(PublishWithAckFailed(at=0.0, connection="away", count=1, reason="too_large"))
    assert too_large(spy, [watch]) == {400}


def test_a_trace_is_complete_if_its_message_and_each_send_appear_once() -> None:
    message = ReceivedSpan("process route", "CONSUMER", "t", "1", "", {}, {}, [], 0, "")
    send = replace(message, name="send out", span_id="2", parent_id="1")
    failed = replace(message, span_id="3", attributes={"error.type": "mapping"})
    outage = replace(message, name="nats outage", span_id="4")
    assert unfinished_traces([message, send, failed, outage]) == []
    assert "twice" in unfinished_traces([message, send, send])[0]
    assert "no span" in unfinished_traces([send])[0]
    assert "neither" in unfinished_traces([message])[0]


def test_each_event_that_the_simulation_judges_has_its_causes() -> None:
    assert claims.CAUSES.keys() == JUDGES.keys()
    known = {*FAULTS, *VARIANTS, "stream", "core"}
    assert all(causes <= known for causes in claims.CAUSES.values())


def test_an_event_without_its_cause_breaks_a_run() -> None:
    limit = DeliveryLimitReached(
        at=1.0, route="route", stream="SOURCE", durable="router", count=1, from_sequence=1, to_sequence=9
    )
    denied = AckFailed(at=1.0, connection="a", reason="permission_denied")
    schedule = replace(draw(0, "stream", 10), network=(), server=())
    assert [detail.split()[0] for detail in claims.false(schedule, [limit, denied])] == [limit.code, denied.code]
    assert list(claims.false(replace(schedule, variant="max-deliver"), [limit])) == []
    assert list(claims.false(schedule, [AckFailed(at=1.0, connection="a", reason="not_connected")])) == []
