"""Machines of a fake broker, whose faults do not affect the links of others, and durables without a leader."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from router_trio.errors import LinkError, SourceError, reasons
from router_trio.link import ConsumerSpec
from router_trio.protocol.framing import payload
from router_trio.testing import FakeBroker
from tests.support.recorder import INBOX, Recorder, operation

SERVER = "nats://one:4222"
SPEC = ConsumerSpec("IN", "router", (), ack_wait=2.0, max_deliver=-1, max_ack_pending=1000)
STANDBY = replace(SPEC, standby=True)


@pytest.fixture
def broker() -> FakeBroker:
    broker = FakeBroker()
    broker.add_stream("IN", ["in.>"])
    return broker


def stored(broker: FakeBroker) -> list[bytes]:
    return [message.payload for message in broker.messages("IN")]


async def test_a_machine_that_is_mute_sends_later_what_it_was_given(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    mute, heard = broker.machine(), Recorder()
    async with (
        mute.connect(SERVER, INBOX, Recorder()) as link,
        broker.connect(SERVER, b"_INBOX.b", Recorder()) as other,
    ):
        await link.subscribe("news", heard)
        mute.hold(to_server=True)
        await link.send([operation(1, b"in.a", b"held")])
        await other.send([operation(1, b"in.a", b"other"), operation(2, b"news", b"heard")])
        await heard.until_delivered(1)
        assert stored(broker) == [b"other"]
        mute.release()
        await link.fence()
        assert stored(broker) == [b"other", b"held"]


async def test_a_machine_that_is_deaf_still_sends(broker: FakeBroker, autojump_clock: trio.abc.Clock) -> None:
    deaf, heard = broker.machine(), Recorder()
    async with (
        deaf.connect(SERVER, INBOX, Recorder()) as link,
        broker.connect(SERVER, b"_INBOX.b", Recorder()) as other,
    ):
        await link.subscribe("news", heard)
        deaf.hold(from_server=True)
        await link.send([operation(1, b"in.a", b"sent")])
        await other.send([operation(1, b"news", b"late")])
        await other.fence()
        await trio.sleep(5.0)
        assert (stored(broker), heard.messages) == ([b"sent"], [])
        deaf.release()
        await heard.until_delivered(1)


async def test_no_link_is_opened_from_a_machine_that_is_cut_off(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    machine = broker.machine()
    machine.hold(to_server=True)
    with trio.move_on_after(5.0) as waiting:
        async with machine.connect(SERVER, INBOX, Recorder()):
            raise AssertionError("it is cut off")
    assert waiting.cancelled_caught
    machine.release()
    async with machine.connect(SERVER, INBOX, Recorder()) as link:
        await link.fence()


async def test_links_of_a_machine_are_cut_and_those_of_others_stay(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    machine = broker.machine()

    async def live() -> None:
        async with machine.connect(SERVER, INBOX, Recorder()):
            machine.cut()
            await trio.sleep_forever()

    async with broker.connect(SERVER, b"_INBOX.b", Recorder()) as other:
        with pytest.raises(LinkError):
            await live()
        await other.fence()


@pytest.mark.parametrize("sends_on", [False, True])
async def test_data_sent_by_a_killed_process_may_still_arrive(
    broker: FakeBroker, sends_on: bool, autojump_clock: trio.abc.Clock
) -> None:
    machine = broker.machine()
    machine.sends_on = sends_on
    broker.trouble.travel(lambda: 1.0)

    async def live() -> None:
        async with machine.connect(SERVER, INBOX, Recorder()) as link:
            await link.send([operation(1, b"in.a", b"on its way")])
            machine.kill()
            await trio.sleep_forever()

    async with broker.connect(SERVER, b"_INBOX.b", Recorder()):
        with pytest.raises(LinkError):
            await live()
        await trio.sleep(2.0)
    assert stored(broker) == ([b"on its way"] if sends_on else [])


@pytest.mark.parametrize("half_open", [False, True])
async def test_a_server_that_misses_the_end_of_a_machine_still_delivers_to_it(
    broker: FakeBroker, half_open: bool, autojump_clock: trio.abc.Clock
) -> None:
    machine, heard = broker.machine(), Recorder()
    machine.half_open = half_open

    async def live() -> None:
        async with machine.connect(SERVER, INBOX, Recorder()) as link:
            consumer = await link.open_consumer(SPEC, Recorder())
            consumer.pull(1, 30.0)
            await link.fence()
            machine.kill()
            await trio.sleep_forever()

    with pytest.raises(LinkError):
        await live()
    async with broker.connect(SERVER, b"_INBOX.b", Recorder()) as other:
        consumer = await other.open_consumer(SPEC, heard)
        consumer.pull(2, 30.0)
        await other.fence()
        for body in (b"first", b"second"):
            broker.publish("in.a", body)
        first = payload((await heard.until_delivered(1))[0])
        assert first == (b"second" if half_open else b"first")


# --- durables without a leader ---


def ignore(*_: object) -> None:
    """Learn nothing while waiting for the lead."""


async def test_a_durable_without_a_leader_answers_nothing_and_forgets_its_pin(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    heard = Recorder()
    broker.publish("in.a", b"1")
    async with (
        broker.connect(SERVER, INBOX, Recorder()) as link,
        broker.connect(SERVER, b"_INBOX.b", Recorder()) as other,
    ):
        spec = replace(STANDBY, pin=await link.take_the_lead(STANDBY, ignore))
        consumer = await link.open_consumer(spec, heard)
        consumer.pull(5, 30.0)
        (delivery,) = await heard.until_delivered(1)
        broker.trouble.elect_durable("IN", "router", 3.0)
        assert b"409 Leadership Change" in (await heard.until_delivered(2))[-1][4]
        link.ack([delivery[1]])
        await link.fence()
        assert broker.unacked("IN", "router") == 1, "the ack was lost"
        with pytest.raises(SourceError) as caught:
            await consumer.check()
        assert caught.value.reason == reasons.TIMEOUT
        await trio.sleep(3.0)
        began = trio.current_time()
        assert await other.take_the_lead(STANDBY, ignore) != spec.pin
        assert trio.current_time() == began, "no pin is left to wait for"
        consumer.pull(5, 30.0)
        statuses = await heard.until_delivered(3)
        assert b"423" in statuses[-1][4]


async def test_an_election_of_a_stream_ends_the_pins_of_its_consumers(
    broker: FakeBroker, autojump_clock: trio.abc.Clock
) -> None:
    async with (
        broker.connect(SERVER, INBOX, Recorder()) as link,
        broker.connect(SERVER, b"_INBOX.b", Recorder()) as other,
    ):
        pin = await link.take_the_lead(STANDBY, ignore)
        broker.trouble.elect("IN", 0.0)
        began = trio.current_time()
        assert await other.take_the_lead(STANDBY, ignore) != pin
        assert trio.current_time() == began
