"""The fake broker's own controls; `tests/contract` covers what it has in common with a real server."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from router_trio.errors import AuthorizationError, ProtocolError, SourceError, SubjectError
from router_trio.outbox.operation import CoreOperation
from router_trio.protocol.framing import RawMessage, payload
from router_trio.protocol.headers import EMPTY, Headers, encode
from router_trio.testing import FakeBroker
from tests.support.recorder import INBOX, Recorder, operation
from tests.unit.testing.links import SERVER, SPEC, use_until_death

# --- refusals ---


async def test_credentials_are_refused_until_they_are_accepted(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        broker.refuse_credentials()
        assert type(await use_until_death(broker)) is AuthorizationError
        await link.fence()
        broker.accept_credentials()
        async with broker.connect(SERVER, b"_INBOX.two", Recorder()) as second:
            await second.fence()


async def test_permissions_can_be_revoked_while_a_link_lives() -> None:
    broker = FakeBroker()
    listener = Recorder()
    async with broker.connect(SERVER, INBOX, listener) as link:
        await link.send([operation(1, b"orders.new")])
        broker.deny_publish("orders.*")
        broker.deny_subscribe("secret.>")
        await link.send([operation(2, b"orders.new"), operation(3, b"other")])
        await link.fence()
        with pytest.raises(SourceError, match=r"secret\.a"):
            await link.subscribe("secret.a", Recorder())
    assert [message.subject for message in broker.published] == ["orders.new", "other"]
    assert [subject for subject, _ in listener.denied] == [b"orders.new"]


async def test_an_invalid_frame_ends_the_link_with_a_protocol_error() -> None:
    broker = FakeBroker()
    broken = CoreOperation(1, b"PUB orders.new 5\r\nabc\r\n", owner=None, accepted_at=0.0, clean=True)

    async def live() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()) as link:
            await link.send([operation(1, b"orders.new"), broken, operation(2, b"orders.new")])

    with pytest.raises(ProtocolError, match="announces 5 bytes"):
        await live()


async def test_max_payload_can_be_small() -> None:
    broker = FakeBroker(max_payload=10)
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        assert link.max_payload == 10
        (refusal,) = await link.send([operation(1, b"orders.new", bytes(11))])
    assert refusal.reason == "too_large"


async def test_acking_a_message_that_is_not_from_jetstream_is_an_error_in_the_test() -> None:
    broker = FakeBroker()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        with pytest.raises(ValueError, match="only those can be acked"):
            link.ack([b"some.reply"])


# --- announcements ---


async def test_announcements_reach_every_listener(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    first, second = Recorder(), Recorder()
    async with (
        broker.connect(SERVER, INBOX, first) as one,
        broker.connect(SERVER, b"_INBOX.two", second) as two,
    ):
        broker.lame_duck()
        broker.announce_servers("one:4222", "two:4222")
        await one.fence()
        await two.fence()
    assert [recorder.lame_ducks for recorder in (first, second)] == [1, 1]
    assert [recorder.servers for recorder in (first, second)] == [["one:4222", "two:4222"]] * 2


# --- what it records ---


async def test_published_lists_what_links_sent_in_order(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    headers = Headers([("A", "1"), ("A", "2")])
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        await link.send([operation(1, b"orders.new", b"1", headers=encode(headers)), operation(2, b"other", b"2")])
        broker.publish("orders.elsewhere", b"3")
        await link.fence()
    assert broker.published == [("orders.new", headers, b"1"), ("other", EMPTY, b"2")]
    assert broker.messages("ORDERS") == [
        ("orders.new", headers, b"1", 1),
        ("orders.elsewhere", EMPTY, b"3", 2),
    ]


async def test_unacked_counts_the_messages_that_await_an_ack(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    for n in range(3):
        broker.publish(f"orders.{n}")
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 5.0)
        raws = await received.until_delivered(3)
        assert broker.unacked("ORDERS", "router") == 3
        assert not link.ack([raws[0][1]])
        assert not link.ack([raws[0][1]])
        assert broker.unacked("ORDERS", "router") == 2


async def test_another_client_may_name_any_reply_subject(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    answers = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        await link.subscribe("answers", answers)
        broker.publish("nobody.home", b"?", {"A": "1"}, reply="answers")
        broker.add_stream("ORDERS", ["orders.*"])
        broker.publish("orders.a", b"!", reply="answers")
        (raw,) = await answers.until_delivered(1)
    assert json.loads(payload(raw)) == {"stream": "ORDERS", "seq": 1}
    with pytest.raises(SubjectError):
        broker.publish("orders.*")


async def test_nothing_is_delivered_within_a_call_of_the_publisher(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        await link.subscribe("orders.*", received)
        broker.publish("orders.a")
        broker.publish("orders.b")
        assert received.batches == []
        await link.fence()
    assert [len(batch) for batch in received.batches] == [2]


async def test_a_callback_may_use_the_link_while_it_is_given_messages(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    seen: list[bytes] = []

    async with broker.connect(SERVER, INBOX, Recorder()) as link:

        def take(batch: list[RawMessage]) -> None:
            for message in batch:
                if message[1]:
                    seen.append(message[0])
                    link.ack([message[1]])
                    consumer.pull(1, 5.0)

        consumer = await link.open_consumer(SPEC, take)
        consumer.pull(1, 5.0)
        for n in range(4):
            broker.publish(f"orders.{n}")
        await trio.testing.wait_all_tasks_blocked()
    assert seen == [b"orders.0", b"orders.1", b"orders.2", b"orders.3"]
    assert broker.unacked("ORDERS", "router") == 0


async def test_members_of_a_queue_group_take_turns(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    members = [Recorder(), Recorder(), Recorder()]
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        for member in members:
            await link.subscribe("orders.*", member, queue="routers")
        for n in range(7):
            broker.publish("orders.new", b"%d" % n)
        await link.fence()
    assert [[payload(raw) for raw in member.messages] for member in members] == [
        [b"0", b"3", b"6"],
        [b"1", b"4"],
        [b"2", b"5"],
    ]
