"""The fake broker's own controls; what it has in common with a real server is in `tests/contract`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from router_trio.errors import AuthorizationError, LinkError, ProtocolError, SourceError, SubjectError
from router_trio.link import ConsumerSpec, Link
from router_trio.outbox.operation import CoreOperation
from router_trio.protocol.framing import RawMessage, header_block, payload
from router_trio.protocol.headers import EMPTY, Headers, encode, status
from router_trio.testing import FakeBroker
from router_trio.testing.frames import FrameError, Publish, parse, raw
from router_trio.testing.links import SOCKET_BUFFER
from tests.contract.worlds import INBOX, Recorder, operation, operation_with_ack

SERVER = "nats://user:secret@one:4222"
SPEC = ConsumerSpec("ORDERS", "router", None, ack_wait=30.0, max_deliver=-1, max_ack_pending=1000)


async def use_until_death(broker: FakeBroker) -> LinkError:
    """Open a link and wait until it dies; returns what it raised."""

    async def live() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()):
            await trio.sleep_forever()

    with pytest.raises(LinkError) as caught:
        await live()
    return caught.value


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


async def test_an_operation_on_a_dead_link_raises_for_who_is_not_in_its_body(autojump_clock: trio.abc.Clock) -> None:
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


async def test_tasks_that_meet_the_dead_link_make_no_group_of_its_error(autojump_clock: trio.abc.Clock) -> None:
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


async def test_another_error_of_the_body_is_not_hidden_by_the_death(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()

    async def live() -> None:
        async with broker.connect(SERVER, INBOX, Recorder()):
            broker.down()
            raise ValueError("a mistake of the body")

    with pytest.raises(ValueError, match="a mistake of the body"):
        await live()
    assert broker.links == 0


async def test_what_was_under_way_dies_with_the_link(autojump_clock: trio.abc.Clock) -> None:
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


async def test_a_blackhole_holds_back_both_directions_and_tells_nobody(autojump_clock: trio.abc.Clock) -> None:
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


async def test_permissions_can_be_taken_away_while_a_link_lives() -> None:
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


async def test_a_frame_that_is_none_ends_the_link_with_a_protocol_error() -> None:
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


async def test_acking_what_is_no_jetstream_message_is_an_error_in_the_test() -> None:
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


# --- what it shows ---


async def test_published_holds_what_links_sent_in_order(autojump_clock: trio.abc.Clock) -> None:
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


async def test_unacked_counts_what_a_consumer_waits_for(autojump_clock: trio.abc.Clock) -> None:
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


async def test_another_client_may_ask_and_hears_when_nobody_listens(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    answers = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        await link.subscribe("answers", answers)
        broker.publish("nobody.home", b"?", {"A": "1"}, reply="answers")
        (raw,) = await answers.until_delivered(1)
    assert status(header_block(raw))[0] == 503
    with pytest.raises(SubjectError):
        broker.publish("orders.*")


async def test_nothing_is_delivered_from_within_a_call_of_the_publisher(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        await link.subscribe("orders.*", received)
        broker.publish("orders.a")
        broker.publish("orders.b")
        assert received.batches == []
        await link.fence()
    assert [len(batch) for batch in received.batches] == [2]


async def test_a_taker_may_use_the_link_while_it_is_given_messages(autojump_clock: trio.abc.Clock) -> None:
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


# --- streams ---


async def test_the_duplicate_window_ends(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"], duplicate_window=10.0)
    listener = Recorder()
    headers = encode(Headers({"Nats-Msg-Id": "7"}))
    async with broker.connect(SERVER, INBOX, listener) as link:
        for order, pause in ((1, 9.0), (2, 2.0), (3, 0.0)):
            await link.send([operation_with_ack(order, b"orders.new", headers=headers)])
            await trio.sleep(pause)
        await link.fence()
    assert listener.acks == {1: ("ORDERS", 1, False), 2: ("ORDERS", 1, True), 3: ("ORDERS", 2, False)}


def test_streams_must_not_share_names_or_subjects() -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    with pytest.raises(ValueError, match="'ORDERS' already"):
        broker.add_stream("ORDERS", ["other"])
    with pytest.raises(ValueError, match="overlap with those of stream 'ORDERS'"):
        broker.add_stream("OTHER", ["*.new"])
    with pytest.raises(SubjectError):
        broker.add_stream("OTHER", ["other..new"])
    broker.add_stream("OTHER", ["other.>"])


async def test_a_stream_outlives_an_outage(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    broker.publish("orders.before")
    broker.down()
    broker.publish("orders.meanwhile")
    broker.up()
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        raws = await received.until_delivered(2)
    assert [raw[0] for raw in raws] == [b"orders.before", b"orders.meanwhile"]


async def test_what_is_due_on_one_link_comes_though_another_one_ran_last(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    broker.publish("orders.a")
    first, second = Recorder(), Recorder()
    async with broker.connect(SERVER, b"_INBOX.two", Recorder()) as other:
        waiting = await other.open_consumer(SPEC, second)
        async with broker.connect(SERVER, INBOX, Recorder()) as link:
            consumer = await link.open_consumer(SPEC, first)
            consumer.pull(1, 60.0)
            (raw,) = await first.until_delivered(1)
            waiting.pull(1, 60.0)
            link.nak(raw[1], 3.0)
            naked_at = trio.current_time()
        await second.until_delivered(1)
        assert trio.current_time() - naked_at == pytest.approx(3.0)


async def test_a_consumer_may_start_beyond_the_end_of_its_stream(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    broker.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        probe = await link.open_consumer(SPEC, Recorder())
        broker.delete_consumer("ORDERS", "router")
        spec = replace(SPEC, start_sequence=3, stream_created=probe.stream_created)
        consumer = await link.open_consumer(spec, received)
        consumer.pull(9, 60.0)
        for n in range(1, 5):
            broker.publish("orders.new", b"%d" % n)
        raws = await received.until_delivered(2)
    assert [payload(raw) for raw in raws] == [b"3", b"4"]


async def test_draining_waits_for_what_is_held_back(autojump_clock: trio.abc.Clock) -> None:
    broker = FakeBroker()
    received = Recorder()
    async with broker.connect(SERVER, INBOX, Recorder()) as link:
        subscription = await link.subscribe("orders.*", received)
        broker.stall(3)
        broker.publish("orders.new")
        started_at = trio.current_time()
        await subscription.drain()
        assert trio.current_time() - started_at == pytest.approx(3)
        assert len(received.messages) == 1
        broker.publish("orders.new")
        await link.fence()
        assert len(received.messages) == 1


# --- frames ---


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (b"SUB orders 1\r\n", "not a PUB"),
        (b"PUB orders.new 1 2 3\r\n\r\n", "not a PUB"),
        (b"PUB orders.new 3", "not a PUB"),
        (b"PUB  0\r\n\r\n", "subject"),
        (b"PUB a\tb 0\r\n\r\n", "subject"),
        (b"PUB a b\n 0\r\n\r\n", "reply"),
        (b"PUB a -1\r\n\r\n", "no number"),
        (b"HPUB a x 3\r\nabc\r\n", "no number"),
        (b"PUB a 3\r\nabcd\r\n", "announces 3 bytes"),
        (b"PUB a 3\r\nabc\n\n", "announces 3 bytes"),
        (b"PUB a 0\r\n\r\nPUB a 0\r\n\r\n", "announces 0 bytes"),
        (b"HPUB a 4 3\r\nabc\r\n", "more headers than bytes"),
    ],
)
def test_frames_that_a_server_would_not_take(frame: bytes, complaint: str) -> None:
    with pytest.raises(FrameError, match=complaint):
        parse(frame)


@pytest.mark.parametrize(
    ("frame", "read"),
    [
        (b"PUB a.b 0\r\n\r\n", Publish(b"a.b", b"", b"", b"")),
        (b"PUB a.b r 3\r\na\r\n\r\n", Publish(b"a.b", b"r", b"", b"a\r\n")),
        (b"HPUB a.\xff 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", Publish(b"a.\xff", b"", b"NATS/1.0\r\n\r\n", b"hi")),
        (b"HPUB a r 8 8\r\nNATS/1.0\r\n", Publish(b"a", b"r", b"NATS/1.0", b"")),
    ],
)
def test_frames_are_read_and_their_tail_is_kept(frame: bytes, read: Publish) -> None:
    assert parse(frame) == read
    assert raw(*read)[4] == frame.split(b" ", 2)[2]
