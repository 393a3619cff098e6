"""Routes from a stream in trouble: consumers and streams that are lost and replaced, and the end. Nothing is lost."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from router_trio.connection import source_retries
from router_trio.link import SIGN_OF_WORK_EVERY, ConsumerSpec, PullConsumer
from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
from router_trio.routing.resubscribe import LONGEST_DELAY
from router_trio.routing.stream.pulling import pull_loop as module
from router_trio.states import FAILED, PAUSED, RUNNING
from router_trio.telemetry.http.status import readiness
from router_trio.testing import FakeBroker
from router_trio.testing.links import FakeLink
from router_trio.testing.subscriptions import FakePullConsumer
from tests.support.eventually import eventually
from tests.support.world import (
    LOCAL,
    REMOTE,
    all_acked,
    another_link,
    core,
    fill,
    handled,
    numbers,
    one_broker,
    stream,
    to,
    two_brokers,
    unacked,
    world,
)

# --- the consumer, the stream ----------------------------------------------------------------------------------------


async def test_a_missing_stream_does_not_affect_other_routes_and_is_found_once_created(
    autojump_clock: MockClock,
) -> None:
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    async with world(
        [stream("IN", "out.x", route="missing"), core("ping", "pong", name="core")], brokers={"main": broker}
    ) as w:
        missing, plain = w.live.routes
        assert missing.state == FAILED
        assert missing.unready is not None
        assert "'IN'" in missing.unready
        broker.publish("ping", b"x")
        await eventually(lambda: plain.routed["pong"] == 1)
        await w.watch.until("NATS_SUBSCRIBE_ERROR", times=6, within=120)
        assert set(w.failures("subscribe")) == {"stream_not_found"}
        broker.add_stream("IN", ["in.*"])
        fill(broker, 5)
        await all_acked(w, 5)
        assert missing.state == RUNNING


async def test_many_refused_routes_together_are_tried_at_a_bounded_rate(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, a_second = 80, 5
    monkeypatch.setattr(source_retries, "RETRIES_A_SECOND", a_second)
    broker = FakeBroker()
    broker.add_stream("OUT", ["out.>"])
    routes = [stream("IN", "out.x", route=f"r{number}", durable=f"d{number}") for number in range(count)]
    async with world(routes, brokers={"main": broker}) as w:
        await trio.sleep(1)
        tried = w.failures("subscribe")["stream_not_found"]
        assert tried == 2 * count, "the first retry of each is soon"
        for _ in range(6):
            await trio.sleep(20)
            before, tried = tried, w.failures("subscribe")["stream_not_found"]
            assert 0.5 * 20 * a_second <= tried - before <= 20 * a_second
        broker.add_stream("IN", ["in.*"])
        await eventually(lambda: all(route.state == RUNNING for route in w.live.routes), 2 * count / a_second)


async def test_a_few_refused_routes_are_tried_again_soon_after_many_were(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10 s, as before there were many of them; those that have recovered or ended no longer count."""
    monkeypatch.setattr(source_retries, "RETRIES_A_SECOND", 5)
    broker = one_broker()["main"]
    broker.deny_publish("$JS.API.CONSUMER.*.IN.>")
    many = [stream("IN", "out.x", route=f"r{number}", durable=f"d{number}") for number in range(80)]
    async with world(many, brokers={"main": broker}) as w:
        await trio.sleep(60)
        await w.live.reload(w.configuration(*many[:3]))
        await trio.sleep(30)
        assert set(w.failures("subscribe")) == {"permission_denied"}
        broker.allow_publish("$JS.API.CONSUMER.*.IN.>")
        await eventually(lambda: all(route.state == RUNNING for route in w.live.routes), LONGEST_DELAY + 1)


async def test_a_durable_with_another_filter_is_refused_with_the_difference(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([LOCAL], brokers=brokers) as w:
        fill(w.broker, 2)
        await all_acked(w, 2)
    async with world([stream("IN", "out.y", filter="in.other")], brokers=brokers) as w:
        assert w.route.state == FAILED
        assert w.route.reason is not None
        assert "in.other" in w.route.reason
        assert "in.*" in w.route.reason
        assert w.failures("subscribe") == {"consumer_mismatch": 1}


async def test_a_deleted_consumer_is_recreated_behind_the_settled_messages(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 100)
        await all_acked(w, 100)
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 50, first=100)
        await all_acked(w, 150)
        assert [message.payload for message in brokers["edge"].published] == numbers(150)
        assert (w.route.received, w.route.duplicates) == (150, 0)
        assert w.failures("subscribe") == {"consumer_deleted": 1}
        assert (w.watch.count("ROUTE_READY"), w.route.state) == (2, RUNNING)


async def test_deleting_a_consumer_while_messages_are_in_hand_loses_and_repeats_none(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    failing = True

    def pick(message: Message) -> Message:
        if failing and message.payload in (b"3", b"40"):
            raise ValueError("not yet")
        return message

    source = {
        "stream": "IN",
        "durable": "router",
        "connection": "main",
        "max_in_flight": 16,
        "retry": {"initial": "60s"},
    }
    handler = handled(pick, to=to("core", "edge"), **source)
    async with world(handlers=[handler], brokers=brokers) as w:
        fill(w.broker, 60)
        await eventually(lambda: w.successes("ack") == 58)
        brokers["edge"].stall(3.0)
        fill(w.broker, 8, first=60)
        await eventually(lambda: w.entry("edge")["in_flight"] == 8)
        failing = False
        w.broker.delete_consumer("IN", "router")
        await eventually(lambda: w.watch.count("ROUTE_READY") == 2)
        fill(w.broker, 2, first=68)
        await eventually(lambda: len(brokers["edge"].published) == 70, 300)
        await eventually(lambda: unacked(w) == 0)
        # 3 and 40 had failed and are still redelivered; the messages settled between them are not.
        assert sorted(int(message.payload) for message in brokers["edge"].published) == list(range(70))


async def test_a_consumer_deleted_while_the_link_is_down_starts_behind_the_settled_messages(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 20)
        await all_acked(w, 20)
        await w.lose("main")
        w.broker.delete_consumer("IN", "router")
        fill(w.broker, 5, first=20)
        await w.find("main")
        await all_acked(w, 25)
        assert [message.payload for message in brokers["edge"].published] == numbers(25)
        assert w.route.received == 25


async def test_a_consumer_deleted_before_it_could_redeliver_lost_messages_loses_none(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker()
    async with world([stream("IN", "out.x", ack_wait="30s")], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        # Delivered to a link that is dead already: the server waits for their acks for half a minute.
        w.broker.blackhole()
        fill(w.broker, 5, first=5)
        await trio.sleep(0.1)
        w.broker.cut()
        w.broker.delete_consumer("IN", "router")
        w.broker.up()
        fill(w.broker, 5, first=10)
        await eventually(lambda: len(w.payloads("OUT")) == 15)
        assert w.payloads("OUT") == numbers(15)
        assert w.route.received == 15
        await eventually(lambda: unacked(w) == 0)


async def test_messages_lost_with_a_link_are_redelivered_at_once_and_before_new_ones(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    async with world([stream("IN", "out.x", ack_wait="30s")], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        w.broker.blackhole()
        fill(w.broker, 5, first=5)
        await trio.sleep(0.1)
        w.broker.cut()
        fill(w.broker, 5, first=10)
        w.broker.up()
        found_at = trio.current_time()
        await eventually(lambda: len(w.payloads("OUT")) == 15)
        assert trio.current_time() - found_at < 5
        assert w.payloads("OUT") == numbers(15)
        assert w.route.received == 15
        await eventually(lambda: unacked(w) == 0)


async def test_nothing_new_is_requested_while_the_lost_deliveries_are_unknown(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(consumer: FakePullConsumer, first: int) -> None:
        return None

    brokers = one_broker()
    async with world([stream("IN", "out.x", ack_wait="30s")], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        monkeypatch.setattr(FakePullConsumer, "unacked", unknown)
        w.broker.blackhole()
        fill(w.broker, 5, first=5)
        await trio.sleep(0.1)
        w.broker.cut()
        fill(w.broker, 5, first=10)
        w.broker.up()
        await eventually(lambda: w.route.state == PAUSED)
        assert w.route.reason is not None
        assert "redelivered first" in w.route.reason
        await all_acked(w, 15)
        assert w.payloads("OUT") == numbers(15)
        assert w.route.received == 15
        await eventually(lambda: w.route.state == RUNNING and w.route.reason is None)


async def test_a_deleted_stream_is_waited_for_and_its_successor_starts_at_the_first_message(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    route = stream("IN", to("core", "edge"), connection="main")
    async with world([route], brokers=brokers) as w:
        fill(w.broker, 10)
        await all_acked(w, 10)
        w.broker.delete_stream("IN")
        await eventually(lambda: w.route.state == FAILED)
        await trio.sleep(100)
        assert set(w.failures("subscribe")) == {"consumer_deleted", "stream_not_found"}
        w.broker.add_stream("IN", ["in.*"])
        fill(w.broker, 5, first=10)
        await all_acked(w, 15)
        assert [message.payload for message in brokers["edge"].published] == numbers(15)


async def test_messages_in_hand_of_a_deleted_stream_ack_nothing_of_the_next_one(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    gate = trio.Event()

    async def hold(message: Message) -> Message:
        if message.payload in numbers(3):
            await gate.wait()
        return message

    handler = handled(hold, to=to("core", "edge"), stream="IN", durable="router", connection="main")
    async with world(handlers=[handler], brokers=brokers, shutdown_timeout=5) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route.received == 3)
        w.broker.delete_stream("IN")
        w.broker.add_stream("IN", ["in.*"])
        await eventually(lambda: w.watch.count("ROUTE_READY") == 2)
        fill(w.broker, 5, first=10)
        await eventually(lambda: w.route.received == 8)
        # The same sequences, other messages: nothing of the new stream is settled yet.
        assert unacked(w) == 5
        gate.set()
        await all_acked(w, 5)
        assert [int(message.payload) for message in brokers["edge"].published] == [0, 1, 2, 10, 11, 12, 13, 14]
        assert w.route.duplicates == 0


async def test_unsent_acks_for_a_deleted_stream_are_not_sent_to_the_next_one(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    broker = brokers["main"]

    async def work_on(consumer: PullConsumer) -> None:
        while True:
            consumer.say_at_work()
            await trio.sleep(SIGN_OF_WORK_EVERY)

    async with (
        world([REMOTE], brokers=brokers) as w,
        another_link(broker) as other,
        trio.open_nursery() as nursery,
    ):
        brokers["edge"].stall(1.0)
        fill(broker, 5)
        await eventually(lambda: w.entry("edge")["in_flight"] == 5)
        broker.refuse_credentials()
        broker.cut("fake:4222")
        await eventually(lambda: w.failures("ack") == {"not_connected": 5})
        # Meanwhile the stream is recreated, and another process takes messages with the same sequences.
        broker.delete_stream("IN")
        broker.add_stream("IN", ["in.*"])
        taken: list[RawMessage] = []
        consumer = await other.open_consumer(ConsumerSpec("IN", "router", ("in.*",), 30.0, -1, 100), taken.extend)
        consumer.pull(5, 30.0)
        nursery.start_soon(work_on, consumer)
        fill(broker, 5, first=5)
        await eventually(lambda: len(taken) == 5)
        broker.accept_credentials()
        await eventually(lambda: w.route.state == RUNNING)
        assert unacked(w) == 5
        await trio.sleep(5.0)
        assert unacked(w) == 5, "they are in progress"
        nursery.cancel_scope.cancel()
        await all_acked(w, 5)  # once the other process has not acked them in time
        assert w.payloads("OUT", "edge") == numbers(10)


async def test_a_silent_consumer_is_opened_again(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = one_broker()
    async with world([LOCAL], brokers=brokers) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        consumer = w.broker._server.consumers["IN", "router"]
        # The server forgets the pull requests without a status, as it does when it loses its interest in them.
        consumer._requests.clear()
        await w.watch.until("NATS_SUBSCRIBE_ERROR", within=60)
        assert w.failures("subscribe") == {"consumer_silent": 1}
        assert trio.current_time() <= module.SILENCE + 1
        fill(w.broker, 5, first=5)
        await all_acked(w, 10)
        assert w.payloads("OUT") == numbers(10)


async def test_a_route_is_not_ready_within_ten_seconds_of_the_last_sign_of_its_consumer(
    autojump_clock: MockClock,
) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)
        await trio.sleep(60)
        assert readiness(w.live, trio.current_time())[0] == 200  # while the server sends heartbeats
        requests = w.broker._server.consumers["IN", "router"]._requests
        kept = [*requests]
        requests.clear()
        await trio.sleep(10)
        code, body = readiness(w.live, trio.current_time())
        assert code == 503
        assert "nothing was heard from its consumer for 8 s" in str(body)
        requests.extend(kept)
        fill(w.broker, 5, first=5)
        await all_acked(w, 10)
        assert readiness(w.live, trio.current_time())[0] == 200


@pytest.mark.parametrize("cause", ["pulls are lost", "pulls are forgotten"])
async def test_a_consumer_that_is_silent_twice_in_a_row_leaves_its_route_not_ready_until_it_answers(
    cause: str, autojump_clock: MockClock
) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        fill(w.broker, 5)
        await all_acked(w, 5)

        async def forget() -> None:
            while True:
                w.broker._server.consumers["IN", "router"]._requests.clear()
                await trio.sleep(0.5)

        async with trio.open_nursery() as nursery:
            if cause == "pulls are lost":
                w.broker.trouble.lose("pull", 1_000_000)
                w.broker._server.consumers["IN", "router"]._requests.clear()
            else:
                nursery.start_soon(forget)
            await w.watch.until("NATS_SUBSCRIBE_ERROR", times=1, within=60)
            # Once may be bad luck: the route is ready when it has opened the consumer.
            await eventually(lambda: readiness(w.live, trio.current_time())[0] == 200, 5)
            await w.watch.until("NATS_SUBSCRIBE_ERROR", times=2, within=60)
            for _ in range(100):
                code, body = readiness(w.live, trio.current_time())
                assert code == 503
                assert "times in a row: it was reopened each time and delivers nothing" in str(body)
                await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        w.broker.trouble.lose("pull", 0)
        fill(w.broker, 5, first=5)
        await all_acked(w, 10)
        await eventually(lambda: readiness(w.live, trio.current_time())[0] == 200, 5)
        assert w.failures("subscribe").keys() == {"consumer_silent"}


async def test_a_route_whose_first_pull_is_refused_is_not_reported_ready(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    pulls = "$JS.API.CONSUMER.MSG.NEXT.IN.router"
    brokers["main"].deny_publish(pulls)
    async with world([LOCAL], brokers=brokers) as w:
        fill(w.broker, 5)
        await trio.sleep(60)
        assert w.failures("subscribe")["permission_denied"] >= 5
        assert (w.watch.count("ROUTE_READY"), w.successes("subscribe")) == (0, 0)
        w.broker.allow_publish(pulls)
        await all_acked(w, 5)
        assert (w.watch.count("ROUTE_READY"), w.successes("subscribe")) == (1, 1)


async def test_a_route_runs_once_the_server_has_accepted_its_first_pull(autojump_clock: MockClock) -> None:
    """On each link ROUTE_READY is emitted before the state shows that the route runs, and the router is ready only
    then.
    """
    brokers = one_broker()
    brokers["main"].trouble.travel(lambda: 0.1)
    async with world([LOCAL], brokers=brokers) as w:
        for link in (1, 2):
            while w.route.state != RUNNING:
                assert w.watch.count("ROUTE_READY") == link - 1
                assert readiness(w.live, trio.current_time())[0] == 503
                await trio.sleep(0.01)
            assert w.watch.count("ROUTE_READY") == link
            assert readiness(w.live, trio.current_time())[0] == 200
            await w.lose()
            await w.find()


async def test_a_router_is_ready_when_it_is_open(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its log would begin with a warning that it is not ready yet."""
    fence = FakeLink.fence

    async def late(link: FakeLink) -> None:
        await trio.sleep(0.5)
        await fence(link)

    monkeypatch.setattr(FakeLink, "fence", late)
    async with world([LOCAL], brokers=one_broker()) as w:
        assert w.route.state == RUNNING
        assert readiness(w.live, trio.current_time())[0] == 200


async def _no_answer(link: FakeLink) -> None:
    await trio.sleep_forever()


async def test_a_route_is_reported_ready_before_its_first_message_is_handled(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message shows that a pull was accepted, even if its fence is never answered because the link dies."""
    monkeypatch.setattr(FakeLink, "fence", _no_answer)
    brokers = one_broker()
    handled_at: list[float] = []

    def handle(message: Message) -> Message:
        handled_at.append(trio.current_time())
        return message

    fill(brokers["main"], 1)
    async with world(handlers=[handled(handle, to=to("out.x"), stream="IN", durable="router")], brokers=brokers) as w:
        assert (w.watch.count("ROUTE_READY"), w.successes("subscribe"), w.route.state) == (1, 1, RUNNING)
        assert w.watch.of("ROUTE_READY")[0].at <= handled_at[0] < 1


async def test_a_route_that_requests_nothing_yet_is_reported_ready(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["edge"].down()
    async with world([REMOTE], brokers=brokers) as w:
        await trio.sleep(1)
        assert (w.watch.count("ROUTE_READY"), w.route.state) == (1, PAUSED)


async def test_retries_grow_while_the_consumer_is_lost_again_and_again(autojump_clock: MockClock) -> None:
    async with world([LOCAL], brokers=one_broker()) as w:
        for _ in range(6):
            ready = w.watch.count("ROUTE_READY")
            w.broker.delete_consumer("IN", "router")
            await eventually(lambda ready=ready: w.watch.count("ROUTE_READY") > ready, 60)  # type: ignore[misc]
        times = [event.at for event in w.watch.of("NATS_SUBSCRIBE_ERROR")]
        delays = [later - earlier for earlier, later in pairwise(times)]
        assert delays[-1] > 4 * delays[0]
        fill(w.broker, 5)
        await all_acked(w, 5)
        w.broker.delete_consumer("IN", "router")
        began = trio.current_time()
        await eventually(lambda: w.watch.count("ROUTE_READY") == 8)
        assert trio.current_time() - began <= 0.6, "after success the next loss waits the shortest time again"
