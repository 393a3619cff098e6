"""Cancellation crosses between asyncio and Trio in both directions, and ends cleanly however a program ends."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest
import trio

from router_trio import Fate, Message, PublishError, Router, RouterError, aio
from router_trio.aio.guest import Guest, join_guest
from router_trio.aio.live import Receipt
from router_trio.client.receipt import Receipt as TrioReceipt
from router_trio.testing import FakeBroker
from tests.support.settings import settings
from tests.unit.aio.programs import LOOPS, eventually, router, run

each_loop = pytest.mark.parametrize("loop", LOOPS)


@each_loop
def test_a_cancelled_call_has_ended_on_trio_when_it_raises(loop: str) -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            steps.append("cleaned up")
            raise

    async def main() -> None:
        guest = await join_guest()
        try:
            call = guest.call(work)
            task = asyncio.create_task(call.result(LookupError))
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert steps == ["cleaned up"]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(guest.call(work).result(LookupError), 0.01)
        finally:
            await guest.leave()

    run(main, loop)


@each_loop
def test_a_wait_for_a_fate_ends_when_trio_fails(loop: str) -> None:
    async def main() -> None:
        guest = Guest(asyncio.get_running_loop())
        receipt = Receipt(TrioReceipt(), guest)
        waiting = [asyncio.create_task(receipt.settled()) for _ in range(2)]
        await asyncio.sleep(0)
        guest._failed(trio.TrioInternalError("a bug"))
        for one in (*waiting, receipt.settled()):
            with pytest.raises(RouterError, match="the router has ended"):
                await asyncio.wait_for(one, 5)

    run(main, loop)


@each_loop
def test_a_cancelled_publish_that_waits_for_room_was_not_accepted(loop: str) -> None:
    broker = FakeBroker()

    async def main() -> None:
        async with aio.open(router(broker, max_pending_operations=3, on_pending_full="block")) as live:
            broker.down()
            await eventually(lambda: not live.connections["main"].connected)
            receipts = [await live.publish("out", b"%d" % number) for number in range(3)]
            assert {one.status for one in receipts} == {"queued"}
            waiting = [asyncio.create_task(live.publish("out", b"late %d" % number)) for number in range(3)]
            with_ack = asyncio.create_task(live.publish_with_ack("out", b"late"))
            await asyncio.sleep(0.05)
            assert not any(one.done() for one in waiting)
            waiting[1].cancel()
            with_ack.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[1]
            with pytest.raises(asyncio.CancelledError):
                await with_ack
            assert live.ledger()["main"]["accepted"] == 3
            broker.up()
            receipts += await asyncio.gather(waiting[0], waiting[2])
            assert {(await one.settled()).name for one in receipts} == {"fenced"}

    run(main, loop)
    assert sorted(one.payload for one in broker.published) == [b"0", b"1", b"2", b"late 0", b"late 2"]


def test_publishers_that_wait_while_a_connection_is_replaced_publish_on_the_next_one() -> None:
    broker = FakeBroker()

    async def main() -> None:
        async with aio.open(router(broker, max_pending_operations=1, on_pending_full="block")) as live:
            broker.down()
            await eventually(lambda: not live.connections["main"].connected)
            await live.publish("out", b"first")
            waiting = asyncio.create_task(live.publish("out", b"second"))
            await asyncio.sleep(0.05)
            reload = asyncio.create_task(live.reload(settings("nats://fake:4223")))
            await asyncio.sleep(0.05)
            held = asyncio.create_task(live.publish("out", b"third"))
            await asyncio.sleep(0.05)
            broker.up()
            await reload
            assert {(await (await one).settled()).name for one in (waiting, held)} == {"fenced"}

    run(main)


@each_loop
def test_a_publish_that_waits_when_the_router_ends_is_refused(loop: str) -> None:
    broker = FakeBroker()

    async def main() -> None:
        config = settings("nats://fake:4222", max_pending_operations=1, on_pending_full="block")
        short = config.with_changes(router={"shutdown_timeout": "100ms"})
        async with aio.open(Router(short, log=False, connect=lambda name, _: broker.connect)) as live:
            broker.down()
            await eventually(lambda: not live.connections["main"].connected)
            first = await live.publish("out", b"first")
            waiting = [asyncio.create_task(live.publish("out", b"second")) for _ in range(3)]
            settles = asyncio.create_task(first.settled())
            await asyncio.sleep(0.05)
        assert await settles == Fate("dropped", "shutdown")
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, PublishError):
                assert outcome.reason == "shutdown"
            else:
                assert isinstance(outcome, aio.Receipt)
                assert outcome.fate == Fate("dropped", "shutdown")

    run(main, loop)


@each_loop
def test_a_cancelled_body_is_drained(loop: str) -> None:
    broker = FakeBroker()
    receipts: list[aio.Receipt] = []

    async def body() -> None:
        async with aio.open(router(broker, liveness_interval="60s")) as live:
            broker.stall(0.3)
            receipts.extend([await live.publish("out", b"x") for _ in range(100)])
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(body())
        await eventually(lambda: receipts)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main, loop)
    assert {one.fate for one in receipts} == {Fate("fenced")}


@each_loop
def test_a_body_in_a_cancelled_scope_of_anyio_is_drained(loop: str) -> None:
    """Such a scope cancels its task in each turn of the loop."""
    broker = FakeBroker()
    receipts: list[aio.Receipt] = []

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with aio.open(router(broker, liveness_interval="60s")) as live:
                broker.stall(0.3)
                receipts.extend([await live.publish("out", b"x") for _ in range(100)])
                scope.cancel()
                await asyncio.sleep(60)
        assert scope.cancelled_caught
        with anyio.move_on_after(0.05) as scope:
            async with aio.open(router(broker)) as live:
                await live.publish("out", b"")
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        await asyncio.sleep(0)

    run(main, loop)
    assert {one.fate for one in receipts} == {Fate("fenced")}


@each_loop
def test_cancelling_again_cuts_the_drain_short(loop: str) -> None:
    broker = FakeBroker()
    receipts: list[aio.Receipt] = []

    async def body() -> None:
        async with aio.open(router(broker)) as live:
            broker.down()
            await eventually(lambda: not live.connections["main"].connected)
            receipts.append(await live.publish("out", b"x"))
            await asyncio.sleep(60)

    async def main() -> float:
        task = asyncio.create_task(body())
        await eventually(lambda: receipts)
        task.cancel()
        await asyncio.sleep(0.1)
        assert not task.done()
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    assert run(main, loop) < 3
    assert receipts[0].fate == Fate("dropped", "shutdown")


@each_loop
def test_a_router_may_be_cancelled_while_it_starts(loop: str) -> None:
    broker = FakeBroker()
    broker.blackhole()

    async def body() -> None:
        async with aio.open(router(broker, connect_timeout="60s")):
            pytest.fail("entered")

    async def main() -> None:
        for wait in (0, 0, 0.001, 0.05):
            task = asyncio.create_task(body())
            await asyncio.sleep(wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await body()

    run(main, loop)


@each_loop
def test_a_body_with_a_timeout_raises_it_after_the_drain(loop: str) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), aio.open(router(FakeBroker())):
                await asyncio.sleep(60)

    run(main, loop)


@each_loop
def test_a_task_that_is_left_when_the_program_ends_is_drained(loop: str) -> None:
    broker = FakeBroker()
    receipts: list[aio.Receipt] = []
    ended: list[str] = []

    async def body() -> None:
        async with aio.open(router(broker)) as live:
            receipts.append(await live.publish("out", b"x"))
            await asyncio.sleep(60)
        ended.append("never")

    async def main() -> None:
        task = asyncio.create_task(body())
        await eventually(lambda: receipts)
        assert not task.done()

    run(main, loop)
    assert receipts[0].fate == Fate("fenced")
    assert ended == []


def test_a_loop_that_is_stopped_drains_when_its_tasks_are_cancelled() -> None:
    receipts: list[aio.Receipt] = []

    async def main() -> None:
        async with aio.open(router(FakeBroker())) as live:
            receipts.append(await live.publish("out", b"x"))
            asyncio.get_running_loop().stop()
            await asyncio.sleep(60)

    with pytest.raises(RuntimeError, match="Event loop stopped"):
        asyncio.run(main())
    assert receipts[0].fate == Fate("fenced")


def test_a_loop_may_be_stopped_and_continued_between_entering_and_leaving() -> None:
    """As fixtures of pytest-asyncio do, which enter in one task and leave in another."""
    with asyncio.Runner() as runner:
        context = aio.open(router(FakeBroker()))
        live = runner.run(context.__aenter__())

        async def use() -> str:
            return (await (await live.publish("out", b"")).settled()).name

        assert runner.run(use()) == "fenced"
        runner.run(context.__aexit__(None, None, None))


def test_a_generator_that_is_never_left_is_drained_by_the_loop() -> None:
    receipts: list[aio.Receipt] = []
    contexts: list[object] = []

    async def main() -> None:
        context = aio.open(router(FakeBroker()))
        contexts.append(context)
        live = await context.__aenter__()
        receipts.append(await live.publish("out", b"x"))

    asyncio.run(main())
    assert receipts[0].fate == Fate("fenced")


def test_a_handler_that_runs_when_the_program_ends_may_finish() -> None:
    broker = FakeBroker()
    routes = router(broker)
    began = trio.Event()
    ended: list[str] = []

    @routes.route("in", to="out")
    async def handler(message: Message) -> Message:
        began.set()
        await trio.sleep(0.1)
        ended.append("ended")
        return message

    async def main() -> None:
        async with aio.open(routes):
            broker.publish("in", b"x")
            await eventually(began.is_set)

    run(main)
    assert ended == ["ended"]
    assert [one.subject for one in broker.published] == ["out"]


@each_loop
def test_a_cancelled_publish_with_ack_stays_accepted(loop: str) -> None:
    broker = FakeBroker()
    broker.add_stream("S", ["stored"])

    async def main() -> None:
        async with aio.open(router(broker, liveness_interval="60s")) as live:
            broker.stall(0.2)
            task = asyncio.create_task(live.publish_with_ack("stored", b"x"))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(PublishError) as late:
                await live.publish_with_ack("stored", b"y", timeout=0.01)
            assert late.value.reason == "timeout"
        assert live.ledger()["main"]["settled"]["acked"] == 1

    run(main, loop)
    assert [one.payload for one in broker.messages("S")] == [b"x", b"y"]


@each_loop
def test_a_publish_with_ack_is_queued_when_the_link_is_lost_and_acked_after_it(loop: str) -> None:
    broker = FakeBroker()
    broker.add_stream("S", ["stored"])

    async def main() -> None:
        async with aio.open(router(broker, liveness_interval="60s")) as live:
            broker.blackhole()
            tasks = [asyncio.create_task(live.publish_with_ack("stored", b"x", timeout=30)) for _ in range(3)]
            await asyncio.sleep(0.01)
            broker.cut()
            broker.up()
            receipts = await asyncio.gather(*tasks)
            assert {one.status for one in receipts} == {"queued"}
            fates = await asyncio.gather(*(one.settled() for one in receipts))
            assert {(fate.name, fate.stream) for fate in fates} == {("acked", "S")}

    run(main, loop)
