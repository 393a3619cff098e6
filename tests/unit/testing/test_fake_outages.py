"""Outages of the fake broker: links that die, and links that carry nothing."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio.errors import LinkError
from router_trio.link import Link
from router_trio.protocol.framing import payload
from router_trio.testing import FakeBroker
from router_trio.testing.links import SOCKET_BUFFER
from tests.support.recorder import INBOX, Recorder, operation
from tests.unit.testing.links import SERVER, use_until_death


async def note_death(broker: FakeBroker, deaths: list[LinkError]) -> None:
    deaths.append(await use_until_death(broker))


# --- down and up, cut ---


async def test_down_kills_links_and_refuses_new_ones_until_up(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    deaths: list[LinkError] = []
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(note_death, broker, deaths)
        await trio.testing.wait_all_tasks_blocked()
        assert broker.links == 2
        broker.down()
    assert [type(death) for death in deaths] == [LinkError, LinkError]
    assert {death.reason for death in deaths} == {"network"}
    assert broker.links == 0
    refused = await use_until_death(broker)
    assert refused.reason == "network"
    assert "secret" not in str(refused)
    broker.up()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        await link.fence()
    assert broker.connect_attempts == 4


async def test_cut_breaks_the_links_to_one_server_only(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    deaths: list[LinkError] = []
    async with broker.connect("nats://two:4222", b"_INBOX.two", Recorder()) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_death, broker, deaths)
            await trio.testing.wait_all_tasks_blocked()
            broker.cut("one:4222")
        await other.fence()
        assert len(deaths) == 1
        assert broker.links == 1
    async with broker.connect(SERVER, INBOX, Recorder()) as again:
        await again.fence()


async def test_an_operation_on_a_dead_link_raises_outside_of_its_body_too(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    reasons: list[str] = []

    async def fence_and_note(link: Link) -> None:
        with pytest.raises(LinkError) as caught:
            await link.fence()
        reasons.append(caught.value.reason)

    async def live(nursery: trio.Nursery) -> None:
        async with broker.connect(SERVER, INBOX, Recorder()) as link:
            broker.blackhole()
            nursery.start_soon(fence_and_note, link)
            await trio.testing.wait_all_tasks_blocked()
            broker.cut()
            nursery.start_soon(fence_and_note, link)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with pytest.raises(LinkError):
            await live(nursery)
    assert reasons == ["network", "network"]


async def test_tasks_that_use_a_dead_link_raise_its_error_without_a_group(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()

    async def ack(link: Link) -> None:
        for _, error in link.ack([b"$JS.ACK.ORDERS.router.1.1.1.1.0"]):
            raise error

    async def live() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()) as link, trio.open_nursery() as nursery:
            broker.down()
            nursery.start_soon(ack, link)
            nursery.start_soon(ack, link)
            await trio.sleep_forever()

    with pytest.raises(LinkError) as caught:
        await live()
    assert type(caught.value) is LinkError
    assert str(caught.value) == "the connection was cut"


async def test_another_error_of_the_body_is_not_hidden_by_the_death_of_the_link(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()

    async def live() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()):
            broker.down()
            raise ValueError("a mistake of the body")

    with pytest.raises(ValueError, match="a mistake of the body"):
        await live()
    assert broker.links == 0


async def test_data_under_way_is_lost_with_the_link(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    received = Recorder()

    async def live() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()) as link:
            await link.subscribe("orders.*", received)
            broker.blackhole()
            await link.send([operation(1, b"orders.lost")])
            broker.publish("orders.lost")
            broker.down()
            await trio.sleep_forever()

    with pytest.raises(LinkError):
        await live()
    broker.up()
    await trio.testing.wait_all_tasks_blocked()
    assert broker.published == []
    assert received.messages == []


# --- nothing gets through ---


async def test_a_blackhole_holds_back_both_directions_silently(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        await link.subscribe("orders.*", received)
        broker.blackhole()
        await link.send([operation(1, b"orders.out", b"out")])
        broker.publish("orders.in", b"in")
        with trio.move_on_after(3600) as scope:
            await link.fence()
        assert scope.cancelled_caught
        assert broker.published == []
        assert received.messages == []
        broker.up()
        await link.fence()
        assert [payload(raw) for raw in received.messages] == [b"in", b"out"]
        assert broker.links == 1


async def test_in_a_blackhole_send_blocks_when_the_socket_buffer_is_full(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        broker.blackhole()
        await link.send([operation(1, b"orders.new", bytes(SOCKET_BUFFER // 2))])
        with trio.move_on_after(60) as scope:
            await link.send([operation(2, b"orders.new", bytes(SOCKET_BUFFER))])
        assert scope.cancelled_caught
        broker.up()
        await link.send([operation(3, b"orders.new")])
        await link.fence()
    assert [len(message.payload) for message in broker.published] == [SOCKET_BUFFER // 2, SOCKET_BUFFER, 0]


async def test_connecting_into_a_blackhole_blocks_until_it_ends(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.blackhole()
    with trio.move_on_after(60) as scope:
        await use_until_death(broker)
    assert scope.cancelled_caught
    connected_at: list[float] = []

    async def live() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()):
            connected_at.append(trio.current_time())

    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await trio.sleep(7)
        broker.up()
    assert connected_at == [started_at + 7]


async def test_a_stall_ends_by_itself(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        broker.stall(4)
        started_at = trio.current_time()
        await link.fence()
        assert trio.current_time() - started_at == pytest.approx(4)
        await link.fence()
        assert trio.current_time() - started_at == pytest.approx(4)


async def test_a_cancelled_subscribe_leaves_no_subscription(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        broker.blackhole()
        with trio.move_on_after(1) as scope:
            await link.subscribe("orders.*", received)
        assert scope.cancelled_caught
        broker.up()
        await link.send([operation(1, b"orders.new")])
        await link.fence()
    assert len(broker.published) == 1
    assert received.messages == []
