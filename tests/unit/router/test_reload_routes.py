"""Reloads on fake brokers, under traffic: routes that are added, removed, changed or left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.message import Message
from router_trio.router.reload_queue import FEW_ROUTES
from router_trio.routing.policy import retry
from router_trio.states import RUNNING
from router_trio.testing import FakeBroker, streams
from tests.support.eventually import eventually
from tests.support.world import core, fill, numbers, one_broker, stream, to, world
from tests.unit.router.traffic import by_name, never, received, reloaded, traffic

CALLS: list[bytes] = []
"""Payloads with which `slow` and `stuck` were called in the current test."""


async def slow(message: Message) -> Message:
    CALLS.append(message.payload)
    await trio.sleep(1)
    return message


async def stuck(message: Message) -> Message:
    CALLS.append(message.payload)
    await trio.sleep_forever()
    return message


def at_once(message: Message) -> Message:
    return message


async def slow_noting_its_end(message: Message) -> Message:
    CALLS.append(b"begins %b" % message.payload)
    await trio.sleep(1)
    CALLS.append(b"ends %b" % message.payload)
    return message


async def fails_or_stays(message: Message) -> Message:
    if message.payload == b"fails":
        raise RuntimeError
    with trio.CancelScope(shield=True):
        await trio.sleep(20)
    return message


async def stuck_until_cancelled_and_longer(message: Message) -> Message:
    CALLS.append(b"begins %b" % message.payload)
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.8)
        CALLS.append(b"ends %b" % message.payload)
    return message


def called(handler: Callable[..., Any]) -> dict[str, Any]:
    return {"handler": f"{handler.__module__}:{handler.__name__}"}


# --- routes from a subject -------------------------------------------------------------------------------------------


async def test_a_changed_route_loses_and_doubles_nothing_and_other_routes_are_unaffected(
    autojump_clock: MockClock,
) -> None:
    stays, changes = core("a.*", "stays.$1", name="stays"), core("b.*", "old.$1", name="changes")
    async with world([stays, changes]) as w:
        subscribed = w.successes("subscribe")
        before = w.live.routes[0]
        async with traffic(w, "a.1", "b.1") as sent:
            await trio.sleep(0.1)
            await w.live.reload(w.configuration(stays, core("b.*", "new.$1", name="changes")))
            await trio.sleep(0.1)
        await eventually(lambda: sum(one.in_hand for one in w.live.routes) == 0)
        assert received(w, "stays.1") == numbers(sent[0])
        old, new = received(w, "old.1"), received(w, "new.1")
        assert old + new == numbers(sent[0])
        assert len(old) > 50 < len(new)
        assert w.live.routes[0] is before
        changed = by_name(w)["changes"]
        assert changed.received == sent[0]
        assert changed.settled["routed"] == sent[0]
        assert changed.routed == {"old.$1": len(old), "new.$1": len(new)}
        assert sum(changed.durations.counts) == sent[0]
        assert w.successes("subscribe") == subscribed + 1  # the subscription taken over counts as subscribed
        assert (reloaded(w).added, reloaded(w).removed, reloaded(w).changed) == ((), (), ("route changes",))
        assert (reloaded(w).unchanged, reloaded(w).unsettled) == (2, 0)


async def test_a_route_is_added_and_removed_under_traffic(autojump_clock: MockClock) -> None:
    stays, goes = core("a.*", "stays.$1", name="stays"), core("b.*", "gone.$1", name="goes")
    comes = core("c.*", "comes.$1", name="comes")
    async with world([stays, goes]) as w:
        async with traffic(w, "a.1", "b.1", "c.1") as sent:
            await trio.sleep(0.1)
            await w.live.reload(w.configuration(comes, stays))
            at = sent[0]
            await trio.sleep(0.1)
        await eventually(lambda: sum(one.in_hand for one in w.live.routes) == 0)
        assert received(w, "stays.1") == numbers(sent[0])
        gone = received(w, "gone.1")
        assert gone == numbers(len(gone))
        assert 50 < len(gone) <= at
        arrived = received(w, "comes.1")
        assert arrived == numbers(len(arrived), first=sent[0] - len(arrived))
        assert len(arrived) > 50
        assert [route.name for route in w.live.routes] == ["comes", "stays"]
        assert [route.state for route in w.live.routes] == [RUNNING, RUNNING]
        assert reloaded(w).added == ("route comes",)
        assert reloaded(w).removed == ("route goes",)


async def test_the_counts_of_a_route_that_is_added_again_continue(autojump_clock: MockClock) -> None:
    route = core("in.*", "out.$1")
    async with world([route]) as w:
        w.broker.publish("in.1", b"1")
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))
        await w.live.reload(w.configuration())
        assert w.live.routes == ()
        w.broker.publish("in.1", b"no route takes it")
        await wait_all_tasks_blocked()
        await w.live.reload(w.configuration(route))
        w.broker.publish("in.1", b"2")
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}))
        assert received(w, "out.1") == [b"1", b"2"]


async def test_a_change_of_the_subject_replaces_the_subscription(autojump_clock: MockClock) -> None:
    async with world([core("a.*", "out.$1")]) as w:
        await w.live.reload(w.configuration(core("b.*", "out.$1")))
        w.broker.publish("a.1", b"a")
        w.broker.publish("b.1", b"b")
        await eventually(lambda: received(w, "out.1") == [b"b"])


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "limited": {"limit": {"rate": "1000000/s", "burst": 1000}},
    "by content": {"when": "size > 0"},
    "kept": {"retry": {"attempts": 2}},
    "by key": {"key": "subject", "concurrency": 1},
}


HOURLY = {"initial": "1h", "max": "1h", "attempts": 9}


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_in_the_handler_is_finished_by_the_old_route_and_all_others_by_the_new_one(
    way: str, autojump_clock: MockClock
) -> None:
    CALLS.clear()
    async with world([core("in.*", "old.$1") | called(slow) | WAYS[way]]) as w:
        for payload in numbers(5):
            w.broker.publish("in.1", payload)
        await eventually(lambda: len(CALLS) == 1)
        for payload in numbers(5, first=5):
            w.broker.publish("in.1", payload)
        await wait_all_tasks_blocked()
        await w.live.reload(w.configuration(core("in.*", "new.$1") | called(at_once)))
        await eventually(lambda: w.route_ledger() == (10, 0, {"routed": 10}))
        assert received(w, "old.1") == numbers(1)
        assert received(w, "new.1") == numbers(9, first=1)


@pytest.mark.parametrize("way", WAYS)
async def test_a_handler_that_never_returns_costs_only_its_own_message(way: str, autojump_clock: MockClock) -> None:
    CALLS.clear()
    async with world([core("in.*", "old.$1") | called(stuck) | WAYS[way]], shutdown_timeout=2.0) as w:
        for payload in numbers(5):
            w.broker.publish("in.1", payload)
        await eventually(lambda: len(CALLS) == 1)
        await w.live.reload(w.configuration(core("in.*", "new.$1") | called(at_once)))
        await eventually(lambda: w.route_ledger() == (5, 0, {"lost": 1, "routed": 4}))
        assert received(w, "new.1") == numbers(4, first=1)
        assert reloaded(w).unsettled == 1


async def test_the_openings_of_a_breaker_continue_when_it_opens_again(autojump_clock: MockClock) -> None:
    def guarded(template: str) -> dict[str, Any]:
        sealed = to("out.x", jetstream=True) | {"breaker": {"failures": 1, "pause": "1h"}}
        return core("in.*", sealed, template)

    brokers = one_broker()
    async with world([guarded("old.$1")], brokers=brokers) as w:
        brokers["main"].trouble.seal("OUT")
        for template in ("new.$1", "newer.$1"):
            w.broker.publish("in.1", b"x")
            await eventually(lambda: by_name(w)["route"].breakers[0].state == "open")
            await w.live.reload(w.configuration(guarded(template)))
            await eventually(lambda: by_name(w)["route"].breakers[0].state == "closed")
        assert by_name(w)["route"].openings == {("main", "out.x"): 2}


@pytest.mark.parametrize("source", [core, stream], ids=["core", "stream"])
async def test_the_openings_of_a_breaker_are_kept_when_nothing_is_in_hand(
    source: Callable[..., dict[str, Any]], autojump_clock: MockClock
) -> None:
    """Then the counts of the previous route are added while the next one is built."""
    brokers = one_broker()

    def guarded(**options: Any) -> dict[str, Any]:
        sealed = to("out.x", jetstream=True) | {"breaker": {"failures": 1, "pause": "1s"}}
        return (core("in.*", sealed) if source is core else stream("IN", sealed)) | options

    async with world([guarded()], brokers=brokers) as w:
        w.broker.trouble.limit("OUT", 0)
        w.broker.publish("in.1", b"x")
        await eventually(lambda: by_name(w)["route"].breakers[0].state == "open")
        w.broker.trouble.limit("OUT", None)
        w.broker.publish("in.1", b"x")
        await eventually(lambda: by_name(w)["route"].breakers[0].state == "closed")
        await eventually(lambda: by_name(w)["route"].in_hand == 0)
        without = guarded()
        del without["to"][0]["breaker"]
        for changed in (guarded(concurrency=2, key="subject"), without, guarded()):
            await w.live.reload(w.configuration(changed))
            await eventually(lambda: by_name(w)["route"].state == RUNNING)
        assert by_name(w)["route"].breakers[0].state == "closed"
        assert by_name(w)["route"].openings == {("main", "out.x"): 1}


@pytest.mark.parametrize("more", [{}, {"retry": {}}], ids=["passed on", "kept"])
async def test_messages_waiting_for_the_limit_are_handled_by_the_new_route(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    limited = core("in.*", "old.$1") | {"limit": {"rate": "1/h", "burst": 1}} | more
    async with world([limited]) as w:
        for payload in numbers(4):
            w.broker.publish("in.1", payload)
        await eventually(lambda: received(w, "old.1") == numbers(1))
        began = trio.current_time()
        await w.live.reload(w.configuration(core("in.*", "new.$1")))
        await eventually(lambda: received(w, "new.1") == numbers(3, first=1))
        assert trio.current_time() - began < 1
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 4}))


async def test_messages_waiting_for_the_limit_of_their_value_are_handled_by_the_new_route(
    autojump_clock: MockClock,
) -> None:
    limited = core("in.*", "old.$1") | {"limit": {"rate": "1/h", "burst": 1, "per": "subject"}}
    async with world([limited]) as w:
        for payload in numbers(4):
            w.broker.publish("in.1", payload)
        await eventually(lambda: received(w, "old.1") == numbers(1))
        await w.live.reload(w.configuration(core("in.*", "new.$1")))
        await eventually(lambda: received(w, "new.1") == numbers(3, first=1))
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 4}))


async def test_a_message_waiting_for_another_attempt_is_tried_by_the_new_route(autojump_clock: MockClock) -> None:
    old = core("in.*", "old.$1", retry=HOURLY) | {"handler": f"{never.__module__}:never"}
    async with world([old]) as w:
        w.broker.publish("in.1", b"0")
        await eventually(lambda: by_name(w)["route"].failed["handler_error"] == 1)
        await w.live.reload(w.configuration(core("in.*", "new.$1")))
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))
        assert received(w, "new.1") == [b"0"]


async def fails_slowly(message: Message) -> Message:
    await trio.sleep(1)
    raise RuntimeError


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("by_key", [False, True])
async def test_a_message_that_fails_in_the_old_route_after_the_hand_over_is_tried_by_the_new_one(
    way: str, by_key: bool, autojump_clock: MockClock
) -> None:
    old = core("in.*", "old.$1", retry=HOURLY) | called(fails_slowly) | {"concurrency": 4 if by_key else 1}
    async with world([old]) as w, trio.open_nursery() as nursery:
        w.broker.publish("in.1", b"0")
        await eventually(lambda: by_name(w)["route"].handling == 1)
        nursery.start_soon(w.live.reload, w.configuration(core("in.*", "new.$1") | WAYS[way]))
        await trio.sleep(0.5)
        w.broker.publish("in.1", b"1")
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}))
        # If the new route has a delay before the next attempt, later messages pass.
        assert received(w, "new.1") == numbers(2)[:: -1 if way == "kept" else 1]
        assert by_name(w)["route"].failed["handler_error"] == 1
        assert by_name(w)["route"].retrying == (0, 0.0)


async def fails_after(message: Message) -> Message:
    await trio.sleep(int(message.payload) + 1)
    raise RuntimeError


@pytest.mark.parametrize("way", WAYS)
async def test_messages_that_fail_one_after_another_in_the_old_route_keep_their_order(
    way: str, autojump_clock: MockClock
) -> None:
    retry = {"initial": "10ms", "attempts": 3}
    old = core("in.*", "old", retry=retry) | called(fails_after) | {"concurrency": 4}
    async with world([old]) as w, trio.open_nursery() as nursery:
        for payload in numbers(4):
            w.broker.publish(f"in.{int(payload)}", payload)
        await eventually(lambda: by_name(w)["route"].handling == 4)
        nursery.start_soon(w.live.reload, w.configuration(core("in.*", "new") | WAYS[way]))
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 4}))
        assert received(w, "new") == numbers(4)


def tried(*places: dict[str, Any], attempts: int = 9, initial: str = "5s", **more: Any) -> dict[str, Any]:
    """Return a route from a subject that retries failed messages."""
    return core("in.*", *places, connection="main", retry={"initial": initial, "attempts": attempts}) | more


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("way", ["plain", "handler", *WAYS])
async def test_a_message_stored_without_a_puback_is_not_stored_again_by_the_new_route(
    way: str, by_key: bool, autojump_clock: MockClock
) -> None:
    place = to("out.$1", jetstream=True)
    more: dict[str, Any] = {"key": "subject", "concurrency": 2} if by_key else {}
    async with world([tried(place, **more)], brokers=one_broker()) as w:
        w.broker.trouble.lose("puback", 100)
        for payload in numbers(2):
            w.broker.publish("in.x", payload)
        await eventually(lambda: by_name(w)["route"].failed["timeout"] > 0, within=60)
        assert w.payloads("OUT")[0] == b"0"
        w.broker.trouble.lose("puback", 0)
        after = called(at_once) if way == "handler" else WAYS.get(way, {})
        await w.live.reload(w.configuration(core("in.*", place) | after))
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}))
        assert sorted(w.payloads("OUT")) == numbers(2)


async def test_a_message_keeps_its_id_over_several_reloads_and_kinds_of_routes(autojump_clock: MockClock) -> None:
    place, away = to("out.$1", jetstream=True), to("away.$1", "edge")
    brokers = one_broker() | {"edge": FakeBroker()}
    blocking = {"edge": {"max_pending_operations": 1, "on_pending_full": "block"}}
    full = core("full.*", away, name="full", connection="main")
    waits = core("in.*", place, away, connection="main")
    async with world([tried(place), full], brokers=brokers, connections=blocking) as w:
        w.broker.trouble.lose("puback", 100)
        w.broker.publish("in.x", b"0")
        await eventually(lambda: by_name(w)["route"].failed["timeout"] > 0, within=60)
        w.broker.trouble.lose("puback", 0)
        await w.lose("edge")
        w.broker.publish("full.x", b"0")
        for way in ("plain", "limited", "plain", "kept"):
            await w.live.reload(w.configuration(waits | WAYS[way], full))
            await wait_all_tasks_blocked()
            assert w.payloads("OUT") == [b"0"]
            assert by_name(w)["route"].in_hand == 1
        await w.live.reload(w.configuration(tried(place, attempts=3), full))
        await eventually(lambda: by_name(w)["route"].settled["routed"] == 1, within=60)
        assert w.payloads("OUT") == [b"0"]
        await w.find("edge")


@pytest.mark.parametrize("places", [(0, 1), (1, 0)], ids=["same", "other order"])
async def test_a_refused_message_keeps_its_destination_in_the_new_route(
    places: tuple[int, int], autojump_clock: MockClock
) -> None:
    brokers = one_broker()
    brokers["main"].add_stream("NEW", ["new.>"])
    both = [to("new.$1", jetstream=True), to("out.$1", jetstream=True)]
    async with world([tried(*both, strategy="weighted")], brokers=brokers) as w:
        for subject in ("new.x", "out.x"):
            w.broker.deny_publish(subject)
        for payload in numbers(4):
            w.broker.publish("in.x", payload)
        await eventually(lambda: by_name(w)["route"].retrying[0] == 4)
        after = [both[place] | {"headers": {"keep": ["Nats-Incr"]}} for place in places]
        await w.live.reload(w.configuration(tried(*after, strategy="weighted")))
        w.broker.publish("in.x", b"4")
        for subject in ("new.x", "out.x"):
            w.broker.allow_publish(subject)
        await eventually(lambda: w.route_ledger() == (5, 0, {"routed": 5}))
        assert {b"0", b"2"} <= {*w.payloads("NEW")}
        assert {b"1", b"3"} <= {*w.payloads("OUT")}


@pytest.mark.parametrize("after", ["retried", "plain", "handler"])
async def test_a_copy_that_was_delivered_is_not_sent_again_by_the_new_route(
    after: str, autojump_clock: MockClock
) -> None:
    brokers = one_broker()
    places = [to("copy.$1"), to("out.$1", jetstream=True)]
    async with world([tried(*places)], brokers=brokers) as w:
        w.broker.deny_publish("out.x")
        w.broker.publish("in.x", b"0")
        await eventually(lambda: by_name(w)["route"].retrying[0] == 1)
        w.broker.allow_publish("out.x")
        more = called(at_once) if after == "handler" else {}
        new = tried(*reversed(places), attempts=5) if after == "retried" else core("in.*", *reversed(places)) | more
        await w.live.reload(w.configuration(new))
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))
        assert (received(w, "copy.x"), w.payloads("OUT")) == ([b"0"], [b"0"])


async def test_an_answer_that_was_sent_is_not_sent_again_by_the_new_route(autojump_clock: MockClock) -> None:
    place = to("out.$1", jetstream=True)
    async with world([tried(place, respond=True) | called(at_once)], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        w.broker.publish("in.x", b"0", reply="_INBOX.asks.1")
        await eventually(lambda: by_name(w)["route"].retrying[0] == 1)
        w.broker.allow_publish("out.x")
        new = tried(to("copy.$1"), place, respond=True) | called(at_once)
        await w.live.reload(w.configuration(new))
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))
        assert (received(w, "_INBOX.asks.1"), w.payloads("OUT")) == ([b"0"], [b"0"])


async def test_failed_attempts_count_in_the_new_route(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_fault, reason = {"code": 400, "err_code": 10165, "description": "invalid per-message TTL"}, "jetstream_10165"
    monkeypatch.setattr(streams, "SEALED", at_fault)
    route = tried(to("out.$1", jetstream=True), attempts=3)
    async with world([route], brokers=one_broker()) as w:
        w.broker.trouble.seal("OUT")
        w.broker.publish("in.x", b"0")
        await eventually(lambda: by_name(w)["route"].failed[reason] == 2, within=30)
        await w.live.reload(w.configuration(route | {"hop_limit": 5}))
        await eventually(lambda: w.route_ledger() == (1, 0, {"lost": 1}), within=30)
        assert by_name(w)["route"].failed[reason] == 3
        assert by_name(w)["route"].retrying == (0, 0.0)


@pytest.mark.parametrize(
    ("before", "after", "expected"), [("20s", "1h", 20.0), ("1h", "20s", 25.0), ("1h", "1h", None)]
)
async def test_a_message_waits_on_for_its_next_attempt_unless_the_delays_are_shorter_now(
    before: str, after: str, expected: float | None, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 3600.0)
    place = to("out.$1", jetstream=True)

    def route(delay: str, attempts: int) -> dict[str, Any]:
        return core("in.*", place, retry={"initial": delay, "max": delay, "attempts": attempts})

    async with world([route(before, 9)], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        w.broker.publish("in.x", b"0")
        await eventually(lambda: by_name(w)["route"].retrying[0] == 1)
        began = trio.current_time()
        w.broker.allow_publish("out.x")
        await trio.sleep(5)
        await w.live.reload(w.configuration(route(after, 8)))
        assert by_name(w)["route"].retrying[0] == 1
        if expected is None:
            await trio.sleep(60)
            assert w.payloads("OUT") == []
            await w.live.reload(w.configuration(core("in.*", place)))
        await eventually(lambda: w.payloads("OUT") == [b"0"], within=60)
        if expected is not None:
            assert trio.current_time() - began == pytest.approx(expected, abs=1.1)


async def test_a_new_condition_applies_to_messages_that_wait_for_another_attempt(autojump_clock: MockClock) -> None:
    place = to("out.$1", jetstream=True)
    async with world([tried(place, when="size > 0")], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        for payload in (b"0", b"long"):
            w.broker.publish("in.x", payload)
        await eventually(lambda: by_name(w)["route"].retrying[0] == 2)
        w.broker.allow_publish("out.x")
        await w.live.reload(w.configuration(tried(place, when="size > 1")))
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 1, "filtered": 1}))
        assert w.payloads("OUT") == [b"long"]


async def test_a_message_that_fails_in_the_old_route_at_a_shutdown_is_lost(autojump_clock: MockClock) -> None:
    old = core("in.*", "old.$1", retry=HOURLY) | called(fails_slowly)
    async with world([old]) as w, trio.open_nursery() as nursery:
        w.broker.publish("in.1", b"0")
        await eventually(lambda: by_name(w)["route"].handling == 1)
        nursery.start_soon(w.live.reload, w.configuration(core("in.*", "new.$1")))
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert w.route_ledger()[1:] == (0, {"lost": 1})


@pytest.mark.parametrize("way", WAYS)
async def test_at_a_shutdown_during_a_reload_the_new_route_begins_once_the_old_one_has_ended(
    way: str, autojump_clock: MockClock
) -> None:
    CALLS.clear()
    by_turns = called(slow_noting_its_end) | WAYS[way]
    async with world([core("in.*", "old.$1") | by_turns]) as w, trio.open_nursery() as nursery:
        for payload in numbers(3):
            w.broker.publish("in.1", payload)
        await eventually(lambda: len(CALLS) == 1)
        nursery.start_soon(w.live.reload, w.configuration(core("in.*", "new.$1") | by_turns))
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert CALLS == [b"begins 0", b"ends 0", b"begins 1", b"ends 1", b"begins 2", b"ends 2"]
    assert (received(w, "old.1"), received(w, "new.1")) == (numbers(1), numbers(2, first=1))
    assert w.route_ledger() == (3, 0, {"routed": 3})


@pytest.mark.parametrize("way", WAYS)
async def test_at_a_shutdown_during_a_reload_a_handler_that_never_returns_costs_only_its_own_message(
    way: str, autojump_clock: MockClock
) -> None:
    CALLS.clear()
    old, new = core("in.*", "old.$1") | called(stuck) | WAYS[way], core("in.*", "new.$1") | called(at_once)
    async with world([old], shutdown_timeout=2.0) as w, trio.open_nursery() as nursery:
        for payload in numbers(5):
            w.broker.publish("in.1", payload)
        await eventually(lambda: len(CALLS) == 1)
        nursery.start_soon(w.live.reload, w.configuration(new))
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert received(w, "new.1") == numbers(4, first=1)
    assert w.route_ledger() == (5, 0, {"lost": 1, "routed": 4})
    assert w.watch.of("ROUTER_STOPPED")[-1].unsettled == 1


@pytest.mark.parametrize("way", WAYS)
async def test_at_a_shutdown_during_a_reload_the_new_route_waits_for_a_cancelled_call_of_the_old_one(
    way: str, autojump_clock: MockClock
) -> None:
    CALLS.clear()
    old = core("in.*", "old.$1") | called(stuck_until_cancelled_and_longer) | WAYS[way]
    new = core("in.*", "new.$1") | called(slow_noting_its_end) | WAYS[way]
    async with world([old], shutdown_timeout=2.0) as w, trio.open_nursery() as nursery:
        for payload in numbers(2):
            w.broker.publish("in.1", payload)
        await eventually(lambda: len(CALLS) == 1)
        nursery.start_soon(w.live.reload, w.configuration(new))
        await trio.sleep(2.5)
        nursery.cancel_scope.cancel()
    assert CALLS == [b"begins 0", b"ends 0", b"begins 1", b"ends 1"]
    assert w.route_ledger() == (2, 0, {"lost": 1, "routed": 1})


async def test_a_message_that_is_retried_by_other_settings_counts_once_as_retrying(
    autojump_clock: MockClock,
) -> None:
    old = core("in.*", "old.$1", retry=HOURLY) | called(fails_or_stays)
    async with world([old]) as w, trio.open_nursery() as nursery:
        for payload in (b"fails", b"stays"):
            w.broker.publish("in.1", payload)
        await eventually(lambda: by_name(w)["route"].retrying[0] == 1 and by_name(w)["route"].handling == 1)
        nursery.start_soon(w.live.reload, w.configuration(core("in.*", "new.$1") | called(slow)))
        await trio.sleep(1)
        assert by_name(w)["route"].in_hand == 2
        assert by_name(w)["route"].retrying[0] == 1, "it waits for the call, and counts once"


async def test_a_message_lost_at_the_end_no_longer_counts_as_retrying(autojump_clock: MockClock) -> None:
    old = core("in.*", "old.$1", retry=HOURLY) | called(fails_or_stays)
    async with world([old], shutdown_timeout=2.0) as w:
        for payload in (b"fails", b"stays"):
            w.broker.publish("in.1", payload)
        await eventually(lambda: by_name(w)["route"].retrying[0] == 1 and by_name(w)["route"].handling == 1)
        await w.live.reload(w.configuration(core("other.*", "new.$1")))
        assert w.route_ledger() == (2, 0, {"lost": 2})
        assert by_name(w)["route"].retrying == (0, 0.0)


@pytest.mark.parametrize("way", WAYS)
async def test_messages_that_arrive_while_the_old_route_is_in_its_handler_wait_for_it(
    way: str, autojump_clock: MockClock
) -> None:
    CALLS.clear()
    async with world([core("in.*", "old.$1") | called(slow)]) as w, trio.open_nursery() as nursery:
        w.broker.publish("in.1", b"0")
        await eventually(lambda: len(CALLS) == 1)
        nursery.start_soon(w.live.reload, w.configuration(core("in.*", "new.$1") | WAYS[way]))
        await trio.sleep(0.5)
        w.broker.publish("in.1", b"1")
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}))
        assert received(w, "old.1", "new.1") == numbers(2)


async def test_by_key_a_publish_of_the_old_route_is_confirmed_before_the_next_message_of_its_key_is_sent(
    autojump_clock: MockClock,
) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    by_key = called(at_once) | WAYS["by key"]
    old = core("in.*", to("old.$1", "edge"), connection="main") | by_key
    new = core("in.*", to("new.$1"), connection="main") | by_key
    async with world([old], brokers=brokers) as w, trio.open_nursery() as nursery:
        w.brokers["edge"].stall(3)
        w.broker.publish("in.1", b"0")
        await eventually(lambda: by_name(w)["route"].in_hand == 1)
        nursery.start_soon(w.live.reload, w.configuration(new))
        await trio.sleep(1)
        w.broker.publish("in.1", b"1")
        await trio.sleep(1)
        assert received(w, "new.1") == []
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}))
        assert (received(w, "old.1", connection="edge"), received(w, "new.1")) == ([b"0"], [b"1"])


async def test_messages_waiting_for_room_are_handled_by_the_new_route(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    old = core("in.*", to("old.$1", "edge"), connection="main")
    blocking = {"edge": {"max_pending_operations": 2, "on_pending_full": "block"}}
    async with world([old], brokers=brokers, connections=blocking) as w:
        await w.lose("edge")
        for payload in numbers(10):
            w.broker.publish("in.1", payload)
            await wait_all_tasks_blocked()
        assert by_name(w)["route"].in_hand == 10
        began = trio.current_time()
        await w.live.reload(w.configuration(core("in.*", to("new.$1"), connection="main")))
        await eventually(lambda: len(received(w, "new.1")) >= 7)
        assert trio.current_time() - began < 1
        await w.find("edge")
        await eventually(lambda: w.route_ledger() == (10, 0, {"routed": 10}))
        assert received(w, "old.1", connection="edge") + received(w, "new.1") == numbers(10)


async def test_routes_of_one_subject_share_a_lasting_subscription(autojump_clock: MockClock) -> None:
    first, second = (core("in.*", f"{name}.$1", name=name, queue="q") for name in ("first", "second"))
    async with world([first]) as w:
        async with traffic(w, "in.1") as sent:
            await trio.sleep(0.05)
            await w.live.reload(w.configuration(first, second))
            await trio.sleep(0.05)
            await w.live.reload(w.configuration(core("in.*", "third.$1", name="first", queue="q"), second))
            await trio.sleep(0.05)
            await w.live.reload(w.configuration(second))
            until = sent[0]
            await trio.sleep(0.05)
        await eventually(lambda: sum(one.in_hand for one in w.live.routes) == 0)
        # Each of them got every message while it existed.
        firsts, seconds = received(w, "first.1", "third.1"), received(w, "second.1")
        assert firsts == numbers(len(firsts))
        assert until - 20 < len(firsts) <= until + 1
        assert seconds == numbers(len(seconds), first=sent[0] - len(seconds))


@pytest.mark.parametrize("reloads", [1, 3])
@pytest.mark.parametrize("way", ["kept", "by key"])
async def test_a_message_without_a_puback_is_tried_by_the_latest_route_after_its_own_has_ended(
    way: str, reloads: int, autojump_clock: MockClock
) -> None:
    """It may be stored, so it is not taken back from the outbox when the route ends. Its id stays the same."""

    def route(number: int) -> dict[str, Any]:
        return core("in.*", to("out.$1", jetstream=True), retry={"initial": f"{number + 1}s"}) | {
            "hop_limit": number + 2
        }

    async with world([route(0) | WAYS["kept"]], brokers=one_broker(), shutdown_timeout=1.0) as w:
        w.broker.trouble.lose("puback", 1000)
        w.broker.publish("in.1", b"0")
        await eventually(lambda: w.entry()["in_flight"] == 1)
        for number in range(1, reloads + 1):
            await w.live.reload(
                w.configuration(route(number) | {"key": "subject"} if way == "by key" else route(number))
            )
            await trio.sleep(5)
        await trio.sleep(60)
        assert w.route_ledger()[:2] == (1, 1)
        assert not w.watch.of("ROUTE_MESSAGE_GIVEN_UP")
        w.broker.trouble.lose("puback", 0)
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}), 60)
        assert w.payloads("OUT") == [b"0"]


@pytest.mark.parametrize("next_to", ["new", None], ids=["changed", "removed"])
async def test_a_message_left_in_an_outbox_is_not_published_in_vain(
    next_to: str | None, autojump_clock: MockClock
) -> None:
    """No stream takes it. That stays known as long as it waits, and it is stored once there is a stream again."""
    other = core("other.*", "other", name="other")
    settings = [] if next_to is None else [core("in.*", next_to)]
    async with world([core("in.*", to("out.$1", jetstream=True)), other], shutdown_timeout=1.0) as w:
        before = w.live
        w.broker.publish("in.1", b"0")
        await trio.sleep(20)
        tried = len(received(w, "out.1"))
        await w.live.reload(w.configuration(*settings, other))
        await trio.sleep(60)
        assert len(received(w, "out.1")) == tried
        w.broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: w.payloads("OUT") == [b"0"], 20)
        await eventually(lambda: sum(route.in_hand for route in before.routes) == 0)


@pytest.mark.parametrize("subject", ["in.*", "other.*"], ids=["shared", "alone"])
@pytest.mark.parametrize("way", ["plain", "kept"])
async def test_a_route_removed_while_its_server_is_silent_receives_nothing_more(
    way: str, subject: str, autojump_clock: MockClock
) -> None:
    goes, stays = core("in.*", "gone.$1", name="goes") | WAYS[way], core(subject, "stays.$1", name="stays")
    async with world([stays, goes], shutdown_timeout=2.0) as w:
        ended = by_name(w)["goes"]
        w.broker.publish("in.1", b"0")
        await eventually(lambda: ended.settled["routed"] == 1)
        w.broker.stall(5)
        await w.live.reload(w.configuration(stays))
        for payload in (b"while it is silent", b"when it answers again"):
            w.broker.publish("in.1", payload)
            w.broker.publish("other.1", payload)
            await trio.sleep(5)
        assert received(w, "stays.1")[-2:] == [b"while it is silent", b"when it answers again"]
        assert received(w, "gone.1") == [b"0"]
        assert (ended.received, ended.in_hand) == (1, 0)


async def test_a_route_changed_during_an_outage_subscribes_on_the_next_link(autojump_clock: MockClock) -> None:
    async with world([core("in.*", "old.$1")]) as w:
        await w.lose()
        await w.live.reload(w.configuration(core("in.*", "new.$1")))
        assert by_name(w)["route"].state != RUNNING
        await w.find()
        await eventually(lambda: by_name(w)["route"].state == RUNNING)
        w.broker.publish("in.1", b"1")
        await eventually(lambda: received(w, "new.1") == [b"1"])


async def test_many_routes_are_compared_while_messages_are_routed(autojump_clock: MockClock) -> None:
    routes = [core(f"in.{number}", f"out.{number}", name=f"r{number}") for number in range(FEW_ROUTES + 10)]
    async with world(routes) as w:
        await w.live.reload(w.configuration(*routes[1:], core("in.0", "new.0", name="r0")))
        assert reloaded(w).changed == ("route r0",)
        assert reloaded(w).unchanged == len(routes)  # with the connection
        w.broker.publish("in.0", b"0")
        w.broker.publish("in.1", b"1")
        await eventually(lambda: (received(w, "new.0"), received(w, "out.1")) == ([b"0"], [b"1"]))


@pytest.mark.parametrize("more", [{}, {"limit": {"rate": "30/m", "burst": 1}}], ids=["at once", "within the limit"])
async def test_a_partly_delivered_message_is_sent_to_the_other_destinations_of_the_new_route(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    brokers["edge"].deny_publish("denied.*")
    old = core("in.*", to("taken.$1"), to("denied.$1", "edge"), connection="main", retry=HOURLY) | more
    async with world([old], brokers=brokers) as w:
        w.broker.publish("in.1", b"0")
        await eventually(lambda: by_name(w)["route"].failed["permission_denied"] == 1)
        w.brokers["edge"].allow_publish("denied.*")
        new = core("in.*", to("new.$1"), to("taken.$1"), connection="main")
        await w.live.reload(w.configuration(new))
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))
        assert received(w, "taken.1") == [b"0"]
        assert received(w, "denied.1", connection="edge") == []
        assert received(w, "new.1") == [b"0"]


async def test_a_partly_delivered_message_is_settled_if_only_its_copies_are_wanted_now(
    autojump_clock: MockClock,
) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    brokers["edge"].deny_publish("denied.*")
    old = core("in.*", to("taken.$1"), to("denied.$1", "edge"), connection="main", retry=HOURLY)
    async with world([old], brokers=brokers) as w:
        w.broker.publish("in.1", b"0")
        await eventually(lambda: by_name(w)["route"].failed["permission_denied"] == 1)
        await w.live.reload(w.configuration(core("in.*", to("taken.$1"), connection="main")))
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))
        assert received(w, "taken.1") == [b"0"]
        assert dict(by_name(w)["route"].failed) == {"permission_denied": 1}
        assert reloaded(w).unsettled == 0


# --- limits ----------------------------------------------------------------------------------------------------------


def limited(source: str, to: str, rate: str, burst: int, per: str | None = None) -> dict[str, Any]:
    """Return a route with this limit, from a subject or a stream."""
    limit: dict[str, Any] = {"rate": rate, "burst": burst} | ({} if per is None else {"per": per})
    route = core("in.*", to) if source == "subject" else stream("IN", to, filter="in.*")
    return route | {"limit": limit}


@pytest.mark.parametrize("per", [None, "subject"])
@pytest.mark.parametrize("source", ["subject", "stream"])
async def test_a_reload_admits_no_burst(source: str, per: str | None, autojump_clock: MockClock) -> None:
    async with world([limited(source, "out.a", "1/m", 4, per)], brokers=one_broker(), shutdown_timeout=1.0) as w:
        began = trio.current_time()
        fill(w.broker, 20)
        await eventually(lambda: len(received(w, "out.a")) == 4)
        for number, (rate, burst) in enumerate((("1/m", 4), ("1/m", 6), ("2/m", 3))):
            await w.live.reload(w.configuration(limited(source, f"out.{number}", rate, burst, per)))
        assert trio.current_time() - began < 20
        await trio.sleep(10)
        later = [len(received(w, f"out.{number}")) for number in range(3)]
        assert later == [0, 2, 0]  # two more tokens with the larger burst
        await trio.sleep_until(began + 100)
        assert len(received(w, "out.2")) in (2, 3)  # 2 a minute
        await w.live.reload(w.configuration(core("in.*", "out.b") if source == "subject" else stream("IN", "out.b")))
        await eventually(lambda: by_name(w)["route"].in_hand == 0, 120)


# --- readiness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jetstream", [False, True])
@pytest.mark.parametrize("source", ["subject", "stream"])
async def test_a_destination_that_is_denied_stays_so_over_a_reload(
    source: str, jetstream: bool, autojump_clock: MockClock
) -> None:
    def route(hop_limit: int, where: str = "out.x") -> dict[str, Any]:
        end = to(where, jetstream=jetstream)
        one = core("in.*", end) if source == "subject" else stream("IN", end, filter="in.*")
        return one | {"hop_limit": hop_limit}

    def unready() -> list[str]:
        reasons: list[str] = by_name(w)["route"].reasons(trio.current_time())
        return reasons

    async with world([route(5)], brokers=one_broker(), shutdown_timeout=1.0) as w:
        await eventually(lambda: not unready())
        w.broker.deny_publish("out.x")
        fill(w.broker, 1)
        await eventually(unready)
        await w.live.reload(w.configuration(route(6)))
        for _ in range(100):
            assert "permission_denied" in unready()[0]
            await trio.sleep(0.1)
        await w.live.reload(w.configuration(route(6, "out.y")))
        await eventually(lambda: not unready(), 6)
        await w.live.reload(w.configuration(route(6)))
        w.broker.allow_publish("out.x")
        fill(w.broker, 1)
        await eventually(lambda: not unready(), 120)
        await eventually(lambda: by_name(w)["route"].in_hand == 0, 120)
