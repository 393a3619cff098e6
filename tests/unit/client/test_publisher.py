"""Publishing from a program while connected: results, counts and fates."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from router_trio import Fate
from router_trio.errors import ConfigurationError, PublishError
from router_trio.testing import FakeBroker
from tests.support.world import overhearing, world
from tests.unit.client.publishing import WITH_ACK, broker_with_stream, confirmed, event, operation, payloads, publish

# --- connected ---


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


async def test_an_own_message_id_is_kept_and_a_duplicate_reported(autojump_clock: MockClock) -> None:
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


async def test_concurrent_publishes_each_get_their_own_ack(autojump_clock: MockClock) -> None:
    async with world(brokers=broker_with_stream()) as w:
        found: dict[int, int | None] = {}

        async def one(number: int) -> None:
            found[number] = (await w.live.publish_with_ack("s.x", b"%d" % number)).sequence

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)
        stored = {message.sequence: int(message.payload) for message in w.broker.messages("S")}
        assert {number: stored[sequence or 0] for number, sequence in found.items()} == {n: n for n in range(200)}


async def test_with_several_connections_one_must_be_named(autojump_clock: MockClock) -> None:
    brokers = {"main": FakeBroker(), "edge": FakeBroker()}
    async with world(brokers=brokers) as w:
        await (await w.live.publish("a", b"x", connection="edge")).settled()
        assert (len(brokers["main"].published), len(brokers["edge"].published)) == (0, 1)
        with pytest.raises(ConfigurationError, match=r"name the connection.*edge, main"):
            await w.live.publish("a", b"x")
        with pytest.raises(ConfigurationError, match=r"no connection 'egde'.*edge, main"):
            await w.live.publish_with_ack("a", b"x", connection="egde")


# --- refused before it is accepted ---


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
async def test_an_invalid_publish_is_refused_and_affects_no_other(
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


# --- refused by the server or the stream ---


async def test_a_publish_that_no_stream_takes_fails(autojump_clock: MockClock) -> None:
    async with world() as w:
        with pytest.raises(PublishError, match="no stream takes this subject") as refused:
            await w.live.publish_with_ack("nobody", b"x", timeout=2.0)
        assert refused.value.reason == "no_responders"
        assert trio.current_time() == pytest.approx(2.0, abs=0.01)
        assert w.entry()["settled"] == {"failed": 1}
        assert w.failures("publish_with_ack") == {"no_responders": 1}
        assert w.watch.count("NATS_PUBLISH_WITH_ACK_ERROR") == 1


async def test_a_stream_created_before_the_deadline_takes_the_publish(autojump_clock: MockClock) -> None:
    async with world() as w, trio.open_nursery() as nursery:

        async def create() -> None:
            await trio.sleep(3)
            w.broker.add_stream("S", ["s.>"])

        nursery.start_soon(create)
        receipt = await w.live.publish_with_ack("s.x", b"x")
        assert (receipt.status, receipt.sequence) == ("acked", 1)
        assert (w.successes("publish_with_ack"), w.failures("publish_with_ack")) == (1, {})


async def test_a_full_stream_refuses_at_once(autojump_clock: MockClock) -> None:
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
async def test_a_publish_without_permission_is_refused(autojump_clock: MockClock, with_ack: bool) -> None:
    async with world(brokers=broker_with_stream()) as w:
        w.broker.deny_publish("s.secret")
        if with_ack:
            with pytest.raises(PublishError, match="does not permit this user") as refused:
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
        with pytest.raises(PublishError, match="may have stored the message anyway") as refused:
            await w.live.publish_with_ack("s.x", b"x", timeout=1.0)
        assert refused.value.reason == "timeout"
        await trio.sleep(5)
        assert len(w.broker.messages("S")) == 1
        assert w.entry()["settled"] == {"failed": 1}
        assert (w.successes("publish_with_ack"), w.failures("publish_with_ack")) == (0, {"timeout": 1})


async def test_a_failure_while_connected_drops_the_message_in_fail_open_mode(autojump_clock: MockClock) -> None:
    async with world(fail_open=True) as w:
        receipt = await w.live.publish_with_ack("nobody", b"x", timeout=1.0)
        assert receipt.status == "failed_open"
        assert (await receipt.settled()).name == "failed_open"
        assert len(w.failures("publish_with_ack")) == 1
        assert w.watch.count("NATS_PUBLISH_FAIL_OPEN") == 1
