"""The trouble that a fake broker makes; `tests/contract` covers what a real server can show as well."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio.errors import LinkError
from router_trio.link import ConsumerSpec
from router_trio.protocol.framing import RawMessage, header_block, payload
from router_trio.protocol.headers import status
from router_trio.testing import FakeBroker
from tests.support.recorder import INBOX, Recorder, operation, operation_with_ack

SERVER = "nats://one:4222"
SPEC = ConsumerSpec("IN", "router", (), ack_wait=2.0, max_deliver=-1, max_ack_pending=1000)


@pytest.fixture
def broker() -> FakeBroker:
    broker = FakeBroker()
    broker.add_stream("IN", ["in.>"])
    return broker


def bodies(recorder: Recorder) -> list[bytes]:
    """Return the payloads that were delivered, without statuses."""
    return [payload(raw) for raw in recorder.messages if not status(header_block(raw))[0]]


def sequence(raw: RawMessage) -> int:
    return int(raw[1].split(b".")[5])


async def test_data_is_under_way_for_its_time_and_keeps_its_order(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    times = iter([1.0, 0.1, *[0.25] * 20])
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        await link.subscribe("a", received)
        broker.trouble.travel(lambda: next(times))
        began = trio.current_time()
        await link.send([operation(1, b"a", b"slow"), operation(2, b"a", b"quick")])
        await received.until_delivered(2)
        assert trio.current_time() - began == pytest.approx(1.25)
        assert bodies(received) == [b"slow", b"quick"]


async def test_a_link_breaks_within_data_on_its_way_to_the_server(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    async def send() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()) as link:
            broker.trouble.break_after(to_server=2)
            await link.send([operation(n, b"in.a", b"%d" % n) for n in range(5)])
            await trio.sleep_forever()

    with pytest.raises(LinkError):
        await send()
    assert [message.payload for message in broker.messages("IN")] == [b"0", b"1"]


async def test_a_link_breaks_within_data_on_its_way_from_the_server(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    received = Recorder()

    async def read() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()) as link:
            await link.subscribe("a", received)
            broker.trouble.break_after(from_server=2)
            for n in range(5):
                broker.publish("a", b"%d" % n)
            await trio.sleep_forever()

    with pytest.raises(LinkError):
        await read()
    assert bodies(received) == [b"0", b"1"]


async def test_answers_are_lost_or_late(broker: FakeBroker, autojump_clock: trio.abc.Clock) -> None:
    listener = Recorder()
    async with broker.connect(SERVER, INBOX, listener) as link:
        broker.trouble.lose("puback")
        await link.send([operation_with_ack(1, b"in.a"), operation_with_ack(2, b"in.a")])
        await link.fence()
        assert set(listener.acks) == {2}
        broker.trouble.delay("puback", 3.0)
        await link.send([operation_with_ack(3, b"in.a"), operation_with_ack(4, b"in.a")])
        await link.fence()
        assert set(listener.acks) == {2, 4}
        await listener.until(lambda heard: 3 in heard.acks)
        assert trio.current_time() == pytest.approx(3.0)
    assert len(broker.messages("IN")) == 4


def test_losing_an_unknown_kind_is_an_error(broker: FakeBroker) -> None:
    with pytest.raises(ValueError, match="the kinds are puback"):
        broker.trouble.lose("heart")


async def test_a_message_whose_ack_is_lost_is_redelivered(broker: FakeBroker, autojump_clock: trio.abc.Clock) -> None:
    received = Recorder()
    broker.publish("in.a", b"a")
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 30.0)
        (first,) = await received.until_delivered(1)
        broker.trouble.lose("ack")
        assert not link.ack([first[1]])
        _, again = await received.until_delivered(2)
        assert trio.current_time() == pytest.approx(2.0)
        assert sequence(again) == 1


async def test_a_stream_without_a_leader_answers_nothing_until_it_has_one(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    listener, received = Recorder(), Recorder()
    async with broker.connect(SERVER, INBOX, listener) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 30.0)
        await link.fence()
        broker.trouble.elect("IN", 4.0)
        await link.send([operation_with_ack(1, b"in.a", b"a")])
        await link.fence()
        assert listener.refusals == {1: ("no_responders", True)}
        assert status(header_block(received.messages[0])) == (409, "Leadership Change")
        await trio.sleep(4.0)
        consumer.pull(5, 30.0)
        await link.send([operation_with_ack(2, b"in.a", b"b")])
        await received.until(lambda heard: bodies(heard) == [b"b"])
        assert set(listener.acks) == {2}


async def test_a_stream_that_forgets_reuses_sequences(broker: FakeBroker, autojump_clock: trio.abc.Clock) -> None:
    received = Recorder()
    for body in (b"a", b"b", b"c"):
        broker.publish("in.a", body)
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(10, 30.0)
        link.ack([raw[1] for raw in await received.until_delivered(3)])
        await link.fence()
        broker.trouble.forget("IN", 2)
        broker.publish("in.a", b"d")
        await received.until_delivered(4)
    assert [(message.payload, message.sequence) for message in broker.messages("IN")] == [(b"a", 1), (b"d", 2)]
    assert sequence(received.messages[3]) == 2


async def test_a_recreated_stream_has_another_identity_and_keeps_its_durable(broker: FakeBroker) -> None:
    broker.publish("in.a", b"a")
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        before = await link.open_consumer(SPEC, Recorder())
        broker.trouble.recreate("IN", "router")
        after = await link.open_consumer(SPEC, Recorder())
        assert before.stream_created != after.stream_created
    assert broker.messages("IN") == []


async def test_a_durable_redelivers_on_demand(broker: FakeBroker, autojump_clock: trio.abc.Clock) -> None:
    received = Recorder()
    broker.publish("in.a", b"a")
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 30.0)
        await received.until_delivered(1)
        broker.trouble.deliver_again("IN", "router", 1)
        await received.until_delivered(2)
        assert trio.current_time() == 0.0


async def test_a_message_that_is_due_keeps_its_place_when_it_is_redelivered_on_demand(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    received = Recorder()
    for name in "abc":
        broker.publish(f"in.{name}", b"")
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 30.0)
        await received.until_delivered(3)
        broker.trouble.deliver_again("IN", "router", 3)
        await trio.sleep(1)
        broker.trouble.deliver_again("IN", "router", 1)
        consumer.pull(3, 30.0)
        await received.until_delivered(6)
    assert [subject for subject, *_ in received.messages[3:]] == [b"in.a", b"in.b", b"in.c"]


async def test_a_redelivery_by_the_server_itself_is_no_sign_of_another_process(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    received = Recorder()
    broker.publish("in.a", b"a")
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        (await link.open_consumer(SPEC, received)).pull(1, 30.0)
        await received.until_delivered(1)
    async with (
        broker.connect(SERVER, b"_INBOX.next", Recorder()) as link,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_deliver_again_soon, broker)
        consumer = await link.open_consumer(SPEC, Recorder())  # which listens for other processes
        assert trio.current_time() > 0.1
        assert not consumer.progress.in_use


async def _deliver_again_soon(broker: FakeBroker) -> None:
    await trio.sleep(0.1)
    broker.trouble.deliver_again("IN", "router", 1)


async def test_clocks_of_brokers_differ(autojump_clock: trio.abc.Clock) -> None:
    broker, received = FakeBroker(epoch=1_000.0), Recorder()
    broker.add_stream("IN", ["in.>"])
    broker.publish("in.a")
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)
    assert int(raw[1].split(b".")[7]) == 1_000 * 10**9


async def test_a_consumer_closed_in_a_blackhole_is_gone_with_its_link(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    lost, received = Recorder(), Recorder()
    async with trio.open_nursery() as nursery, broker.connect(SERVER, INBOX, Recorder()) as other:

        async def pull_and_vanish() -> None:
            async with broker.connect("nats://two:4222", b"_INBOX.lost", Recorder()) as link:
                consumer = await link.open_consumer(SPEC, lost)
                consumer.pull(5, 600.0)
                await link.fence()
                broker.blackhole()
                consumer.close()  # the server never hears of it

        nursery.start_soon(pull_and_vanish)
        await trio.testing.wait_all_tasks_blocked()
        broker.up()
        consumer = await other.open_consumer(SPEC, received)
        consumer.pull(5, 30.0)
        broker.publish("in.a", b"a")
        await received.until_delivered(1)
    assert not lost.messages


async def test_a_server_that_stays_in_lame_duck_mode_announces_it_to_new_links(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    broker.trouble.stay_lame(True)
    listener = Recorder()
    async with broker.connect(SERVER, INBOX, listener):
        await listener.until(lambda heard: heard.lame_ducks)
