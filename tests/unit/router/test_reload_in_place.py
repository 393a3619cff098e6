"""Reloads of routes that stay: their settings change while calls of their handlers go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.message import Message
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import World, core, fill, numbers, one_broker, stream, to, world
from tests.unit.router.traffic import by_name, received, reloaded


class Gate:
    """The calls of `wait`, those that have not returned, and when those for a subject and payload may return."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.running: list[tuple[str, bytes]] = []
        self.shut: dict[tuple[str, bytes], trio.Event] = {}


GATE = Gate()


@pytest.fixture(autouse=True)
def fresh() -> None:
    GATE.__init__()  # type: ignore[misc]


def shut(subject: str, payload: bytes) -> trio.Event:
    """Let the call for such a message wait until the event is set."""
    return GATE.shut.setdefault((subject, payload), trio.Event())


async def wait(message: Message) -> Message:
    one = message.subject, message.payload
    GATE.calls.append(one)
    GATE.running.append(one)
    try:
        if one in GATE.shut:
            await GATE.shut[one].wait()
    finally:
        GATE.running.remove(one)
    return message


WAITS = {"handler": f"{__name__}:wait"}
BY_SUBJECT = {"concurrency": 4, "key": "subject"}


def from_stream(subject: str) -> dict[str, Any]:
    return stream("IN", subject, filter="in.*")


def from_subject(subject: str) -> dict[str, Any]:
    """Return a route that keeps its messages: it retries those that fail."""
    return core("in.*", to(subject, jetstream=True), connection="main", retry={"initial": "1s"})


SOURCES = pytest.mark.parametrize("route", [from_stream, from_subject], ids=["stream", "subject"])
Route = Callable[[str], dict[str, Any]]


def stored(w: World, subject: str) -> list[bytes]:
    return [one.payload for one in w.broker.messages("OUT") if one.subject == subject]


@SOURCES
@pytest.mark.parametrize("new", [WAITS | BY_SUBJECT, BY_SUBJECT, WAITS | {"concurrency": 2, "key": "subject + '!'"}])
async def test_other_keys_have_the_new_settings_while_a_call_under_the_old_ones_goes_on(
    route: Route, new: dict[str, Any], autojump_clock: MockClock
) -> None:
    first = shut("in.a", b"0")
    old = route("out.{{wildcard(1)}}") | WAITS | BY_SUBJECT
    async with world([old], brokers=one_broker(), shutdown_timeout=60.0) as w:
        fill(w.broker, 3, subjects="a")
        await eventually(lambda: GATE.running == [("in.a", b"0")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(route("out.new") | new))
            await wait_all_tasks_blocked()
            fill(w.broker, 3, first=3, subjects="b")
            await eventually(lambda: stored(w, "out.new") == numbers(3, first=3))
            assert trio.current_time() < 10, "nobody waits for the call"
            assert w.route.handling == 1, "the call that goes on is shown"
            assert stored(w, "out.a") == []
            first.set()
        await eventually(lambda: stored(w, "out.new") == [b"3", b"4", b"5", b"1", b"2"])
        assert stored(w, "out.a") == [b"0"], "what is in a handler ends under the settings that it began with"
        assert w.route_ledger() == (6, 0, {"routed": 6}), "no message was returned"


@SOURCES
async def test_a_route_without_a_handler_overtakes_no_call_of_the_one_that_it_had(
    route: Route, autojump_clock: MockClock
) -> None:
    first = shut("in.x", b"0")
    async with world([route("out.$1") | WAITS], brokers=one_broker(), shutdown_timeout=60.0) as w:
        fill(w.broker, 2)
        await eventually(lambda: GATE.running == [("in.x", b"0")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(route("out.$1")))
            await wait_all_tasks_blocked()
            fill(w.broker, 2, first=2)
            await trio.sleep(5)
            assert w.payloads("OUT") == []
            first.set()
        await eventually(lambda: w.payloads("OUT") == numbers(4))
        assert GATE.calls == [("in.x", b"0")]
        assert w.route_ledger() == (4, 0, {"routed": 4})


@SOURCES
@pytest.mark.parametrize("left", [1, 2])
async def test_a_route_whose_task_waits_for_messages_begins_no_call_beside_too_many(
    left: int, route: Route, autojump_clock: MockClock
) -> None:
    """Fewer calls are in progress than were allowed, and more than are allowed now."""
    ends = [shut(f"in.{name}", b"0") for name in "abc"]
    old = route("out.{{wildcard(1)}}") | WAITS | BY_SUBJECT
    async with world([old], brokers=one_broker(), shutdown_timeout=60.0) as w:
        fill(w.broker, 1, subjects="abc"[:left])
        await eventually(lambda: len(GATE.running) == left)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(route("out.new") | WAITS))
            await wait_all_tasks_blocked()
            fill(w.broker, 2, first=1, subjects="ab")
            for end in ends[:left]:
                await trio.sleep(1)
                assert not stored(w, "out.new"), "a later message of any subject waits"
                end.set()
        await eventually(lambda: stored(w, "out.new") == [b"1", b"1", b"2", b"2"])
        assert len(GATE.calls) == left + 4


@SOURCES
@pytest.mark.parametrize("concurrency", [1, 2, 8])
async def test_with_another_concurrency_no_more_calls_begin_than_are_allowed(
    concurrency: int, route: Route, autojump_clock: MockClock
) -> None:
    names = "abcdefgh"
    ends = [shut(f"in.{name}", b"0") for name in names]
    old = route("out.{{wildcard(1)}}") | WAITS | BY_SUBJECT
    async with world([old], brokers=one_broker(), shutdown_timeout=60.0) as w:
        fill(w.broker, 1, subjects=names)
        await eventually(lambda: len(GATE.running) == 4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(old | {"concurrency": concurrency}))
            await trio.sleep(1)
            for ended, end in enumerate(ends):
                left = min(8 - ended, max(concurrency, 4 - ended))
                assert len(GATE.running) == left, (ended, GATE.running)
                end.set()
                await trio.sleep(1)
        await eventually(lambda: w.route_ledger() == (8, 0, {"routed": 8}))


async def test_a_call_that_is_cancelled_makes_room_for_its_message(autojump_clock: MockClock) -> None:
    shut("in.x", b"0")
    one: dict[str, Any] = {"filter": "in.*", "max_in_flight": 1}
    async with world([stream("IN", "out.$1", **one) | WAITS], brokers=one_broker(), shutdown_timeout=2.0) as w:
        fill(w.broker, 3)
        await eventually(lambda: len(GATE.calls) == 1)
        await w.live.reload(w.configuration(stream("IN", "out.$1", **one)))
        await eventually(lambda: w.payloads("OUT") == numbers(3))
        assert w.route_ledger() == (4, 0, {"returned": 1, "routed": 3})


async def test_the_router_ends_while_a_call_under_earlier_settings_goes_on(autojump_clock: MockClock) -> None:
    shut("in.x", b"0")
    async with trio.open_nursery() as nursery:
        async with world(
            [stream("IN", "out.$1", filter="in.*") | WAITS], brokers=one_broker(), shutdown_timeout=5.0
        ) as w:
            fill(w.broker, 3)
            await eventually(lambda: len(GATE.calls) == 1)
            nursery.start_soon(w.live.reload, w.configuration(stream("IN", "out.$1", filter="in.*")))
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert w.route_ledger() == (3, 0, {"returned": 3})


# --- routes from a subject -------------------------------------------------------------------------------------------


async def test_the_message_of_a_call_that_does_not_return_in_time_is_lost_and_others_are_not(
    autojump_clock: MockClock,
) -> None:
    shut("in.x", b"0")
    async with world([from_subject("out.$1") | WAITS], brokers=one_broker(), shutdown_timeout=2.0) as w:
        fill(w.broker, 3)
        await eventually(lambda: len(GATE.calls) == 1)
        await w.live.reload(w.configuration(from_subject("out.$1")))
        await eventually(lambda: w.route_ledger() == (3, 0, {"lost": 1, "routed": 2}))
        assert w.payloads("OUT") == numbers(2, first=1)
        assert reloaded(w).unsettled == 1


@pytest.mark.parametrize("by_key", [False, True])
async def test_a_route_that_gets_a_key_lets_no_message_pass_one_that_is_being_sent(
    by_key: bool, autojump_clock: MockClock
) -> None:
    """Without a key it is not recorded which messages are sent, so they are settled before."""
    brokers = one_broker() | {"edge": FakeBroker()}
    old = core("in.*", to("old.$1", "edge"), connection="main", retry={"initial": "1s"})
    new = from_subject("out.$1") | ({"key": "subject", "concurrency": 2} if by_key else {})
    async with world([old], brokers=brokers, shutdown_timeout=60.0) as w, trio.open_nursery() as nursery:
        w.brokers["edge"].stall(3)
        fill(w.broker, 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(w.live.reload, w.configuration(new))
        await trio.sleep(1)
        fill(w.broker, 1, first=1)
        await trio.sleep(1)
        assert w.payloads("OUT") == ([] if by_key else [b"1"])
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}))


@pytest.mark.parametrize("changed", ["main", "edge"])
async def test_a_route_keeps_its_messages_while_a_connection_of_it_ends_and_is_made_again(
    changed: str, autojump_clock: MockClock
) -> None:
    """Messages that wait, are retried or arrive by the connection that stays are sent by the new one, in order."""
    brokers = one_broker() | {"edge": FakeBroker()}
    by_key = {"key": "subject", "concurrency": 2}
    old = core("in.*", to("old.$1", "edge"), connection="main", retry={"initial": "1s"}) | WAITS | by_key
    first = shut("in.x", b"0")
    async with world([old], brokers=brokers, shutdown_timeout=60.0) as w:
        fill(w.broker, 3)
        await eventually(lambda: len(GATE.calls) == 1)
        other = {changed: {"max_pending_operations": 1234}}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: w.live.reload(w.configuration(old | {"when": "subject != 'in.no'"}, connections=other))
            )
            await trio.sleep(1)
            fill(w.broker, 2, first=3, subjects="y")
            await trio.sleep(1)
            assert len(GATE.calls) == 1, "nothing is begun while a connection ends"
            first.set()
        ours = 5 if changed == "edge" else 3  # the subscription of the connection that ends is drained
        await eventually(lambda: w.route_ledger() == (ours, 0, {"routed": ours}))
        assert received(w, "old.x", connection="edge") == numbers(3)
        assert by_name(w)["route"].settled["lost"] == 0


async def test_at_a_shutdown_while_a_connection_ends_nothing_is_uncounted(autojump_clock: MockClock) -> None:
    brokers = one_broker() | {"edge": FakeBroker()}
    old = core("in.*", to("old.$1", "edge"), connection="main", retry={"initial": "1s"}) | WAITS
    first = shut("in.x", b"0")
    async with world([old], brokers=brokers, shutdown_timeout=5.0) as w, trio.open_nursery() as nursery:
        fill(w.broker, 3)
        await eventually(lambda: len(GATE.calls) == 1)
        other = {"edge": {"max_pending_operations": 1234}}
        nursery.start_soon(lambda: w.live.reload(w.configuration(old, connections=other)))
        await trio.sleep(1)
        first.set()
        nursery.cancel_scope.cancel()
    assert w.route_ledger() == (3, 0, {"routed": 3})


async def test_a_reload_does_not_wait_for_what_was_forwarded_on_arrival(autojump_clock: MockClock) -> None:
    brokers = one_broker() | {"edge": FakeBroker()}
    old = core("in.*", to("old.$1", "edge"), connection="main") | {"limit": {"rate": "100/s", "burst": 100}}
    async with world([old], brokers=brokers, shutdown_timeout=60.0) as w:
        w.brokers["edge"].stall(20)
        fill(w.broker, 2)
        await wait_all_tasks_blocked()
        assert w.route_ledger()[:2] == (2, 2)
        began = trio.current_time()
        await w.live.reload(w.configuration(old | {"limit": {"rate": "50/s", "burst": 50}}))
        assert trio.current_time() - began < 1
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}), within=40)
