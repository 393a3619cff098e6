"""Publishing from a program: what each publish gets, counts and becomes, in every state of the connection."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Fate, Live, Receipt
from router_trio.errors import ConfigurationError, PublishError
from router_trio.outbox.operation import OperationWithAck
from router_trio.testing import FakeBroker
from tests.support.world import World, eventually, overhearing, world

WITH_ACK = pytest.mark.parametrize("with_ack", [False, True], ids=["publish", "publish_with_ack"])


def broker_with_stream(**options: Any) -> dict[str, FakeBroker]:
    broker = FakeBroker(**options)
    broker.add_stream("S", ["s.>"])
    return {"main": broker}


async def publish(
    live: Live, payload: bytes = b"x", *, with_ack: bool, subject: str = "s.x", **options: Any
) -> Receipt:
    if with_ack:
        return await live.publish_with_ack(subject, payload, **options)
    return await live.publish(subject, payload, **options)


def operation(with_ack: bool) -> str:
    return "publish_with_ack" if with_ack else "publish"


def confirmed(with_ack: bool) -> str:
    return "acked" if with_ack else "fenced"


def event(name: str, with_ack: bool) -> str:
    return f"NATS_PUBLISH_{'WITH_ACK_' if with_ack else ''}{name}"


def payloads(w: World) -> list[bytes]:
    return [message.payload for message in w.broker.published]


async def fates(receipts: list[Receipt]) -> list[str]:
    return [(await receipt.settled()).name for receipt in receipts]


# --- connected -------------------------------------------------------------------------------------------------------


async def test_a_core_publish_is_sent_and_then_fenced(autojump_clock: MockClock) -> None:
    async with world() as w, overhearing(w.broker, "a.b") as heard:
        receipt = await w.live.publish("a.b", b"payload", {"A": ["1", "2"]})
        assert (receipt.status, receipt.fate) == ("sent", None)
        assert await receipt.settled() == Fate("fenced")
        assert await receipt.settled() == Fate("fenced")
        assert (receipt.status, receipt.stream, receipt.sequence, receipt.duplicate) == ("sent", None, None, False)
        assert w.broker.published[0].headers.pairs() == (("A", "1"), ("A", "2"))
        assert heard[0][:2] == (b"a.b", b"")
        assert (w.successes("publish"), w.failures("publish")) == (1, {})
        assert w.entry() == {"accepted": 1, "pending": 0, "in_flight": 0, "settled": {"fenced": 1}}


async def test_a_publish_with_ack_returns_the_ack(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream()) as w:
        for sequence in (1, 2):
            receipt = await w.live.publish_with_ack("s.x", b"x")
            assert (receipt.status, receipt.stream, receipt.sequence) == ("acked", "S", sequence)
            assert not receipt.duplicate
            assert await receipt.settled() == Fate("acked", None, "S", sequence, False)
        ids = [message.headers["Nats-Msg-Id"] for message in w.broker.messages("S")]
        assert len(set(ids)) == 2
        assert w.successes("publish_with_ack") == 2
        assert w.entry()["settled"] == {"acked": 2}


async def test_an_own_message_id_is_kept_and_a_duplicate_told(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream()) as w:
        first = await w.live.publish_with_ack("s.x", b"x", {"Nats-Msg-Id": "own", "A": "1"})
        second = await w.live.publish_with_ack("s.x", b"x", [("Nats-Msg-Id", "own")])
        assert (first.duplicate, second.duplicate) == (False, True)
        assert (second.status, second.sequence) == ("acked", 1)
        assert w.broker.messages("S")[0].headers.pairs() == (("Nats-Msg-Id", "own"), ("A", "1"))


@pytest.mark.parametrize("payload", [b"x", bytearray(b"x"), memoryview(b"x")])
async def test_any_bytes_are_a_payload_and_a_copy_is_kept(autojump_clock: MockClock, payload: Any) -> None:
    async with world() as w:
        await w.lose()
        receipt = await w.live.publish("a", payload)
        if isinstance(payload, bytearray):
            payload[0] = 0
        await w.find()
        await receipt.settled()
        assert payloads(w) == [b"x"]


async def test_concurrent_publishes_are_each_told_their_own_ack(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream()) as w:
        found: dict[int, int | None] = {}

        async def one(number: int) -> None:
            found[number] = (await w.live.publish_with_ack("s.x", b"%d" % number)).sequence

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)
        stored = {message.sequence: int(message.payload) for message in w.broker.messages("S")}
        assert {number: stored[sequence or 0] for number, sequence in found.items()} == {n: n for n in range(200)}


async def test_several_connections_must_be_named(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    async with world(brokers=brokers) as w:
        await (await w.live.publish("a", b"x", connection="edge")).settled()
        assert (len(brokers["main"].published), len(brokers["edge"].published)) == (0, 1)
        with pytest.raises(ConfigurationError, match=r"name the connection.*edge, main"):
            await w.live.publish("a", b"x")
        with pytest.raises(ConfigurationError, match=r"no connection 'egde'.*edge, main"):
            await w.live.publish_with_ack("a", b"x", connection="egde")


# --- refused before it is accepted -----------------------------------------------------------------------------------


@WITH_ACK
@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize(
    ("subject", "payload", "headers", "reason"),
    [
        ("", b"", None, "invalid_subject"),
        ("a b", b"", None, "invalid_subject"),
        ("a\r\nPUB b 0\r\n\r\n", b"", None, "invalid_subject"),
        ("a.*", b"", None, "invalid_subject"),
        ("a.>", b"", None, "invalid_subject"),
        ("a..b", b"", None, "invalid_subject"),
        ("a\x0b", b"", None, "invalid_subject"),
        ("a.\ud800", b"", None, "invalid_subject"),
        ("a", "text", None, "invalid_payload"),
        ("a", None, None, "invalid_payload"),
        ("a", b"", {"A": "1\r\nB: 2"}, "invalid_header"),
        ("a", b"", {"A": "1\n2"}, "invalid_header"),
        ("a", b"", {"A\r\nB": "1"}, "invalid_header"),
        ("a", b"", {"A:": "1"}, "invalid_header"),
        ("a", b"", {"": "1"}, "invalid_header"),
        ("a", b"", {"A": "\ud800"}, "invalid_header"),
        ("a", b"", {"A": 1}, "invalid_header"),
        ("a", b"", 7, "invalid_header"),
        ("a", b"x" * 1001, None, "too_large"),
        ("a", b"x" * 900, {"A": "y" * 200}, "too_large"),
    ],
)
async def test_what_can_not_be_sent_is_refused_and_harms_nothing(
    autojump_clock: MockClock,
    subject: str,
    payload: Any,
    headers: Any,
    reason: str,
    with_ack: bool,
    connected: bool,
    fail_open: bool,
) -> None:
    async with world(brokers=broker_with_stream(max_payload=1000), fail_open=fail_open) as w:
        if not connected:
            await w.lose()
        with pytest.raises(PublishError) as refused:
            await publish(w.live, payload, with_ack=with_ack, subject=subject, headers=headers)
        assert refused.value.reason == reason
        assert w.entry()["accepted"] == 0
        assert w.failures(operation(with_ack)) == {reason: 1}
        (told,) = w.watch.of(event("ERROR", with_ack))
        assert told.reason == reason
        if connected:
            assert (await publish(w.live, with_ack=with_ack)).status != "queued"
            assert w.live.connections["main"].state.lost == 0


@WITH_ACK
async def test_exactly_max_payload_goes_through(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(max_payload=1000)) as w:
        headers = {"Nats-Msg-Id": "i"}
        room = 1000 - len(b"NATS/1.0\r\nNats-Msg-Id: i\r\n\r\n")
        receipt = await publish(w.live, b"x" * room, with_ack=with_ack, headers=headers)
        assert (await receipt.settled()).name == confirmed(with_ack)
        with pytest.raises(PublishError, match="1001 bytes with headers are more than the max_payload of 1000"):
            await publish(w.live, b"x" * (room + 1), with_ack=with_ack, headers=headers)


# --- refused by the server or the stream -----------------------------------------------------------------------------


async def test_no_stream_takes_it(autojump_clock: MockClock) -> None:
    async with world() as w:
        with pytest.raises(PublishError, match="no stream takes this subject") as refused:
            await w.live.publish_with_ack("nobody", b"x", timeout=2.0)
        assert refused.value.reason == "no_responders"
        assert trio.current_time() == pytest.approx(2.0, abs=0.01)
        assert w.entry()["settled"] == {"failed": 1}
        assert w.failures("publish_with_ack") == {"no_responders": 1}
        assert w.watch.count("NATS_PUBLISH_WITH_ACK_ERROR") == 1


async def test_a_stream_that_comes_in_time_takes_it(autojump_clock: MockClock) -> None:
    async with world() as w, trio.open_nursery() as nursery:

        async def create() -> None:
            await trio.sleep(3)
            w.broker.add_stream("S", ["s.>"])

        nursery.start_soon(create)
        receipt = await w.live.publish_with_ack("s.x", b"x")
        assert (receipt.status, receipt.sequence) == ("acked", 1)
        assert (w.successes("publish_with_ack"), w.failures("publish_with_ack")) == (1, {})


async def test_a_full_stream_says_so_at_once(autojump_clock: MockClock) -> None:
    broker = FakeBroker()
    broker.add_stream("S", ["s.>"], max_messages=1)
    async with world(brokers={"main": broker}) as w:
        await w.live.publish_with_ack("s.x", b"1")
        began = trio.current_time()
        with pytest.raises(PublishError) as refused:
            await w.live.publish_with_ack("s.x", b"2")
        assert refused.value.reason == "limit"
        assert trio.current_time() - began < 0.1
        assert w.failures("publish_with_ack") == {"limit": 1}


@WITH_ACK
async def test_a_publish_that_is_not_allowed(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream()) as w:
        w.broker.deny_publish("s.secret")
        if with_ack:
            with pytest.raises(PublishError, match="does not let this user") as refused:
                await publish(w.live, with_ack=True, subject="s.secret")
            assert refused.value.reason == "permission_denied"
        else:
            receipt = await publish(w.live, with_ack=False, subject="s.secret")
            assert await receipt.settled() == Fate("failed", "permission_denied")
        assert w.failures(operation(with_ack)) == {"permission_denied": 1}
        assert w.watch.count(event("ERROR", with_ack)) == 1
        assert w.entry()["settled"] == {"failed": 1}


async def test_no_answer_in_time_fails_it_and_a_late_one_changes_nothing(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream(), liveness_interval="60s") as w:
        w.broker.stall(3.0)
        with pytest.raises(PublishError, match="may have stored the message all the same") as refused:
            await w.live.publish_with_ack("s.x", b"x", timeout=1.0)
        assert refused.value.reason == "timeout"
        await trio.sleep(5)
        assert len(w.broker.messages("S")) == 1
        assert w.entry()["settled"] == {"failed": 1}
        assert (w.successes("publish_with_ack"), w.failures("publish_with_ack")) == (0, {"timeout": 1})


async def test_a_failure_while_connected_is_let_go_in_fail_open_mode(autojump_clock: MockClock) -> None:
    async with world(fail_open=True) as w:
        receipt = await w.live.publish_with_ack("nobody", b"x", timeout=1.0)
        assert receipt.status == "failed_open"
        assert (await receipt.settled()).name == "failed_open"
        assert len(w.failures("publish_with_ack")) == 1
        assert w.watch.count("NATS_PUBLISH_FAIL_OPEN") == 1


# --- not connected ---------------------------------------------------------------------------------------------------


@WITH_ACK
async def test_queued_while_away_and_drained_in_order(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream()) as w:
        await w.lose()
        receipts = []
        for number in range(50):
            receipts.append(await publish(w.live, b"%d" % number, with_ack=with_ack))
            # Exactly once, and before the caller has its answer.
            assert w.failures(operation(with_ack)) == {"not_connected": number + 1}
            assert w.watch.count(event("QUEUED", with_ack)) == number + 1
        assert {receipt.status for receipt in receipts} == {"queued"}
        assert w.entry() == {"accepted": 50, "pending": 50, "in_flight": 0, "settled": {}}
        await w.find()
        assert await fates(receipts) == [confirmed(with_ack)] * 50
        if with_ack:
            assert [receipt.sequence for receipt in receipts] == list(range(1, 51))
        assert payloads(w) == [b"%d" % number for number in range(50)]
        assert w.failures(operation(with_ack)) == {"not_connected": 50}
        assert w.successes(operation(with_ack)) == 0, "counted as a failure already"
        assert w.entry()["settled"] == {confirmed(with_ack): 50}
        counters = w.live.connections["main"].outbox.counters
        assert (counters.retried, counters.retry_succeeded, counters.retry_failed) == (50, 50, 0)
        assert w.watch.of("NATS_RETRY_PENDING")[0].pending_count == 50
        assert w.watch.of("NATS_RETRY_COMPLETE")[0].success_count == 50


@WITH_ACK
async def test_in_fail_open_mode_nothing_is_kept(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), fail_open=True, max_pending_operations=1) as w:
        await w.lose()
        for number in range(3):
            receipt = await publish(w.live, with_ack=with_ack)
            assert receipt.status == "failed_open"
            assert await receipt.settled() == Fate("failed_open", "not_connected")
            assert w.failures(operation(with_ack)) == {"not_connected": number + 1}
        assert w.watch.count("NATS_PUBLISH_FAIL_OPEN") == 3
        assert w.watch.count(event("QUEUED", with_ack)) == 0
        assert w.entry() == {"accepted": 3, "pending": 0, "in_flight": 0, "settled": {"failed_open": 3}}
        await w.find()
        await trio.sleep(1)
        assert payloads(w) == []
        assert (await publish(w.live, with_ack=with_ack)).status == ("acked" if with_ack else "sent")


async def test_a_link_lost_while_waiting_for_the_ack(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream()) as w, trio.open_nursery() as nursery:

        async def lose() -> None:
            await trio.sleep(1)
            w.broker.down()

        w.broker.blackhole()
        nursery.start_soon(lose)
        receipt = await w.live.publish_with_ack("s.x", b"x")
        assert (receipt.status, receipt.fate) == ("queued", None)
        assert trio.current_time() == pytest.approx(1.0, abs=0.1)
        assert w.entry() == {"accepted": 1, "pending": 1, "in_flight": 0, "settled": {}}
        w.broker.up()
        assert await receipt.settled() == Fate("acked", None, "S", 1, False)
        assert (receipt.status, receipt.stream, receipt.sequence) == ("queued", "S", 1)


async def test_a_link_lost_behind_the_stream_answers_as_a_duplicate(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream()) as w, trio.open_nursery() as nursery:

        async def lose() -> None:
            await trio.lowlevel.checkpoint()
            w.broker.cut()

        nursery.start_soon(lose)
        receipts = [await w.live.publish_with_ack("s.x", b"%d" % number) for number in range(3)]
        assert await fates(receipts) == ["acked"] * 3
        assert [message.payload for message in w.broker.messages("S")] == [b"0", b"1", b"2"]


@WITH_ACK
async def test_a_link_lost_in_fail_open_mode_lets_go_what_was_unconfirmed(
    autojump_clock: MockClock, with_ack: bool
) -> None:
    async with world(brokers=broker_with_stream(), fail_open=True) as w, trio.open_nursery() as nursery:

        async def lose() -> None:
            await trio.sleep(1)
            w.broker.down()

        w.broker.blackhole()
        nursery.start_soon(lose)
        receipt = await publish(w.live, with_ack=with_ack)
        assert await receipt.settled() == Fate("failed_open", "not_connected")
        assert receipt.status == ("failed_open" if with_ack else "sent")
        assert w.failures(operation(with_ack)) == {"not_connected": 1}


async def test_a_publish_behind_a_drain_is_queued_and_keeps_the_order(autojump_clock: MockClock) -> None:
    async with world(max_pending_operations=5000) as w:
        await w.lose()
        receipts = [await w.live.publish("a", b"%d" % number) for number in range(3000)]
        w.broker.up()
        await w.live.connections["main"].changed()
        receipts.append(await w.live.publish("a", b"3000"))
        assert receipts[-1].status == "queued"
        await fates(receipts)
        assert payloads(w) == [b"%d" % number for number in range(3001)]
        receipt = await w.live.publish("a", b"last")
        assert receipt.status == "sent"


async def test_a_publisher_that_never_waits_lets_the_router_reconnect(autojump_clock: MockClock) -> None:
    async with world(max_pending_operations=10) as w:
        await w.lose()
        w.broker.up()
        with trio.fail_after(60):
            while (await w.live.publish("a", b"x")).status == "queued":
                autojump_clock.jump(0.001)
        assert w.live.connections["main"].connected


# --- a full queue ----------------------------------------------------------------------------------------------------


@WITH_ACK
async def test_drop_oldest(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_operations=3) as w:
        await w.lose()
        receipts = [await publish(w.live, b"%d" % number, with_ack=with_ack) for number in range(5)]
        assert {receipt.status for receipt in receipts} == {"queued"}
        assert [receipt.fate for receipt in receipts] == [Fate("dropped", "queue_full")] * 2 + [None] * 3
        assert w.watch.count("NATS_QUEUE_FULL") == 2
        assert w.failures(operation(with_ack)) == {"not_connected": 5}
        assert w.live.connections["main"].outbox.counters.dropped["queue_full"] == 2
        await w.find()
        await fates(receipts)
        assert payloads(w) == [b"2", b"3", b"4"]
        assert w.entry()["settled"] == {"dropped": 2, confirmed(with_ack): 3}


@WITH_ACK
async def test_drop_oldest_by_bytes(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_bytes="1KiB") as w:
        await w.lose()
        receipts = [await publish(w.live, b"x" * 400, with_ack=with_ack) for _ in range(4)]
        assert [receipt.fate for receipt in receipts] == [Fate("dropped", "queue_full")] * 2 + [None] * 2
        await w.find()
        await fates(receipts)


@WITH_ACK
async def test_reject(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_operations=3, on_pending_full="reject") as w:
        await w.lose()
        receipts = [await publish(w.live, b"%d" % number, with_ack=with_ack) for number in range(3)]
        with pytest.raises(PublishError, match=r"3 of 3 operations.*max_pending_operations") as refused:
            await publish(w.live, b"3", with_ack=with_ack)
        assert refused.value.reason == "queue_full"
        assert w.failures(operation(with_ack)) == {"not_connected": 4}, "once an operation, whatever becomes of it"
        assert w.watch.count("NATS_QUEUE_FULL") == 1
        assert w.entry()["accepted"] == 3
        await w.find()
        assert await fates(receipts) == [confirmed(with_ack)] * 3


@WITH_ACK
async def test_block(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_operations=3, on_pending_full="block") as w:
        await w.lose()
        receipts = [await publish(w.live, b"%d" % number, with_ack=with_ack) for number in range(3)]
        async with trio.open_nursery() as nursery:

            async def blocked(number: int) -> None:
                receipts.append(await publish(w.live, b"%d" % number, with_ack=with_ack))

            for number in (3, 4):
                nursery.start_soon(blocked, number)
            await trio.sleep(5)
            assert len(receipts) == 3
            # Counted before it waits.
            assert w.failures(operation(with_ack)) == {"not_connected": 5}
            assert w.watch.count("NATS_QUEUE_FULL") == 2
            assert w.entry()["accepted"] == 3
            await w.find()
        assert await fates(receipts) == [confirmed(with_ack)] * 5
        assert sorted(payloads(w)) == [b"0", b"1", b"2", b"3", b"4"]
        assert payloads(w)[:3] == [b"0", b"1", b"2"]
        assert w.failures(operation(with_ack)) == {"not_connected": 5}
        assert w.successes(operation(with_ack)) == 0


@WITH_ACK
@pytest.mark.parametrize("policy", ["drop_oldest", "reject", "block"])
async def test_connected_a_full_queue_waits_for_the_wire_whatever_the_policy(
    autojump_clock: MockClock, policy: str, with_ack: bool
) -> None:
    async with world(
        brokers=broker_with_stream(), max_pending_operations=5, on_pending_full=policy, liveness_interval="60s"
    ) as w:
        w.broker.stall(5.0)
        receipts: list[Receipt] = []
        large = b"x" * 100_000  # the socket takes only a few of these

        async def one() -> None:
            options: dict[str, Any] = {"timeout": 30} if with_ack else {}
            receipts.append(await publish(w.live, large, with_ack=with_ack, **options))

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(one)
            await trio.sleep(4)
            assert w.entry()["accepted"] < 30
            assert w.entry()["pending"] <= 5
        assert await fates(receipts) == [confirmed(with_ack)] * 30
        assert (w.failures(operation(with_ack)), w.watch.count("NATS_QUEUE_FULL")) == ({}, 0)


async def test_expiry(autojump_clock: MockClock) -> None:
    async with world(pending_max_age="10s") as w:
        await w.lose()
        old = await w.live.publish("a", b"old")
        await trio.sleep(8)
        young = await w.live.publish("a", b"young")
        await trio.sleep(4)
        assert (old.fate, young.fate) == (Fate("dropped", "expired"), None)
        await w.find()
        assert (await young.settled()).name == "fenced"
        assert payloads(w) == [b"young"]


@WITH_ACK
async def test_what_is_left_at_the_end_is_dropped_and_told(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), shutdown_timeout=1) as w:
        await w.lose()
        receipts = [await publish(w.live, with_ack=with_ack) for _ in range(3)]
    assert [receipt.fate for receipt in receipts] == [Fate("dropped", "shutdown")] * 3
    assert w.live.unsettled == 3


# --- cancelled -------------------------------------------------------------------------------------------------------


@WITH_ACK
@pytest.mark.parametrize("connected", [True, False])
async def test_cancelled_before_it_is_accepted_nothing_was(
    autojump_clock: MockClock, with_ack: bool, connected: bool
) -> None:
    async with world(brokers=broker_with_stream()) as w:
        if not connected:
            await w.lose()
        with trio.CancelScope() as scope:
            scope.cancel()
            await publish(w.live, with_ack=with_ack)
        assert scope.cancelled_caught
        assert w.entry()["accepted"] == 0
        assert w.failures(operation(with_ack)) == {}


@WITH_ACK
async def test_cancelled_while_it_waits_for_room_it_was_not_accepted(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream(), max_pending_operations=2, on_pending_full="block") as w:
        await w.lose()
        receipts = [await publish(w.live, b"%d" % number, with_ack=with_ack) for number in range(2)]
        with trio.move_on_after(5) as scope:
            await publish(w.live, b"never", with_ack=with_ack)
        assert scope.cancelled_caught
        assert w.entry() == {"accepted": 2, "pending": 2, "in_flight": 0, "settled": {}}
        assert w.failures(operation(with_ack)) == {"not_connected": 3}
        await w.find()
        await fates(receipts)
        assert payloads(w) == [b"0", b"1"]


async def test_cancelled_while_it_waits_for_the_ack_the_message_stays_accepted(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream(), liveness_interval="60s") as w:
        w.broker.stall(10.0)
        with trio.move_on_after(1) as scope:
            await w.live.publish_with_ack("s.x", b"x", timeout=5)
        assert scope.cancelled_caught
        assert w.entry() == {"accepted": 1, "pending": 0, "in_flight": 1, "settled": {}}
        await eventually(lambda: w.entry()["settled"] == {"acked": 1}, 30)
        assert len(w.broker.messages("S")) == 1
        assert w.successes("publish_with_ack") == 1


async def test_the_time_of_one_whose_link_was_lost_is_nobody_s_any_more(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream(), liveness_interval="60s") as w:
        w.broker.stall(1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.lose)
            receipt = await w.live.publish_with_ack("s.x", b"x", timeout=5)
        assert receipt.status == "queued"
        await trio.sleep(20)
        assert w.entry() == {"accepted": 1, "pending": 1, "in_flight": 0, "settled": {}}
        await w.find()
        assert (await receipt.settled()).name == "acked"


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
async def test_a_timeout_that_is_none_is_refused_before_anything_is_accepted(
    autojump_clock: MockClock,
    timeout: float,  # noqa: ASYNC109 - it is what is tested
) -> None:
    async with world(brokers=broker_with_stream()) as w:
        with pytest.raises(ValueError, match="0 or more"):
            await w.live.publish_with_ack("s.x", b"x", timeout=timeout)
        assert w.entry()["accepted"] == 0


async def test_whoever_waits_for_a_fate_is_told_however_often_he_was_woken(autojump_clock: MockClock) -> None:
    receipt = Receipt()
    first = receipt.event()
    assert receipt.event() is first
    first.set()
    second = receipt.event()
    assert second is not first
    operation = OperationWithAck(1, b"", owner=receipt, accepted_at=0.0, clean=True)
    operation.settle(Fate("acked", None, "S", 7), trio.current_time())
    assert second.is_set()
    assert receipt.event().is_set(), "asked for too late, it has happened already"
    assert await receipt.settled() == Fate("acked", None, "S", 7)
    assert receipt.sequence == 7


async def test_a_cancelled_wait_for_the_fate_changes_nothing(autojump_clock: MockClock) -> None:
    async with world() as w:
        await w.lose()
        receipt = await w.live.publish("a", b"x")
        with trio.move_on_after(1) as scope:
            await receipt.settled()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(receipt.settled)
            await w.find()
        with trio.CancelScope() as scope:
            scope.cancel()
            await receipt.settled()
        assert scope.cancelled_caught
        assert await receipt.settled() == Fate("fenced")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", ["drop_oldest", "reject", "block"])
async def test_callers_cancelled_at_any_moment_of_any_outage(autojump_clock: MockClock, policy: str, seed: int) -> None:
    choose = random.Random(seed)
    answered: dict[int, Receipt] = {}
    refused: set[int] = set()
    async with world(
        brokers=broker_with_stream(), max_pending_operations=15, on_pending_full=policy, liveness_interval="1s"
    ) as w:

        async def one(number: int) -> None:
            await trio.sleep(choose.uniform(0, 20))
            with trio.move_on_after(choose.choice([0, 0.001, 0.1, 1, 5])):
                try:
                    answered[number] = await publish(w.live, b"%d" % number, with_ack=bool(number % 2))
                except PublishError:
                    refused.add(number)

        troubles: list[Callable[[], None]] = [w.broker.cut, w.broker.down, w.broker.blackhole]

        async def trouble() -> None:
            for _ in range(8):
                await trio.sleep(choose.uniform(0, 2))
                choose.choice(troubles)()
                await trio.sleep(choose.uniform(0, 2))
                w.broker.up()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trouble)
            for number in range(300):
                nursery.start_soon(one, number)
        w.broker.up()
        await eventually(lambda: w.entry()["pending"] == w.entry()["in_flight"] == 0, 120)
        # Whoever has an answer has a fate; what was confirmed has arrived; the rest adds up (the world checks it).
        came = set(map(int, payloads(w)))
        for number, receipt in answered.items():
            assert receipt.fate is not None
            assert number in came or not receipt.fate.delivered
        delivered = sum(count for fate, count in w.entry()["settled"].items() if fate in ("acked", "fenced"))
        assert delivered <= len(came)
        assert w.entry()["accepted"] >= len(answered)
        stored = [int(message.payload) for message in w.broker.messages("S") if int(message.payload) % 2]
        assert len(stored) == len(set(stored))
