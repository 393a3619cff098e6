"""Reloads on fake brokers, under traffic: routes from a stream that change, and settings that are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from router_trio.errors import ConfigurationError
from router_trio.message import Message
from router_trio.testing import FakeBroker
from tests.support.eventually import eventually
from tests.support.world import (
    World,
    core,
    fill,
    handled,
    numbers,
    one_broker,
    overhearing,
    stream,
    to,
    two_brokers,
    world,
)
from tests.unit.router.traffic import by_name, received, reloaded, traffic

# --- routes from a stream --------------------------------------------------------------------------------------------


async def test_a_route_from_a_stream_changes_and_each_message_is_stored_once(autojump_clock: MockClock) -> None:
    brokers = two_brokers()
    brokers["edge"].add_stream("NEW", ["new.>"])
    old = stream("IN", to("out.$1", "edge", jetstream=True), connection="main", filter="in.*")
    new = stream("IN", to("new.$1", "edge", jetstream=True), connection="main", filter="in.*")
    async with world([old], brokers=brokers) as w:
        async with traffic(w, "in.x") as sent:
            await trio.sleep(0.1)
            await w.live.reload(w.configuration(new))
            await trio.sleep(0.1)
        await eventually(lambda: w.route_ledger()[2].get("routed") == sent[0])
        was, is_now = w.payloads("OUT", "edge"), w.payloads("NEW", "edge")
        assert was + is_now == numbers(sent[0])
        assert len(was) > 50 < len(is_now)
        assert w.route_ledger() == (sent[0], 0, {"routed": sent[0]})
        assert reloaded(w).unsettled == 0
        assert w.live.connections["main"].pull_budget.consumers == 1


async def test_a_reload_names_the_durable_that_no_route_reads_any_more(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.$1", filter="in.*")], brokers=one_broker()) as w:
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", durable="other", deliver="new")))
        (left,) = reloaded(w).left
        assert left == f"route {w.route.name}: durable router of stream IN on connection main stays on the server"
        await w.live.reload(w.configuration(stream("IN", "out.x", filter="in.*", durable="other", deliver="new")))
        assert w.watch.of("ROUTER_RELOADED")[1].left == ()


async def test_messages_that_the_old_destination_does_not_take_are_returned_and_sent_to_the_new_one(
    autojump_clock: MockClock,
) -> None:
    brokers = two_brokers()
    brokers["main"].add_stream("NEW", ["new.>"])
    old = stream("IN", to("out.$1", "edge", jetstream=True), connection="main", filter="in.*")
    new = stream("IN", to("new.$1", "main", jetstream=True), connection="main", filter="in.*")
    async with world([old], brokers=brokers) as w:
        brokers["edge"].down()  # the router has not noticed yet, and offers what it has
        fill(w.broker, 20)
        await eventually(lambda: by_name(w)["route"].in_hand == 20)
        await w.live.reload(w.configuration(new))
        await eventually(lambda: sorted(w.payloads("NEW")) == sorted(numbers(20)), 120)
        await eventually(lambda: w.broker.unacked("IN", "router") == 0, 120)
        assert by_name(w)["route"].in_hand == 0
        assert w.payloads("OUT", "edge") == []


async def test_messages_that_the_old_route_returned_at_its_timeout_are_only_in_the_new_route(
    autojump_clock: MockClock,
) -> None:
    async with world([stream("IN", "out.$1", filter="in.*")], brokers=one_broker(), shutdown_timeout=2.0) as w:
        w.broker.trouble.edit_subjects("OUT", "elsewhere")
        fill(w.broker, 5)
        await eventually(lambda: by_name(w)["route"].in_hand == 5)
        # Messages held back in the outbox are returned to the stream; none of them may still wait in the route.
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", max_in_flight=10)))
        w.broker.trouble.edit_subjects("OUT", "out.>")
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        assert w.route_ledger() == (10, 0, {"returned": 5, "routed": 5})


async def test_messages_behind_a_refused_one_wait_for_it_across_a_reload(autojump_clock: MockClock) -> None:
    slowly = {"initial": "20s", "max": "20s"}
    async with world([stream("IN", "out.$1", filter="in.*", retry=slowly)], brokers=one_broker()) as w:
        w.broker.deny_publish("out.x")
        fill(w.broker, 2)
        await eventually(lambda: w.route_ledger() == (2, 0, {"returned": 2}))
        w.broker.allow_publish("out.x")
        fill(w.broker, 2, first=2)
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", retry=slowly, max_in_flight=10)))
        fill(w.broker, 2, first=4)
        fill(w.broker, 1, subjects="y")
        await eventually(lambda: b"0" in w.payloads("OUT"))
        assert trio.current_time() < 10, "a message of another subject does not wait"
        await eventually(lambda: len(w.payloads("OUT")) == 7, 60)
        assert w.payloads("OUT") == [b"0", *numbers(6)]


async def test_messages_cancelled_in_a_handler_of_the_old_route_are_only_in_the_new_route(
    autojump_clock: MockClock,
) -> None:
    calls: list[bytes] = []

    async def stuck_at_first(message: Message) -> Message:
        calls.append(message.payload)
        if len(calls) == 1:
            await trio.sleep_forever()
        return message

    source = {"stream": "IN", "durable": "router", "filter": "in.*"}
    handlers = [handled(stuck_at_first, to="out.x", **source)]
    async with world(handlers=handlers, brokers=one_broker(), shutdown_timeout=2.0) as w:
        fill(w.broker, 5)
        await eventually(lambda: calls == numbers(1))
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", max_in_flight=10)))
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        assert w.route_ledger() == (6, 0, {"returned": 1, "routed": 5})
        assert calls == numbers(1) + numbers(5)


async def test_messages_in_a_handler_that_can_not_be_cancelled_are_in_the_new_route_at_once(
    autojump_clock: MockClock,
) -> None:
    calls: list[bytes] = []

    async def stuck_at_first(message: Message) -> Message:
        calls.append(message.payload)
        with trio.CancelScope(shield=True):
            await trio.sleep(60 if len(calls) == 1 else 0)
        return message

    handlers = [handled(stuck_at_first, to="out.x", stream="IN", durable="router", filter="in.*")]
    async with world(handlers=handlers, brokers=one_broker(), shutdown_timeout=2.0) as w:
        fill(w.broker, 5)
        await eventually(lambda: w.route.received == 5)
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", max_in_flight=10)))
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        assert trio.current_time() < 10
        await trio.sleep(60)
        assert w.route_ledger() == (6, 0, {"returned": 1, "routed": 5})
        assert calls == numbers(1) + numbers(5)
        assert w.payloads("OUT") == numbers(5), "the late result of the handler is not sent"


async def test_a_removed_route_takes_back_no_messages_of_another_route(autojump_clock: MockClock) -> None:
    calls: list[bytes] = []

    async def count(message: Message) -> Message:
        calls.append(message.payload)
        return message

    at_edge = to("out.x", "edge", jetstream=True)
    stays = handled(count, to=at_edge, name="stays", connection="main", stream="IN", durable="other", filter="in.*")
    goes = stream("IN", at_edge, connection="main", filter="in.*") | {"name": "goes"}
    async with world([goes], handlers=[stays], brokers=two_brokers(), shutdown_timeout=2.0) as w:
        w.brokers["edge"].down()  # the router has not noticed yet, and offers what it has
        fill(w.broker, 5)
        await eventually(lambda: [one.in_hand for one in w.live.routes] == [5, 5])
        await w.live.reload(w.configuration())
        w.brokers["edge"].up()
        await eventually(lambda: w.payloads("OUT", "edge") == numbers(5), 60)
        assert calls == numbers(5)


async def test_messages_returned_without_a_link_are_awaited_by_the_next_route(autojump_clock: MockClock) -> None:
    calls: list[bytes] = []

    async def stuck_at_first(message: Message) -> Message:
        calls.append(message.payload)
        if len(calls) == 1:
            await trio.sleep_forever()
        return message

    handlers = [handled(stuck_at_first, to="out.x", stream="IN", durable="router", filter="in.*")]
    async with world(handlers=handlers, brokers=one_broker(), shutdown_timeout=2.0) as w:
        fill(w.broker, 5)
        await eventually(lambda: calls == numbers(1))
        await w.lose()
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", max_in_flight=10)))
        fill(w.broker, 5, first=5)
        await w.find()
        await eventually(lambda: len(w.payloads("OUT")) == 10)
        assert w.payloads("OUT") == numbers(10)


async def test_acks_that_found_no_link_are_sent_by_the_next_route(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.$1", filter="in.*")], brokers=one_broker()) as w:
        fill(w.broker, 5)
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        await w.lose()
        acks = w.successes("ack")
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", max_in_flight=10)))
        await w.find()
        fill(w.broker, 5, first=5)
        await eventually(lambda: w.payloads("OUT") == numbers(10))
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        assert w.successes("ack") >= acks + 5


async def test_a_message_in_hand_of_the_next_route_is_not_counted_in_the_old_one_too(autojump_clock: MockClock) -> None:
    old = stream("IN", to("out.$1", "edge", jetstream=True), connection="main", filter="in.*")
    new = stream("IN", to("out.$1", "edge", jetstream=True), connection="main", filter="in.*", max_in_flight=10)
    async with world([old], brokers=two_brokers()) as w:
        fill(w.broker, 3)
        await eventually(lambda: w.route_ledger() == (3, 0, {"routed": 3}))
        await w.live.reload(w.configuration(new))
        # No page is read before there is something in hand again.
        w.brokers["edge"].stall(5)
        fill(w.broker, 3, first=3)
        await wait_all_tasks_blocked()
        assert w.route_ledger() == (6, 3, {"routed": 3})


async def test_a_changed_standby_route_leads_again_at_once(autojump_clock: MockClock) -> None:
    async with world([stream("IN", "out.$1", filter="in.*", standby=True)], brokers=one_broker()) as w:
        fill(w.broker, 5)
        await eventually(lambda: w.payloads("OUT") == numbers(5))
        began = trio.current_time()
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", standby=True, max_in_flight=10)))
        fill(w.broker, 5, first=5)
        await eventually(lambda: w.payloads("OUT") == numbers(10))
        assert trio.current_time() - began < 2


async def test_a_route_that_changes_from_a_subject_to_a_stream_keeps_its_ledger(autojump_clock: MockClock) -> None:
    async with world([core("one.*", "out.$1")], brokers=one_broker()) as w:
        w.broker.publish("one.1", b"0")
        await eventually(lambda: w.route_ledger() == (1, 0, {"routed": 1}))
        await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*")))
        fill(w.broker, 3)
        await eventually(lambda: w.route_ledger() == (4, 0, {"routed": 4}))
        await w.live.reload(w.configuration(core("one.*", "out.$1")))
        w.broker.publish("one.1", b"0")
        await eventually(lambda: w.route_ledger() == (5, 0, {"routed": 5}))


# --- what is refused -------------------------------------------------------------------------------------------------


async def test_unusable_settings_change_nothing(autojump_clock: MockClock) -> None:
    route = core("in.*", "out.$1")
    async with world([route]) as w:
        async with traffic(w, "in.1") as sent:
            changed = core("in.*", "other.$1") | {"handler": "no_such_module:function"}
            wrong = w.configuration(changed, core("x", "y", name="b"))
            with pytest.raises(ConfigurationError, match=r"routes\[0\]\.handler.*no_such_module"):
                await w.live.reload(wrong)
            await trio.sleep(0.05)
        await eventually(lambda: received(w, "out.1") == numbers(sent[0]))
        assert [one.name for one in w.live.routes] == ["route"]
        refused = w.watch.of("ROUTER_RELOAD_REFUSED")
        assert [one.count for one in refused] == [1]
        assert "no_such_module" in refused[0].problems[0]
        assert w.watch.of("ROUTER_RELOADED") == []


async def test_a_reload_without_a_difference_touches_nothing(autojump_clock: MockClock) -> None:
    route = core("in.*", "out.$1")
    async with world([route]) as w:
        before = w.live.routes[0]
        await w.live.reload(w.configuration(route))
        assert w.live.routes == (before,)
        assert (reloaded(w).added, reloaded(w).removed, reloaded(w).changed) == ((), (), ())
        assert w.successes("subscribe") == 1


async def test_keys_that_need_a_restart_are_named(autojump_clock: MockClock) -> None:
    async with world([core("in.*", "out.$1")]) as w:
        new = w.configuration(core("in.*", "new.$1"), router={"name": "other"}, telemetry={"log_level": "debug"})
        await w.live.reload(new)
        assert [one.keys for one in w.watch.of("ROUTER_RESTART_NEEDED")] == [("router.name", "telemetry.log_level")]
        w.broker.publish("in.1", b"1")
        await eventually(lambda: received(w, "new.1") == [b"1"])


# --- publishes without an answer when the old route ends -------------------------------------------------------------


@asynccontextmanager
async def unanswered(w: World, messages: int) -> AsyncIterator[None]:
    """Have the destination neither take nor refuse messages: no stream has their subject, but a subscriber does.

    A stream has another subject of the destination; without any, nothing would be published.
    """
    w.broker.delete_stream("OUT")
    w.broker.add_stream("OTHER", ["out.other"])
    async with overhearing(w.broker, "out.>"):
        fill(w.broker, messages)
        await eventually(lambda: w.route_ledger() == (messages, messages, {}))
        yield
    w.broker.delete_stream("OTHER")


BY_KEY = {"key": "subject"}


@pytest.mark.parametrize("more", [{}, BY_KEY], ids=["by subject", "by key"])
async def test_messages_behind_unanswered_ones_wait_for_them_across_a_reload(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    route = stream("IN", "out.$1", filter="in.*", ack_wait="3s") | more
    async with world([route], brokers=one_broker(), shutdown_timeout=1.0) as w:
        # Only one message of a key is in progress at a time: none could be returned.
        async with unanswered(w, 1 if more else 3):
            changed = route["from"] | {"max_in_flight": 10}
            for number in range(1, 4):  # this many generations have something in progress
                await w.live.reload(w.configuration(route | {"from": changed | {"max_in_flight": 10 + number}}))
                assert w.route_ledger()[1] == (1 if more else 3)
        w.broker.add_stream("OUT", ["out.>"])
        fill(w.broker, 6, first=1 if more else 3)
        fill(w.broker, 1, subjects="y")
        await eventually(lambda: b"0" in w.payloads("OUT"))
        assert w.payloads("OUT") == numbers(1), "a message of another subject does not wait"
        await eventually(lambda: len(w.payloads("OUT")) == (8 if more else 10), 60)
        assert w.payloads("OUT") == [b"0", *numbers(7 if more else 9)]
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        messages = 8 if more else 10
        assert w.route_ledger() == (messages, 0, {"routed": messages}), "signs of work prevented redeliveries"


async def test_an_unanswered_message_is_sent_to_the_new_destination_when_the_old_link_is_lost(
    autojump_clock: MockClock,
) -> None:
    brokers = one_broker() | {"edge": FakeBroker()}
    old = stream("IN", to("out.$1", "edge", jetstream=True), connection="main", filter="in.*")
    new = stream("IN", to("out.$1", "main", jetstream=True), connection="main", filter="in.*")
    brokers["edge"].add_stream("OTHER", ["out.other"])
    async with world([old], brokers=brokers, shutdown_timeout=1.0) as w:
        async with overhearing(w.brokers["edge"], "out.>"):
            fill(w.broker, 3)
            await eventually(lambda: w.route_ledger()[1] == 3)
            await w.live.reload(w.configuration(new))
            fill(w.broker, 3, first=3)
            await trio.sleep(2)
            assert w.payloads("OUT") == [], "unanswered messages are waited for"
            assert w.route_ledger()[1] == 6
        await w.lose("edge")
        # They are returned, and sent to the new destination, though the old link stays down.
        await eventually(lambda: w.payloads("OUT") == numbers(6))
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        assert w.route_ledger() == (9, 0, {"routed": 6, "returned": 3})
        listening = [getattr(tell, "__self__", tell) for tell in w.live.connections["edge"]._change_listeners]
        assert not [one for one in listening if "routing" in type(one).__module__]
        await w.find("edge")


@pytest.mark.parametrize("with_dead_letters", [False, True])
@pytest.mark.parametrize("of_connection", [False, True], ids=["its route, and a lost link", "its connection"])
async def test_a_message_unanswered_at_a_reload_is_returned_and_not_given_up(
    of_connection: bool, with_dead_letters: bool, autojump_clock: MockClock
) -> None:
    """Its only attempt did not fail. The stream has stored it, with the id of its sender."""
    brokers = two_brokers()
    brokers["main"].add_stream("DEAD", ["dead.>"])
    route = stream("IN", to("out.$1", "edge", jetstream=True), connection="main", filter="in.*", message_id="sender")
    route |= {"retry": {"attempts": 1}}
    if with_dead_letters:
        route |= {"dead_letter": {"subject": "dead.$1", "connection": "main"}}
    async with world([route], brokers=brokers, shutdown_timeout=1.0) as w:
        w.brokers["edge"].trouble.lose("puback")
        w.broker.publish("in.x", b"0", headers={"Nats-Msg-Id": "a"})
        await eventually(lambda: w.payloads("OUT", "edge") == numbers(1))
        if of_connection:
            await w.live.reload(w.configuration(route, connections={"edge": {"connect_timeout": "1s"}}))
        else:
            await w.live.reload(w.configuration(route | {"from": route["from"] | {"max_in_flight": 10}}))
            await w.lose("edge")
            await w.find("edge")
        w.broker.publish("in.x", b"1", headers={"Nats-Msg-Id": "b"})
        await eventually(lambda: w.payloads("OUT", "edge") == numbers(2))
        await eventually(lambda: w.broker.unacked("IN", "router") == 0)
        assert w.route_ledger() == (3, 0, {"returned": 1, "routed": 2})
        assert dict(w.route.failed) == {}
        assert w.payloads("DEAD") == []
        assert w.watch.of("ROUTER_RELOADED")[0].unsettled == 0


async def test_a_message_that_the_old_route_fails_later_is_tried_again_by_the_next_route(
    autojump_clock: MockClock,
) -> None:
    retry = {"initial": "1s"}
    route = stream("IN", "out.$1", filter="in.*", retry=retry)
    async with world([route], brokers=one_broker(), shutdown_timeout=1.0) as w:
        async with unanswered(w, 2):
            await w.live.reload(w.configuration(stream("IN", "out.$1", filter="in.*", retry=retry, max_in_flight=10)))
            fill(w.broker, 2, first=2)
            await eventually(lambda: w.route_ledger()[2] == {"returned": 2}, 40)
        w.broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: len(w.payloads("OUT")) == 4, 60)
        assert w.payloads("OUT") == numbers(4)
        await eventually(lambda: w.route_ledger() == (6, 0, {"returned": 2, "routed": 4}))


@pytest.mark.parametrize("more", [{}, BY_KEY], ids=["by subject", "by key"])
async def test_a_message_waiting_for_the_generation_before_the_last_continues_at_once(
    more: dict[str, Any], autojump_clock: MockClock
) -> None:
    route = stream("IN", "out.$1", filter="in.*") | more
    async with world([route], brokers=one_broker(), shutdown_timeout=1.0) as w:
        async with unanswered(w, 1):
            for number in (10, 11):  # the generation between has nothing in hand
                await w.live.reload(w.configuration(route | {"from": route["from"] | {"max_in_flight": number}}))
            fill(w.broker, 2, first=1)
            await eventually(lambda: w.route_ledger() == (3, 3, {}))
        w.broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: bool(w.payloads("OUT")), 60)
        began = trio.current_time()
        await eventually(lambda: w.payloads("OUT") == numbers(3))
        assert trio.current_time() - began < 0.5
        await eventually(lambda: w.route_ledger() == (3, 0, {"routed": 3}))


# --- the destination of a message that has been returned -------------------------------------------------------------

WEIGHTED = [to(f"{name}.$1", jetstream=True) for name in ("new", "out")]
"""The second message is for `out`, which is guarded by a breaker. It is the second after each reload, too."""
WEIGHTED[1]["breaker"] = {"failures": 1, "pause": "1s"}


async def test_a_message_returned_by_a_breaker_keeps_its_destination_across_a_reload(autojump_clock: MockClock) -> None:
    brokers = one_broker()
    brokers["main"].add_stream("NEW", ["new.>"])
    route = stream("IN", *WEIGHTED, filter="in.*") | {"strategy": "weighted"}
    async with world([route], brokers=brokers) as w:
        w.broker.trouble.limit("OUT", 0)
        fill(w.broker, 2)
        await eventually(lambda: w.watch.of("ROUTE_BREAKER_OPENED"))
        await w.live.reload(w.configuration(route | {"from": route["from"] | {"max_in_flight": 10}}))
        assert w.route_ledger() == (2, 1, {"routed": 1}), "it waits and has not failed"
        w.broker.trouble.limit("OUT", None)
        await eventually(lambda: w.route_ledger() == (2, 0, {"routed": 2}), 60)
        assert (w.payloads("NEW"), w.payloads("OUT")) == (numbers(1), numbers(1, first=1))


async def test_a_destination_moved_in_the_configuration_gets_the_messages_that_it_refused(
    autojump_clock: MockClock,
) -> None:
    places = [to("new.$1", jetstream=True), to("out.$1", jetstream=True)]
    brokers = one_broker()
    brokers["main"].add_stream("NEW", ["new.>"])
    async with world([stream("IN", *places, filter="in.*", retry={"initial": "3s"})], brokers=brokers) as w:
        w.broker.deny_publish("out.x")
        fill(w.broker, 2)
        await eventually(lambda: w.route_ledger()[2] == {"returned": 2})
        w.broker.allow_publish("out.x")
        await w.live.reload(w.configuration(stream("IN", *reversed(places), filter="in.*", retry={"initial": "3s"})))
        await eventually(lambda: w.route_ledger() == (4, 0, {"returned": 2, "routed": 2}), 60)
        assert (w.payloads("NEW"), w.payloads("OUT")) == (numbers(2), numbers(2)), (
            "each destination has each message once"
        )


async def test_an_unanswered_message_is_settled_though_its_destinations_changed_places(
    autojump_clock: MockClock,
) -> None:
    """The route that sent it records its fate, while the next route has the same destinations at other places."""
    brokers = one_broker()
    brokers["main"].add_stream("NEW", ["new.>"])
    places = [to("new.$1", jetstream=True), to("out.$1", jetstream=True)]
    async with world([stream("IN", *places, filter="in.*")], brokers=brokers, shutdown_timeout=1.0) as w:
        async with unanswered(w, 1):
            await w.live.reload(w.configuration(stream("IN", *reversed(places), filter="in.*")))
            await eventually(lambda: w.route_ledger()[2] == {"returned": 1}, 60)
        w.broker.add_stream("OUT", ["out.>"])
        await eventually(lambda: w.route_ledger() == (2, 0, {"returned": 1, "routed": 1}), 60)
        assert (w.payloads("NEW"), w.payloads("OUT")) == (numbers(1), numbers(1))


@pytest.mark.parametrize("strategy", ["weighted", "all"])
async def test_messages_refused_by_a_removed_destination_are_sent_to_the_remaining_ones(
    strategy: str, autojump_clock: MockClock
) -> None:
    brokers = one_broker()
    brokers["main"].add_stream("NEW", ["new.>", "next.>"])
    places = [to(f"{name}.$1", jetstream=True) for name in ("new", "next", "out")]
    route = stream("IN", *places, filter="in.*", retry={"initial": "3s"}) | {"strategy": strategy}
    async with world([route], brokers=brokers) as w:
        w.broker.deny_publish("out.x")
        fill(w.broker, 3)
        returned = 1 if strategy == "weighted" else 3
        await eventually(lambda: w.route_ledger()[2].get("returned") == returned)
        await w.live.reload(w.configuration(route | {"to": places[:2]}))
        await eventually(lambda: w.route_ledger() == (3 + returned, 0, {"routed": 3, "returned": returned}), 60)
        assert sorted(w.payloads("NEW")) == sorted(numbers(3) * (1 if strategy == "weighted" else 2))
