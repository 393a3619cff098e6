"""`FakeBroker.stored`: it waits for messages, and fails with what failed in the routers."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from router_trio import Live, Message, Reject, Retry, Router, Settings
from router_trio.faults import Faults
from router_trio.testing import FakeBroker

STREAM = {"stream": "ORDERS", "durable": "router", "filter": "orders.*", "to": {"subject": "out.a", "jetstream": True}}
SUBJECT = {"subject": "orders.*", "to": {"subject": "out.a", "jetstream": True}}


@pytest.fixture
def broker() -> FakeBroker:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.*"])
    broker.add_stream("OUT", ["out.*"])
    broker.add_stream("DEAD", ["dead.*"])
    return broker


@asynccontextmanager
async def running(
    broker: FakeBroker, handler: Callable[..., Any], route: dict[str, Any] | None = None, **telemetry: Any
) -> AsyncIterator[Live]:
    """Open a router of one route as a program configures it: nothing is set for tests but the broker."""
    settings = Settings(connections={"main": {"servers": ["nats://fake"]}}, telemetry=telemetry)
    router = Router(settings, log=False)
    router.route(name="route", **(STREAM if route is None else route))(handler)
    async with router.open(connect=lambda name, settings: broker.connect, listen="") as live:
        yield live


def same(message: Message) -> Message:
    return message


def broken(message: Message) -> Message:
    return message.replace(payload=message.headers["total"].encode())


async def failed(broker: FakeBroker, stream: str = "OUT", count: int = 1, within: float | None = None) -> str:
    """Return the text of the error that `stored` raises."""
    with pytest.raises(AssertionError) as caught:
        await broker.stored(stream, count, within=within)
    return str(caught.value)


# --- what it returns ---


async def test_the_messages_are_returned_when_all_have_arrived(broker: FakeBroker, autojump_clock: MockClock) -> None:
    async with running(broker, same):
        broker.publish("orders.1", b"a")
        broker.publish("orders.2", b"b")
        assert [one.payload for one in await broker.stored("OUT", 2)] == [b"a", b"b"]
        assert len(await broker.stored("OUT")) == 2, "all of them, so that a test sees one too many"


async def test_they_are_returned_at_the_time_at_which_the_last_one_is_stored(
    broker: FakeBroker, autojump_clock: MockClock
) -> None:
    async def slow(message: Message) -> Message:
        await trio.sleep(100)
        return message

    async with running(broker, slow):
        began = trio.current_time()
        broker.publish("orders.1")
        await broker.stored("OUT", 1)
        assert trio.current_time() - began == pytest.approx(100, abs=0.01)


async def test_a_stream_may_be_created_later(broker: FakeBroker, autojump_clock: MockClock) -> None:
    async def create() -> None:
        await trio.sleep(5)
        broker.add_stream("LATER", ["later"])
        broker.publish("later", b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        assert [one.payload for one in await broker.stored("LATER")] == [b"x"]


async def test_retries_are_waited_for(broker: FakeBroker, autojump_clock: MockClock) -> None:
    attempts: list[int] = []

    def at_last(message: Message) -> Message:
        attempts.append(message.deliveries)
        if len(attempts) < 6:
            raise OSError("away")
        return message

    async with running(broker, at_last):
        broker.publish("orders.1", b"x")
        assert len(await broker.stored("OUT")) == 1


async def test_a_dead_letter_is_waited_for_though_its_message_has_failed_alike(broker: FakeBroker) -> None:
    route = STREAM | {"retry": {"initial": "10ms", "attempts": 6}, "dead_letter": {"subject": "dead.a"}}
    async with running(broker, broken, route):
        broker.publish("orders.1", b"x")
        (letter,) = await broker.stored("DEAD", within=20)
        assert letter.headers["Router-Dead-Letter-Attempts"] == "6"


# --- how it fails ---


@pytest.mark.parametrize("route", [STREAM, SUBJECT], ids=["stream", "subject"])
async def test_a_bug_in_a_handler_fails_the_test_with_its_traceback(broker: FakeBroker, route: dict[str, Any]) -> None:
    async with running(broker, broken, route):
        broker.publish("orders.7", b"x")
        began = time.monotonic()
        text = await failed(broker, within=30)
        assert time.monotonic() - began < 15, "it waited for the end of `within`"
    assert text.startswith("stream OUT has 0 of 1 messages: ")
    assert "handler_error (KeyError)" in text
    assert "in broken" in text
    assert 'return message.replace(payload=message.headers["total"].encode())' in text
    assert "KeyError: 'total'" in text
    assert "orders.7" in text


async def test_on_a_simulated_clock_a_bug_takes_no_time(broker: FakeBroker, autojump_clock: MockClock) -> None:
    async with running(broker, broken):
        broker.publish("orders.7", b"x")
        began = time.monotonic()
        text = await failed(broker)
        assert time.monotonic() - began < 10
    assert "none more within 600 s of the simulated clock" in text
    assert re.search(r"in broken, .* \(\d+ times\)\n", text)
    assert "KeyError: 'total'" in text


async def test_a_rejected_message_is_shown_with_its_text(broker: FakeBroker) -> None:
    def strict(message: Message) -> Message:
        raise Reject("there is no such customer")

    async with running(broker, strict, STREAM | {"dead_letter": {"subject": "dead.a"}}):
        broker.publish("orders.7", b"x")
        text = await failed(broker)
    assert "every message that was received is settled" in text
    assert "there is no such customer" in text
    assert "1 dead_lettered" in text


async def test_a_message_for_which_its_handler_asks_for_another_attempt_is_waited_for(
    broker: FakeBroker, autojump_clock: MockClock
) -> None:
    def later(message: Message) -> Message:
        if message.deliveries < 5:
            raise Retry(after=60, detail="the price list is being written")
        return message

    async with running(broker, later):
        broker.publish("orders.7", b"x")
        assert "the price list is being written" in await failed(broker, within=10)
        assert len(await broker.stored("OUT")) == 1


async def test_without_a_failure_the_counts_of_the_routes_are_shown(
    broker: FakeBroker, autojump_clock: MockClock
) -> None:
    async with running(broker, lambda message: None):
        broker.publish("orders.7", b"x")
        text = await failed(broker, within=3)
    assert text == (
        "stream OUT has 0 of 1 messages: none more within 3 s of the simulated clock\n"
        "nothing has failed\n"
        "route route: 1 received, 0 in hand, 1 filtered"
    )


async def test_a_stream_that_is_missing_is_named(broker: FakeBroker, autojump_clock: MockClock) -> None:
    broker.delete_stream("ORDERS")
    async with running(broker, same):
        text = await failed(broker, "UOT", within=5)
    assert text.startswith("there is no stream UOT (there are: OUT, DEAD), so it has not stored 1: ")
    assert "not ready: route route: " in text
    assert "'ORDERS'" in text


async def test_a_destination_without_a_stream_is_named(broker: FakeBroker, autojump_clock: MockClock) -> None:
    async with running(broker, same, STREAM | {"to": {"subject": "elsewhere.a", "jetstream": True}}):
        broker.publish("orders.7", b"x")
        text = await failed(broker, within=5)
    assert "elsewhere.a" in text
    assert "no stream takes 'elsewhere.a'" in text


async def test_a_handler_in_a_thread_on_a_simulated_clock_is_pointed_out(
    broker: FakeBroker, autojump_clock: MockClock
) -> None:
    done = threading.Event()

    def slow(message: Message) -> Message:
        done.wait(30)
        return message

    async with running(broker, slow, STREAM | {"thread": True}):
        broker.publish("orders.7", b"x")
        text = await failed(broker, within=60)
        done.set()
        assert "1 calls of handlers have not returned. The clock of this test is simulated" in text


async def test_a_router_that_has_ended_is_not_waited_for(broker: FakeBroker) -> None:
    async with running(broker, same):
        pass
    assert (await failed(broker)).split("\n") == [
        "stream OUT has 0 of 1 messages: the router has ended",
        "nothing has failed",
        "route route: 0 received, 0 in hand, none settled",
    ]


async def test_publishes_of_the_test_are_waited_for_after_a_failure(broker: FakeBroker) -> None:
    async def end_the_outage() -> None:
        await trio.sleep(1.5)
        broker.up()

    async with running(broker, broken, SUBJECT) as live, trio.open_nursery() as nursery:
        broker.publish("orders.1")
        while not live.routes[0].failed:
            await trio.sleep(0.01)
        broker.down()
        await trio.sleep(0.01)
        await live.publish("out.b", b"from the test")
        nursery.start_soon(end_the_outage)
        assert [message.payload for message in await broker.stored("OUT")] == [b"from the test"]


async def test_a_body_of_another_type_ends_the_wait_with_its_path(broker: FakeBroker) -> None:
    def typed(body: dict[str, int]) -> None: ...

    async with running(broker, typed):
        broker.publish("orders.7", b'{"total": "x"}')
        began = time.monotonic()
        text = await failed(broker, within=30)
        assert time.monotonic() - began < 15
    assert "invalid_body" in text
    assert "should be a valid integer" in text


async def test_failures_before_a_success_end_no_later_wait(broker: FakeBroker) -> None:
    def strict(message: Message) -> Message:
        if not message.payload:
            raise Reject("it is empty")
        return message

    async def publish_later() -> None:
        await trio.sleep(1)
        broker.publish("orders.2", b"x")

    async with (
        running(broker, strict, STREAM | {"dead_letter": {"subject": "dead.a"}}),
        trio.open_nursery() as nursery,
    ):
        broker.publish("orders.1")
        await broker.stored("DEAD")
        nursery.start_soon(publish_later)
        await broker.stored("OUT")


async def test_it_does_not_hang_on_a_clock_that_stands_still(broker: FakeBroker, mock_clock: MockClock) -> None:
    assert "0.1 s (the simulated clock of the test is stopped)" in await failed(broker, within=0.1)


async def test_it_can_be_cancelled(broker: FakeBroker) -> None:
    with trio.move_on_after(0.05) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.stored, "OUT")
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught


async def test_the_report_is_available_by_itself(broker: FakeBroker, autojump_clock: MockClock) -> None:
    assert broker.report() == ""
    async with running(broker, broken):
        broker.publish("orders.7", b"x")
        await trio.sleep(10)
    assert "KeyError: 'total'" in broker.report()
    assert re.search(r"route route: \d+ received, 0 in hand, \d+ returned", broker.report())


# --- on asyncio, with Trio as a guest ---


@pytest.mark.parametrize("handler", [same, broken])
def test_it_can_be_awaited_on_asyncio(broker: FakeBroker, handler: Callable[[Message], Any]) -> None:
    async def routers(opened: Callable[[], None], leave: trio.Event) -> None:
        async with running(broker, handler):
            opened()
            await leave.wait()

    async def program() -> list[bytes]:
        opened, over, leave = asyncio.Event(), asyncio.Event(), trio.Event()
        trio.lowlevel.start_guest_run(
            routers,
            opened.set,
            leave,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=lambda outcome: over.set(),
            host_uses_signal_set_wakeup_fd=True,
        )
        await opened.wait()
        try:
            broker.publish("orders.7", b"x")
            return [message.payload for message in await broker.stored("OUT", within=20)]
        finally:
            leave.set()
            await over.wait()

    if handler is same:
        assert asyncio.run(program()) == [b"x"]
    else:
        with pytest.raises(AssertionError, match="KeyError: 'total'"):
            asyncio.run(program())


# --- errors in full ---


@pytest.mark.parametrize(("telemetry", "is_shown"), [({}, True), ({"handler_errors": "type"}, False)])
@pytest.mark.parametrize("faults", [False, True])
async def test_errors_of_handlers_are_shown_in_full_on_a_fake_broker(
    broker: FakeBroker, telemetry: dict[str, Any], is_shown: bool, faults: bool, autojump_clock: MockClock
) -> None:
    settings = Settings(connections={"main": {"servers": ["nats://fake"]}}, telemetry={"listen": "", **telemetry})
    connect = Faults().around(broker.connect) if faults else broker.connect
    router = Router(settings, connect=lambda name, settings: connect, log=False)
    router.route("orders.*", to="out.a", name="route")(broken)
    async with router.open() as live:
        broker.publish("orders.7", b"x")
        await broker.stored("ORDERS")
        while not live.routes[0].failed:
            await trio.sleep(0.1)
        assert live.routes[0].last_failure is not None
        assert ("'total'" in str(live.routes[0].last_failure.detail)) is is_shown
        assert ("KeyError: 'total'" in await failed(broker, within=1)) is is_shown
