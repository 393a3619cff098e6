"""Reloads on fake brokers: connections and streams that are added, removed and changed, and publishes on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.errors import ConfigurationError, PublishError
from router_trio.message import Message
from router_trio.states import CONNECTED
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.watch import assert_accounted
from tests.support.world import World, core, fill, handled, numbers, stream, to, two_brokers, world

LATER = {"edge": {"connect_timeout": "1s"}}
"""A change of a connection that changes nothing else."""


def brokers() -> dict[str, FakeBroker]:
    return {"main": FakeBroker(), "edge": FakeBroker()}


def payloads(w: World, subject: str, connection: str = "main") -> list[bytes]:
    return [one.payload for one in w.brokers[connection].published if one.subject == subject]


async def slowly(message: Message) -> Message:
    await trio.sleep(1)
    return message


async def publish_numbers(w: World, act: Callable[[], Any]) -> int:
    """Publish consecutive numbers to `in.1`, and call `act` meanwhile. Return how many were published."""
    sent = 0

    async def publish() -> None:
        nonlocal sent
        while True:
            w.broker.publish("in.1", b"%d" % sent)
            sent += 1
            assert_accounted(w.live)
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await trio.sleep(0.1)
        await act()
        await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    return sent


async def test_a_reload_that_changes_nothing_reconnects_at_once(autojump_clock: MockClock) -> None:
    slow = {"main": {"reconnect_delay": "10m", "max_reconnect_delay": "10m"}}
    route = core("in.*", "out.$1")
    async with world([route], connections=slow) as w:
        same = w.configuration(route)
        w.broker.refuse_credentials()
        w.broker.cut()
        await w.watch.until("NATS_CONNECTION_FAILED")
        w.broker.accept_credentials()
        await trio.sleep(5)
        assert not w.live.connections["main"].connected, "it waits for ten minutes"
        await w.live.reload(same)
        await trio.sleep(0.1)
        assert w.live.connections["main"].connected
        w.broker.refuse_credentials()
        w.broker.cut()
        await w.watch.until("NATS_CONNECTION_FAILED", times=2, within=3600)
        await w.live.reload(same)
        await w.watch.until("NATS_CONNECTION_FAILED", times=3)
        failed_at = trio.current_time()
        await w.watch.until("NATS_CONNECTION_FAILED", times=4, within=3600)
        assert trio.current_time() - failed_at > 500, "the delay after a failed attempt stays"


async def test_a_core_route_loses_nothing_when_its_destination_connection_changes(
    autojump_clock: MockClock,
) -> None:
    route = core("in.*", to("out.$1", "edge"), connection="main")
    async with world([route], brokers=brokers()) as w:
        before = w.live.connections["edge"]
        main = w.live.connections["main"]
        sent = await publish_numbers(w, lambda: w.live.reload(w.configuration(route, connections=LATER)))
        await eventually(lambda: w.route_ledger() == (sent, 0, {"routed": sent}))
        assert payloads(w, "out.1", "edge") == numbers(sent)
        assert w.live.connections["edge"] is not before
        assert w.live.connections["main"] is main
        assert main.state.lost == 0
        assert w.entry("edge")["settled"] == {"fenced": sent}
        (reload,) = w.watch.of("ROUTER_RELOADED")
        assert reload.changed == ("connection edge", "route route")
        assert (reload.unchanged, reload.unsettled) == (1, 0)


def others(*names: str) -> dict[str, dict[str, Any]]:
    """Return a change of these connections that changes nothing else."""
    return {name: {"connect_timeout": "1s"} for name in names}


CHANGED = [("main",), ("edge",), ("main", "edge")]
"""The connection from which a route receives, that to which it sends, and both."""

KEPT = core("in.*", to("out.1", "edge", jetstream=True), connection="main", retry={"initial": "1s", "attempts": 2})


@pytest.mark.parametrize("changed", CHANGED)
@pytest.mark.parametrize("more", [{}, {"dead_letter": {"subject": "dead.$1", "connection": "main"}}])
async def test_messages_that_a_destination_refuses_outlast_the_change_of_a_connection(
    more: dict[str, Any], changed: tuple[str, ...], autojump_clock: MockClock
) -> None:
    """They wait in memory, and are neither dead-lettered nor lost when the connection of their subject ends."""
    route = KEPT | more
    async with world([route], brokers=two_brokers()) as w:
        w.brokers["edge"].deny_publish("out.>")
        for payload in numbers(3):
            w.broker.publish("in.1", payload)
        await eventually(lambda: w.route.failed["permission_denied"] >= 1)
        await w.live.reload(w.configuration(route, connections=others(*changed)))
        await trio.sleep(30)
        assert w.route_ledger() == (3, 3, {})
        w.broker.publish("in.1", b"3")
        w.brokers["edge"].allow_publish("out.>")
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 4}), 60)
        assert w.payloads("OUT", "edge") == numbers(4)


@pytest.mark.parametrize("changed", CHANGED)
async def test_a_message_that_is_refused_while_its_connection_changes_is_tried_by_the_new_route(
    changed: tuple[str, ...], autojump_clock: MockClock
) -> None:
    """It is unsettled when the old route ends, which therefore can't try it again."""
    async with world([KEPT], brokers=two_brokers()) as w, trio.open_nursery() as nursery:
        w.brokers["edge"].stall(2)
        w.brokers["edge"].deny_publish("out.>")
        w.broker.publish("in.1", b"0")
        await eventually(lambda: w.route.in_hand == 1)
        nursery.start_soon(w.live.reload, w.configuration(KEPT, connections=others(*changed)))
        await eventually(lambda: w.route.failed["permission_denied"] >= 1)
        w.brokers["edge"].allow_publish("out.>")
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}), 60)
        assert w.payloads("OUT", "edge") == numbers(1)


@pytest.mark.parametrize("changed", CHANGED)
async def test_messages_for_a_missing_stream_outlast_the_change_of_a_connection(
    changed: tuple[str, ...], autojump_clock: MockClock
) -> None:
    """Nothing is published there, so they wait in the outbox of the connection that ends."""
    made = two_brokers()
    made["edge"].delete_stream("OUT")
    async with world([KEPT], brokers=made) as w:
        for payload in numbers(3):
            w.broker.publish("in.1", payload)
        await trio.sleep(30)
        await w.live.reload(w.configuration(KEPT, connections=others(*changed)))
        assert w.route_ledger() == (3, 3, {})
        made["edge"].add_stream("OUT", ["out.>"])
        await eventually(lambda: w.route_ledger() == (3, 0, {"routed": 3}), 60)
        assert w.payloads("OUT", "edge") == numbers(3)


@pytest.mark.parametrize("more", [{"limit": {"rate": "1/s", "burst": 1}}, {"handler": f"{__name__}:slowly"}])
async def test_messages_that_wait_go_to_the_new_route_when_their_own_connection_changes(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    route = core("in.*", to("out.$1", "edge"), connection="main") | more
    async with world([route], brokers=brokers()) as w:
        for payload in numbers(5):
            w.broker.publish("in.1", payload)
        await eventually(lambda: w.route.received == 5)
        began = trio.current_time()
        await w.live.reload(w.configuration(route, connections=others("main")))
        assert trio.current_time() - began < 2, "only what was begun is waited for"
        await eventually(lambda: w.route_ledger() == (5, 0, {"routed": 5}))
        assert payloads(w, "out.1", "edge") == numbers(5)


FAILED: list[bytes] = []
"""Payloads for which `fails_once_slowly` has failed in the current test."""


async def fails_once_slowly(message: Message) -> Message:
    if not FAILED:
        FAILED.append(message.payload)
        await trio.sleep(1)
        raise RuntimeError
    return message


async def test_by_key_a_message_that_fails_while_its_connection_ends_is_not_overtaken(
    autojump_clock: MockClock,
) -> None:
    """The server is slow to confirm the end of the subscription. Until then the old route routes what waits."""
    route = core("in.*", to("out.$1", "edge"), connection="main", retry={"initial": "100ms", "attempts": 2})
    route |= {"handler": f"{__name__}:fails_once_slowly", "key": "subject"}
    FAILED.clear()
    async with world([route], brokers=brokers()) as w, trio.open_nursery() as nursery:
        for payload in numbers(4):
            w.broker.publish("in.1", payload)
        await eventually(lambda: w.route.handling == 1)
        w.broker.stall(3)
        nursery.start_soon(w.live.reload, w.configuration(route, connections=others("main")))
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 4}), 30)
        assert payloads(w, "out.1", "edge") == numbers(4)


async def test_a_message_that_waits_is_lost_if_the_router_ends_before_its_connection_has_changed(
    autojump_clock: MockClock,
) -> None:
    route = core("in.*", to("out.$1", "edge"), connection="main") | {"handler": f"{__name__}:slowly"}
    async with world([route], brokers=brokers()) as w, trio.open_nursery() as nursery:
        for payload in numbers(3):
            w.broker.publish("in.1", payload)
        await eventually(lambda: w.route.handling == 1)
        nursery.start_soon(w.live.reload, w.configuration(route, connections=others("main")))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert w.route_ledger() == (3, 0, {"routed": 1, "lost": 2})
    assert w.watch.of("ROUTER_STOPPED")[-1].unsettled == 2


async def test_a_route_from_a_stream_continues_when_each_of_its_connections_changes(autojump_clock: MockClock) -> None:
    route = stream("IN", to("out.$1", "edge", jetstream=True), connection="main", filter="in.*")
    async with world([route], brokers=two_brokers()) as w:
        for changed in ("main", "edge"):
            fill(w.broker, 50)
            await w.live.reload(w.configuration(route, connections={changed: {"connect_timeout": "1s"}}))
        fill(w.broker, 50)
        await eventually(lambda: len(w.payloads("OUT", "edge")) == 150)
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        await eventually(lambda: w.route_ledger()[:2] == (150, 0))


@pytest.mark.parametrize(
    ("change", "calls"),
    [({"connect_timeout": "1s"}, 3), ({"servers": ["nats://elsewhere:4222"]}, 5)],
    ids=["the same servers", "others"],
)
async def test_counts_of_attempts_are_kept_on_a_changed_connection_to_the_same_servers(
    change: dict[str, Any], calls: int, autojump_clock: MockClock
) -> None:
    made: list[bytes] = []

    def fails(message: Message) -> Message:
        made.append(message.payload)
        raise ValueError

    source = {"stream": "IN", "durable": "router", "filter": "in.*", "connection": "main"}
    route = handled(fails, to="out.x", retry={"initial": "1s", "max": "1s", "attempts": 3}, **source)
    async with world(handlers=[route], brokers=two_brokers()) as w:
        fill(w.broker, 1)
        await eventually(lambda: len(made) == 2)
        await w.live.reload(w.configuration(connections={"main": change}))
        await eventually(lambda: w.route.settled["given_up"] == 1, 60.0)
        assert len(made) == calls
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)


async def test_a_connection_is_added_with_its_routes_and_removed(autojump_clock: MockClock) -> None:
    first, second = core("in.*", to("out.$1"), name="first"), core("in.*", to("out.$1", "edge"), name="second")
    first["from"]["connection"] = second["from"]["connection"] = "main"
    async with world([first], brokers={"main": FakeBroker(), "edge": FakeBroker()}) as w:
        await w.live.reload(w.configuration(first, names=["main"]))
        assert list(w.live.connections) == ["main"]
        assert w.brokers["edge"].links == 0
        with pytest.raises(ConfigurationError, match="no connection 'edge'"):
            await w.live.publish("x", b"", connection="edge")
        await w.live.reload(w.configuration(first, second))
        assert w.live.connections["edge"].state.state == CONNECTED
        w.broker.publish("in.1", b"1")
        await eventually(lambda: payloads(w, "out.1", "edge") == [b"1"])
        receipt = await w.live.publish("x", b"", connection="edge")
        assert (await receipt.settled()).name == "fenced"
        # The connection was there before, and its counts continue.
        assert w.live.connections["edge"].state.established == 2


async def test_the_queue_of_a_changed_connection_is_drained_first(autojump_clock: MockClock) -> None:
    async with world(brokers=brokers()) as w:
        w.brokers["edge"].stall(2)
        receipts = [await w.live.publish("x", payload, connection="edge") for payload in numbers(10)]
        await w.live.reload(w.configuration(connections=LATER))
        assert [(await one.settled()).name for one in receipts] == ["fenced"] * 10
        assert w.entry("edge")["settled"] == {"fenced": 10}


async def test_a_queue_that_can_not_be_drained_in_time_is_dropped_and_counted(autojump_clock: MockClock) -> None:
    async with world(brokers=brokers(), shutdown_timeout=3.0) as w:
        await w.lose("edge")
        receipts = [await w.live.publish("x", payload, connection="edge") for payload in numbers(10)]
        began = trio.current_time()
        await w.live.reload(w.configuration(connections=LATER))
        assert 3 <= trio.current_time() - began < 6
        fates = [await one.settled() for one in receipts]
        assert {(one.name, one.reason) for one in fates} == {("dropped", "shutdown")}
        assert w.entry("edge") == {"accepted": 10, "pending": 0, "in_flight": 0, "settled": {"dropped": 10}}
        assert w.watch.of("ROUTER_RELOADED")[0].unsettled == 10


async def test_a_publish_while_a_connection_is_replaced_is_sent_on_the_new_one(
    autojump_clock: MockClock,
) -> None:
    async with world(brokers={"main": FakeBroker()}) as w:
        w.broker.stall(2)
        await w.live.publish("x", b"first")
        fates: list[str] = []

        async def publish() -> None:
            receipt = await w.live.publish("x", b"second")
            fates.append((await receipt.settled()).name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(connections={"main": {"connect_timeout": "1s"}}))
            await wait_all_tasks_blocked()
            nursery.start_soon(publish)
        assert fates == ["fenced"]
        assert payloads(w, "x") == [b"first", b"second"]
        assert w.entry()["settled"] == {"fenced": 2}


@pytest.mark.parametrize("with_ack", [False, True])
async def test_a_publisher_that_waits_for_room_publishes_on_the_next_connection(
    with_ack: bool, autojump_clock: MockClock
) -> None:
    queue: dict[str, Any] = {"max_pending_operations": 3, "on_pending_full": "block"}
    async with world(brokers={"main": FakeBroker()}, shutdown_timeout=3.0, **queue) as w:
        w.broker.add_stream("S", ["x"])
        await w.lose()
        lost = [await w.live.publish("x", payload) for payload in numbers(3)]
        fates: list[str] = []

        async def publish() -> None:
            receipt = await (w.live.publish_with_ack if with_ack else w.live.publish)("x", b"waiting")
            fates.append((await receipt.settled()).name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await wait_all_tasks_blocked()
            change = {"main": {"connect_timeout": "1s"}}
            nursery.start_soon(w.live.reload, w.configuration(connections=change))
            await w.watch.until("ROUTER_RELOADED")
            w.broker.up()
        assert {(await one.settled()).name for one in lost} == {"dropped"}
        assert fates == ["acked" if with_ack else "fenced"]
        assert payloads(w, "x") == [b"waiting"]
        assert w.failures("publish_with_ack" if with_ack else "publish")["not_connected"] == (1 if with_ack else 4)
        assert w.entry()["accepted"] == 4


async def test_a_publisher_waiting_for_room_fails_when_its_connection_is_removed(
    autojump_clock: MockClock,
) -> None:
    queue: dict[str, Any] = {"max_pending_operations": 3, "on_pending_full": "block"}
    async with world(brokers=brokers(), shutdown_timeout=3.0, **queue) as w:
        await w.lose("edge")
        for payload in numbers(3):
            await w.live.publish("x", payload, connection="edge")

        async def publish() -> None:
            with pytest.raises(ConfigurationError, match="no connection 'edge'"):
                await w.live.publish("x", b"waiting", connection="edge")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await wait_all_tasks_blocked()
            nursery.start_soon(w.live.reload, w.configuration(names=["main"]))
        assert w.live.status()["connections"].keys() == {"main"}


async def test_a_publisher_waiting_for_room_fails_when_the_router_ends(autojump_clock: MockClock) -> None:
    queue: dict[str, Any] = {"max_pending_operations": 3, "on_pending_full": "block"}

    async def publish(w: World) -> None:
        with pytest.raises(PublishError, match="the router has stopped"):
            await w.live.publish("x", b"waiting")

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery, world(brokers={"main": FakeBroker()}, **queue) as w:
            await w.lose()
            for payload in numbers(3):
                await w.live.publish("x", payload)
            nursery.start_soon(publish, w)
            await wait_all_tasks_blocked()
            change = {"main": {"connect_timeout": "1s"}}
            nursery.start_soon(w.live.reload, w.configuration(connections=change))
            await wait_all_tasks_blocked()


async def test_a_publisher_waiting_for_a_puback_fails_when_its_connection_is_replaced(
    autojump_clock: MockClock,
) -> None:
    connection = {"liveness_interval": "60s"}
    async with world(brokers={"main": FakeBroker()}, shutdown_timeout=3.0, connections={"main": connection}) as w:
        w.broker.stall(100)

        async def publish() -> None:
            with pytest.raises(PublishError, match="ended before a PubAck arrived") as failed:
                await w.live.publish_with_ack("x", b"", timeout=30)
            assert failed.value.reason == "shutdown"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await wait_all_tasks_blocked()
            w.broker.stall(100)
            nursery.start_soon(w.live.reload, w.configuration(connections={"main": {"connect_timeout": "1s"}}))
        assert w.entry()["settled"] == {"dropped": 1}


async def test_a_handler_can_publish_on_the_connection_that_waits_for_its_route(autojump_clock: MockClock) -> None:
    """A connection is replaced once its routes have ended, and a route ends once its handler has returned."""
    worlds: list[World] = []

    async def slow(message: Message) -> Message:
        await trio.sleep(1)
        await worlds[0].live.publish("side", message.payload)
        return message

    async with world(handlers=[handled(slow, subject="in.*", to="out.$1")], brokers={"main": FakeBroker()}) as w:
        worlds.append(w)
        w.broker.publish("in.1", b"1")
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await w.live.reload(w.configuration(connections={"main": {"connect_timeout": "1s"}}))
        assert trio.current_time() - began < 3
        assert payloads(w, "side") == payloads(w, "out.1") == [b"1"]
        assert w.route_ledger() == (1, 0, {"routed": 1})


async def test_a_handler_can_still_publish_when_the_router_ends_during_a_reload(autojump_clock: MockClock) -> None:
    worlds: list[World] = []

    async def slow(message: Message) -> Message:
        await trio.sleep(2)
        await worlds[0].live.publish("side", message.payload, connection="edge")
        return message

    route = handled(slow, subject="in.*", to=to("out.$1"), connection="main")
    async with world(handlers=[route], brokers=brokers(), shutdown_timeout=20.0) as w:
        worlds.append(w)
        w.brokers["edge"].stall(5)
        await w.live.publish("x", b"keeps the connection from being replaced", connection="edge")
        w.broker.publish("in.1", b"1")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(connections=LATER))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert payloads(w, "side", "edge") == [b"1"]
    assert payloads(w, "out.1") == [b"1"]
    assert w.live.routes[0].settled["routed"] == 1


async def test_a_new_connection_that_is_refused_ends_nothing(autojump_clock: MockClock) -> None:
    route = core("in.*", "out.$1", connection="main")
    route["to"][0]["connection"] = "main"
    async with world([route], brokers=brokers()) as w:
        await w.live.reload(w.configuration(route, names=["main"]))
        w.brokers["edge"].refuse_credentials()
        await w.live.reload(w.configuration(route))
        assert w.live.connections["edge"].state.state != CONNECTED
        w.broker.publish("in.1", b"1")
        await eventually(lambda: payloads(w, "out.1") == [b"1"])
        w.brokers["edge"].accept_credentials()
        await eventually(lambda: w.live.connections["edge"].connected)


async def test_publishes_dropped_by_an_interrupted_reload_are_reported_by_the_shutdown(
    autojump_clock: MockClock,
) -> None:
    async with world(brokers=brokers(), shutdown_timeout=3.0) as w:
        await w.lose("edge")
        for payload in numbers(10):
            await w.live.publish("x", payload, connection="edge")
        w.brokers["edge"].up()
        w.brokers["edge"].blackhole()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(connections=LATER | {"edge": {"connect_timeout": "60s"}}))
            await eventually(lambda: w.entry("edge")["settled"] == {"dropped": 10})
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert w.watch.of("ROUTER_RELOADED") == []
    assert w.live.unsettled == w.watch.of("ROUTER_STOPPED")[0].unsettled == 10


async def test_a_reload_without_a_thread_is_refused_or_done_without_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't start new thread")

    async with world(brokers={"main": FakeBroker()}) as w:
        monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
        with pytest.raises(ConfigurationError, match="no thread"):
            await w.live.reload(lambda: w.configuration(core("in.*", "out.$1")))
        assert len(w.watch.of("ROUTER_RELOAD_REFUSED")) == 1
        many = [core(f"in.{number}", "out.x", name=f"r{number}") for number in range(100)]
        await w.live.reload(w.configuration(*many))
        await w.live.reload(w.configuration(core("in.*", "out.$1")))
        assert [one.name for one in w.live.routes] == ["route"]


async def test_an_async_handler_from_code_is_refused_in_a_thread(autojump_clock: MockClock) -> None:
    async def handler(message: Message) -> Message:
        return message

    async with world(handlers=[(handler, {"name": "code", "subject": "in.*", "to": "out.$1"})]) as w:
        with pytest.raises(ConfigurationError, match="the handler is async"):
            await w.live.reload(w.configuration(core("in.*", "out.$1", name="code") | {"thread": True}))
        w.broker.publish("in.1", b"1")
        await eventually(lambda: w.subjects() == ["out.1"])


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_new_streams_are_created_before_the_routes_that_read_them(autojump_clock: MockClock) -> None:
    route = stream("NEW", "out.$1", filter="in.*")
    made = [{"name": "NEW", "subjects": ["in.*"]}, {"name": "OUT", "subjects": ["out.*"]}]
    async with world() as w:
        await w.live.reload(w.configuration(route, streams=made))
        assert {one.stream for one in w.watch.of("NATS_STREAM_CREATED")} == {"NEW", "OUT"}
        assert w.watch.of("NATS_SUBSCRIBE_ERROR") == []
        fill(w.broker, 3)
        await eventually(lambda: w.payloads("OUT") == numbers(3))


async def test_a_removed_stream_that_could_not_be_created_is_no_longer_reported(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        w.broker.trouble.switch_off_jetstream()
        await w.live.reload(w.configuration(streams=[{"name": "NEW", "subjects": ["in.*"]}]))
        state = w.live.connections["main"].state
        assert list(state.missing_streams) == ["NEW"]
        await w.live.reload(w.configuration())
        assert state.missing_streams == {}


# --- one after the other, and the end --------------------------------------------------------------------------------


async def test_of_several_waiting_reloads_only_the_last_is_done(autojump_clock: MockClock) -> None:
    async with world([core("in.*", "0.$1")], shutdown_timeout=1.0) as w:
        w.broker.stall(10)
        # The first reload waits for a fence, and the others for the first.
        async with trio.open_nursery() as nursery:
            for number in range(1, 4):
                nursery.start_soon(w.live.reload, w.configuration(core(f"in{number}.*", f"{number}.$1")))
                await wait_all_tasks_blocked()
        assert len(w.watch.of("ROUTER_RELOADED")) == 2
        await eventually(lambda: w.live.routes[0].state == "running", 60)
        w.broker.publish("in3.1", b"")
        await eventually(lambda: w.subjects() == ["3.1"])


async def test_a_reload_whose_caller_is_cancelled_is_still_done(autojump_clock: MockClock) -> None:
    async with world([core("a.*", "0.$1")]) as w:
        w.broker.stall(2)
        with trio.move_on_after(1) as scope:
            await w.live.reload(w.configuration(core("b.*", "1.$1")))
        assert scope.cancelled_caught
        await w.watch.until("ROUTER_RELOADED")
        w.broker.publish("b.1", b"")
        await eventually(lambda: w.subjects() == ["1.1"])


async def test_a_shutdown_interrupts_a_reload_in_progress(autojump_clock: MockClock) -> None:
    route = core("in.*", to("out.$1", "edge"), connection="main")
    async with world([route], brokers=brokers(), shutdown_timeout=60.0) as w:
        w.brokers["edge"].stall(5)
        w.broker.publish("in.1", b"1")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.live.reload, w.configuration(route, connections=LATER))
            await wait_all_tasks_blocked()
            w.broker.publish("in.1", b"2")  # waits for a connection that is never made
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        began = trio.current_time()
    assert trio.current_time() - began < 10
    assert w.watch.of("ROUTER_RELOADED") == []
    assert w.live.unsettled == 1
    assert payloads(w, "out.1", "edge") == [b"1"]
    assert w.live.routes[0].settled["lost"] == 1


async def test_a_shutdown_returns_from_waiting_reloads(autojump_clock: MockClock) -> None:
    for _ in range(10):  # Trio runs the runnable tasks in random order
        returned: list[int] = []

        async def reload(w: World, number: int, returned: list[int] = returned) -> None:
            await w.live.reload(w.configuration(core(f"in{number}.*", "out.$1")))
            returned.append(number)

        with trio.move_on_after(30) as scope:
            async with trio.open_nursery() as nursery, world([core("in.*", "out.$1")], shutdown_timeout=1.0) as w:
                w.broker.stall(5)
                for number in range(2):  # the first waits for a fence, the second for the first
                    nursery.start_soon(reload, w, number)
                    await wait_all_tasks_blocked()
        assert not scope.cancelled_caught
        assert sorted(returned) == [0, 1]


async def test_routes_from_code_stay(autojump_clock: MockClock) -> None:
    def handler(message: Any) -> Any:
        return message

    async with world(handlers=[(handler, {"name": "code", "subject": "in.*", "to": "out.$1"})]) as w:
        before = w.live.routes[0]
        await w.live.reload(w.configuration(core("other.*", "other.out.$1", name="file")))
        assert [one.name for one in w.live.routes] == ["file", "code"]
        assert w.live.routes[1] is before


async def test_settings_may_be_loaded_by_a_function(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.live.reload(lambda: w.configuration(core("in.*", "out.$1")))
        assert [one.name for one in w.live.routes] == ["route"]

        def fail() -> Any:
            return w.configuration(core("in..*", "out.$1"))

        with pytest.raises(ConfigurationError):
            await w.live.reload(fail)
        assert [one.name for one in w.live.routes] == ["route"]
        assert len(w.watch.of("ROUTER_RELOAD_REFUSED")) == 1
