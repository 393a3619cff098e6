"""What `router_trio.link` promises, held against the fake broker and against a real nats-server.

Tests that let time pass take `clock`: the fake half runs on an autojump clock, the real half on the real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest
import trio
import trio.testing

from router_trio.errors import AuthorizationError, LinkError, SourceError
from router_trio.link import (
    LOOKUP_FAILED,
    LOOKUP_WITHIN,
    SIGN_OF_WORK_EVERY,
    ConsumerSpec,
    Limits,
    Link,
    Progress,
    SharedDelivery,
    StreamState,
    Subscription,
    SubscriptionBatch,
)
from router_trio.protocol.framing import RawMessage, delivered_size, header_block, payload, publish
from router_trio.protocol.headers import Headers, decode, encode, find_number, status
from tests.contract.worlds import (
    PASSWORD,
    WITHIN,
    WRONG_PASSWORD,
    Recorder,
    World,
    link_of,
    operation,
    operation_with_ack,
)

SPEC = ConsumerSpec("ORDERS", "router", None, ack_wait=1.0, max_deliver=-1, max_ack_pending=1000)


# --- connecting and dying ---


async def test_a_link_names_its_server_without_credentials_and_knows_its_limit(world: World) -> None:
    async with link_of(world) as link:
        host_and_port = world.server.rpartition("@")[2].removeprefix("nats://")
        assert link.server == host_and_port
        assert link.max_payload == 1024 * 1024


async def test_refused_credentials_raise_an_authorization_error_without_the_password(world: World) -> None:
    await world.refuse_credentials()
    with pytest.raises(AuthorizationError) as caught:
        async with link_of(world):
            pytest.fail("entered with credentials that the server does not know")
    assert caught.value.reason == "authorization"
    assert PASSWORD not in str(caught.value)
    assert WRONG_PASSWORD not in str(caught.value)


async def test_connecting_to_a_dead_server_raises_a_link_error(world: World) -> None:
    await world.die()
    with pytest.raises(LinkError) as caught, trio.fail_after(WITHIN):
        async with link_of(world):
            pytest.fail("entered without a server")
    assert type(caught.value) is LinkError
    assert caught.value.reason == "network"


async def test_the_death_of_a_link_cancels_its_body_and_raises_a_link_error_bare(world: World) -> None:
    endings: list[BaseException] = []

    async def body() -> None:
        async with link_of(world):
            try:
                await world.die()
                await trio.sleep_forever()
            except BaseException as ending:
                endings.append(ending)
                raise

    with pytest.raises(LinkError), trio.fail_after(WITHIN):
        await body()
    assert [type(ending) for ending in endings] == [trio.Cancelled]


async def test_the_death_of_a_link_ends_the_tasks_of_its_body(world: World) -> None:
    async def body() -> None:
        async with link_of(world) as link, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(trio.sleep_forever)
            await link.fence()
            await world.die()

    with pytest.raises(LinkError), trio.fail_after(WITHIN):
        await body()


async def test_an_error_of_the_body_comes_through_bare(world: World) -> None:
    mistake = ValueError("a mistake of the body")
    with pytest.raises(ValueError, match="a mistake") as caught:
        async with link_of(world):
            raise mistake
    assert caught.value is mistake


async def test_cancelling_the_body_is_no_death(world: World) -> None:
    with trio.CancelScope() as scope:
        async with link_of(world):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_acks_on_a_dead_link_raise_a_link_error(world: World) -> None:
    kept: list[Link] = []

    async def body() -> None:
        async with link_of(world) as link:
            kept.append(link)
            await world.die()
            await trio.sleep_forever()

    with pytest.raises(LinkError), trio.fail_after(WITHIN):
        await body()
    reply = b"$JS.ACK.ORDERS.router.1.1.1.1700000000000000000.0"
    assert [refused for refused, _ in kept[0].ack([reply, reply])] == [reply, reply]
    with pytest.raises(LinkError):
        kept[0].nak(reply, 1.0)
    with pytest.raises(LinkError):
        kept[0].in_progress(reply)


async def test_closing_a_subscription_of_a_dead_link_does_nothing(world: World) -> None:
    subscriptions = []

    async def body() -> None:
        async with link_of(world) as link:
            subscriptions.append(await link.subscribe("orders.*", Recorder()))
            await world.die()
            await trio.sleep_forever()

    with pytest.raises(LinkError), trio.fail_after(WITHIN):
        await body()
    subscriptions[0].close()
    subscriptions[0].close()


async def test_the_listener_hears_of_a_lame_duck(world: World) -> None:
    listener = Recorder()
    async with link_of(world, listener):
        await world.lame_duck()
        await listener.until(lambda recorder: recorder.lame_ducks)


# --- core ---


async def test_everything_sent_before_a_fence_is_delivered_when_it_returns_and_in_order(world: World) -> None:
    received = Recorder()
    async with link_of(world) as link:
        await link.subscribe("orders.*", received)
        batch = [operation(n, b"orders.new", b"%d" % n) for n in range(500)]
        assert await link.send(batch[:200]) == []
        assert await link.send(batch[200:]) == []
        await link.fence()
        # A server answers on one socket in order, so what it sent to ourselves is here as well.
        assert [payload(raw) for raw in received.messages] == [b"%d" % n for n in range(500)]


async def test_messages_come_in_batches(world: World) -> None:
    received = Recorder()
    async with link_of(world) as link:
        await link.subscribe("orders.*", received)
        await link.send([operation(n, b"orders.new") for n in range(500)])
        await link.fence()
    assert len(received.messages) == 500
    assert len(received.batches) < 50


async def test_the_listener_hears_when_all_that_came_at_one_time_is_handed_out(world: World) -> None:
    listener = Recorder()
    async with link_of(world, listener) as link:
        await link.subscribe("one.*", listener)
        await link.subscribe("two.*", listener)
        listener.events.clear()
        await link.send([operation(n, b"one.a" if n % 2 else b"two.a") for n in range(100)])
        await listener.until_delivered(100)
        await listener.until(lambda heard: heard.events[-1] == "handed out")
        # Whatever came in one read is delivered before: one batch for each subscription, and nothing after the end.
        assert listener.events.count("handed out") <= listener.events.count("delivered")
        assert listener.events[0] == "delivered"


async def test_what_comes_at_one_time_for_several_subscriptions_is_delivered_together(world: World) -> None:
    first, second, alone = Recorder(), Recorder(), Recorder()
    calls: list[int] = []

    def together(touched: Sequence[SubscriptionBatch]) -> None:
        calls.append(len(touched))
        for arrivals in touched:
            arrivals.key(arrivals)

    async with link_of(world) as link:
        await link.subscribe("one.*", SharedDelivery(together, first))
        await link.subscribe("alone.*", alone)
        await link.subscribe("two.*", SharedDelivery(together, second))
        subjects = (b"one.a", b"two.a", b"alone.a")
        await link.send([operation(n, subjects[n % 3], b"%d" % n) for n in range(300)])
        await link.fence()
    for place, one in enumerate((first, second, alone)):
        assert [int(payload(raw)) for raw in one.messages] == [*range(place, 300, 3)]
    assert 2 in calls
    assert len(calls) < 50


@pytest.mark.parametrize("sent", [(b"end", b"kept.a", b"closed.a"), (b"closed.a", b"kept.a", b"end")])
async def test_what_is_delivered_together_has_nothing_of_a_subscription_that_another_one_has_closed(
    world: World, sent: tuple[bytes, ...]
) -> None:
    closed, kept = Recorder(), Recorder()
    subscriptions: list[Subscription] = []
    before: list[int] = []

    def together(touched: Sequence[SubscriptionBatch]) -> None:
        for arrivals in touched:
            if arrivals:
                arrivals.key(arrivals)

    def close(batch: list[RawMessage]) -> None:
        before.append(len(closed.messages))
        for subscription in subscriptions:
            subscription.close()

    async with link_of(world) as link:
        await link.subscribe("end", close)
        await link.subscribe("kept.*", SharedDelivery(together, kept))
        subscriptions.append(await link.subscribe("closed.*", SharedDelivery(together, closed)))
        await link.send([operation(n, subject) for n, subject in enumerate(sent)])
        await link.fence()
    assert len(kept.messages) == 1
    assert [len(closed.messages)] == before, "not after it was closed"


async def test_a_raw_message_is_what_the_protocol_module_says(world: World) -> None:
    received = Recorder()
    block = encode(Headers({"A": "1"}))
    async with link_of(world) as link:
        await link.subscribe("orders.*", received)
        plain = operation(1, b"orders.plain", b"abc")
        full = operation(2, b"orders.full", b"abc", headers=block)
        asking = operation(3, b"orders.asking", b"abc", headers=block)
        asking.frame = publish(b"orders.asking", b"abc", reply=b"answers.here", headers=block)
        await link.send([plain, full, asking])
        await link.fence()
    head, size = len(block), len(block) + 3
    assert received.messages == [
        (b"orders.plain", b"", 0, 3, b"3\r\nabc\r\n"),
        (b"orders.full", b"", head, size, b"%d %d\r\n%babc\r\n" % (head, size, block)),
        (b"orders.asking", b"answers.here", head, size, b"answers.here %d %d\r\n%babc\r\n" % (head, size, block)),
    ]


async def test_headers_come_through_with_repeated_names_in_order(world: World) -> None:
    received = Recorder()
    headers = Headers([("X-Trace", "1"), ("Other", "Grüße"), ("X-Trace", "2")])
    async with link_of(world) as link:
        await link.subscribe("orders.*", received)
        await link.send([operation(1, b"orders.new", b"body", headers=encode(headers))])
        (raw,) = await received.until_delivered(1)
    assert decode(header_block(raw)) == headers
    assert payload(raw) == b"body"


async def test_poison_is_delivered_byte_for_byte_and_harms_nobody(world: World) -> None:
    received = Recorder()
    async with link_of(world) as link:
        await link.subscribe("poison.>", received)
        poison = [
            operation(1, b"poison.\xff\xfe", b"no UTF-8"),
            operation(2, b"poison.\x0b\x0c", b"vertical"),
            operation(3, b"poison.header", b"bare", headers=b"NATS/1.0"),
            operation(4, b"poison.header", b"status", headers=b"NATS/1.0 \xff\xfe\r\n\r\n"),
            operation(5, b"poison.none", b"good"),
        ]
        await link.send(poison)
        await link.fence()
        await link.fence()
    assert [raw[0] for raw in received.messages] == [one.subject for one in poison]
    assert header_block(received.messages[2]) == b"NATS/1.0"
    assert [payload(raw) for raw in received.messages] == [b"no UTF-8", b"vertical", b"bare", b"status", b"good"]


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("orders.7.new", [b"orders.7.new"]),
        ("orders.*.new", [b"orders.7.new", b"orders.8.new"]),
        ("orders.>", [b"orders.7.new", b"orders.7", b"orders.8.new"]),
        ("*", [b"orders"]),
    ],
)
async def test_wildcards_select(world: World, pattern: str, taken: list[bytes]) -> None:
    received = Recorder()
    async with link_of(world) as link:
        await link.subscribe(pattern, received)
        subjects = [b"orders.7.new", b"orders", b"orders.7", b"orders.8.new", b"other.7.new"]
        await link.send([operation(n, subject) for n, subject in enumerate(subjects)])
        await link.fence()
    assert [raw[0] for raw in received.messages] == taken


async def test_a_queue_group_shares_and_a_plain_subscription_gets_all(world: World) -> None:
    first, second, all_of_it = Recorder(), Recorder(), Recorder()
    async with link_of(world) as link:
        await link.subscribe("orders.*", first, queue="routers")
        await link.subscribe("orders.*", second, queue="routers")
        await link.subscribe("orders.*", all_of_it)
        await link.send([operation(n, b"orders.new", b"%d" % n) for n in range(200)])
        await link.fence()
    shares = [[int(payload(raw)) for raw in recorder.messages] for recorder in (first, second)]
    assert all(shares)
    assert sorted(shares[0] + shares[1]) == list(range(200))
    assert len(all_of_it.messages) == 200


async def test_a_subscription_gets_what_other_clients_publish(world: World) -> None:
    received = Recorder()
    async with link_of(world) as link:
        await link.subscribe("orders.*", received)
        await world.publish("orders.new", b"from elsewhere")
        (raw,) = await received.until_delivered(1)
    assert payload(raw) == b"from elsewhere"


async def test_a_closed_subscription_gets_nothing_more(world: World) -> None:
    closed, other = Recorder(), Recorder()
    async with link_of(world) as link:
        subscription = await link.subscribe("orders.*", closed)
        await link.subscribe("orders.*", other)
        await link.send([operation(1, b"orders.new")])
        await link.fence()
        subscription.close()
        subscription.close()
        await link.send([operation(2, b"orders.new")])
        await link.fence()
    assert (len(closed.messages), len(other.messages)) == (1, 2)


async def test_a_drained_subscription_gets_all_that_was_sent_before_and_nothing_after(world: World) -> None:
    drained, other = Recorder(), Recorder()
    async with link_of(world) as link:
        subscription = await link.subscribe("orders.*", drained)
        await link.subscribe("orders.*", other)
        await link.send([operation(n, b"orders.new", b"%d" % n) for n in range(300)])
        await subscription.drain()
        assert [payload(raw) for raw in drained.messages] == [b"%d" % n for n in range(300)]
        await link.send([operation(300, b"orders.new")])
        await link.fence()
        await subscription.drain()
        subscription.close()
    assert (len(drained.messages), len(other.messages)) == (300, 301)


# --- what is refused ---


async def test_a_denied_publish_is_told_before_the_fence_and_the_others_go_through(world: World) -> None:
    listener, received = Recorder(), Recorder()
    async with link_of(world, listener) as link:
        await link.subscribe("orders.*", received)
        await link.send([operation(1, b"denied.a"), operation(2, b"orders.new"), operation(3, b"denied.b")])
        await link.fence()
        assert [subject for subject, _ in listener.denied] == [b"denied.a", b"denied.b"]
        assert "denied.a" in listener.denied[0][1]
        assert len(received.messages) == 1


async def test_a_denied_subscription_raises_a_source_error_and_the_link_lives(world: World) -> None:
    received = Recorder()
    async with link_of(world) as link:
        with pytest.raises(SourceError, match=r"secret\.plans") as caught:
            await link.subscribe("secret.plans", Recorder())
        assert caught.value.reason == "permission_denied"
        await link.subscribe("orders.*", received)
        await link.send([operation(1, b"orders.new")])
        await link.fence()
    assert len(received.messages) == 1


async def test_what_is_too_large_is_refused_and_not_written(world: World) -> None:
    received = Recorder()
    block = encode(Headers({"A": "1"}))
    async with link_of(world) as link:
        await link.subscribe("orders.*", received)
        limit = link.max_payload
        fits = operation(1, b"orders.fits", bytes(limit))
        fits_with_headers = operation(2, b"orders.fits", bytes(limit - len(block)), headers=block)
        large = operation(3, b"orders.large", bytes(limit + 1))
        large_by_headers = operation(4, b"orders.large", bytes(limit - len(block) + 1), headers=block)
        refusals = await link.send([fits, large, large_by_headers, fits_with_headers])
        await link.fence()
    assert [refusal.operation for refusal in refusals] == [large, large_by_headers]
    assert {(refusal.reason, refusal.retriable) for refusal in refusals} == {("too_large", False)}
    assert str(limit) in refusals[0].detail
    assert [raw[0] for raw in received.messages] == [b"orders.fits", b"orders.fits"]


# --- JetStream, publishing ---


async def test_pub_acks_reach_the_listener_with_stream_and_sequence(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    async with link_of(world, listener) as link:
        await link.send([operation_with_ack(n, b"orders.new", b"%d" % n) for n in range(41, 44)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
    assert listener.acks == {41: ("ORDERS", 1, False), 42: ("ORDERS", 2, False), 43: ("ORDERS", 3, False)}
    assert await world.payloads("ORDERS") == [b"41", b"42", b"43"]


async def test_a_message_id_seen_before_is_acked_as_a_duplicate_of_the_first(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    headers = encode(Headers({"Nats-Msg-Id": "order-7"}))
    async with link_of(world, listener) as link:
        await link.send([operation_with_ack(1, b"orders.new", b"first", headers=headers)])
        await link.send([operation_with_ack(2, b"orders.new", b"other")])
        await link.send([operation_with_ack(3, b"orders.new", b"again", headers=headers)])
        await listener.until(lambda recorder: len(recorder.acks) == 3)
    assert listener.acks == {1: ("ORDERS", 1, False), 2: ("ORDERS", 2, False), 3: ("ORDERS", 1, True)}
    assert await world.payloads("ORDERS") == [b"first", b"other"]


async def test_a_core_publish_is_stored_too_and_gets_no_ack(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    async with link_of(world, listener) as link:
        await link.send([operation(1, b"orders.new", b"core")])
        await link.send([operation_with_ack(2, b"orders.new", b"with ack")])
        await listener.until(lambda recorder: recorder.acks)
    assert listener.acks == {2: ("ORDERS", 2, False)}
    assert await world.payloads("ORDERS") == [b"core", b"with ack"]


async def test_no_stream_for_the_subject_is_no_responders_and_worth_another_try(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    listener = Recorder()
    async with link_of(world, listener) as link:
        await link.send([operation_with_ack(1, b"nobody.home"), operation_with_ack(2, b"orders.new")])
        await listener.until(lambda recorder: recorder.acks and recorder.refusals)
    assert listener.refusals == {1: ("no_responders", True)}
    assert listener.acks == {2: ("ORDERS", 1, False)}


async def test_a_full_stream_refuses_and_another_try_does_not_help(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"], max_messages=1)
    listener = Recorder()
    async with link_of(world, listener) as link:
        await link.send([operation_with_ack(1, b"orders.new", b"in"), operation_with_ack(2, b"orders.new", b"out")])
        await listener.until(lambda recorder: recorder.acks and recorder.refusals)
    assert listener.refusals == {2: ("limit", False)}
    assert await world.payloads("ORDERS") == [b"in"]


# --- JetStream, consuming ---


def sequences(raws: list[RawMessage]) -> list[int]:
    """The stream's sequence of each, out of its ack subject."""
    return [int(raw[1].split(b".")[5]) for raw in raws]


def delivered(raw: RawMessage) -> int:
    """How often it was delivered."""
    return int(raw[1].split(b".")[4])


async def test_a_pull_gets_a_batch_of_the_oldest_and_each_message_says_where_it_is_from(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(5):
        await world.publish(f"orders.{n}", b"%d" % n)
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        assert consumer.ack_wait == 1.0
        consumer.pull(3, 5.0)
        first = await received.until_delivered(3)
        assert [raw[0] for raw in first] == [b"orders.0", b"orders.1", b"orders.2"]
        assert [payload(raw) for raw in first] == [b"0", b"1", b"2"]
        consumer.pull(10, 5.0)
        raws = await received.until_delivered(5)
    for n, raw in enumerate(raws, 1):
        words = raw[1].split(b".")
        assert words[:7] == [b"$JS", b"ACK", b"ORDERS", b"router", b"1", b"%d" % n, b"%d" % n]
        assert int(words[7]) > 1_600_000_000_000_000_000
        assert words[8:] == [b"%d" % (5 - n)]


async def test_a_pull_waits_for_what_is_published_later(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        await link.fence()
        await link.send([operation(1, b"orders.a", b"a"), operation(2, b"orders.b", b"b")])
        raws = await received.until_delivered(2)
    assert [payload(raw) for raw in raws] == [b"a", b"b"]


async def test_a_pull_that_expires_ends_with_status_408(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 0.3)
        message, ending = await received.until_delivered(2)
    assert sequences([message]) == [1]
    assert status(header_block(ending)) == (408, "Request Timeout")
    assert ending[1] == payload(ending) == b""


def ending(raw: RawMessage) -> tuple[int, str, int | None, int | None]:
    """Code and description of a status, and what the request did not bring: messages and bytes."""
    block = header_block(raw)
    left = (find_number(block, name) for name in (b"Nats-Pending-Messages", b"Nats-Pending-Bytes"))
    return (*status(block), *left)  # type: ignore[return-value]


async def test_a_pull_ends_before_the_message_that_is_larger_than_what_is_left_of_its_bytes(world: World) -> None:
    """The sizes of both are the same to the byte, with subject and reply."""
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(12):
        await world.publish("orders.a", b"x" * (100 * n))
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 5.0, 700)
        *messages, over = await received.until_delivered(4)
        assert sequences(messages) == [1, 2, 3]
        assert ending(over) == (409, "Message Size Exceeds MaxBytes", 2, 700 - delivered_size(messages))
        consumer.pull(5, 5.0, 100)
        (at_once,) = (await received.until_delivered(5))[4:]
        assert ending(at_once) == (409, "Message Size Exceeds MaxBytes", 5, 100)
        consumer.pull(2, 5.0, 5000)
        *messages, over = (await received.until_delivered(8))[5:]
        assert sequences(messages) == [4, 5]
        assert ending(over) == (409, "Batch Completed", 0, 5000 - delivered_size(messages))


async def test_a_pull_that_is_filled_to_the_last_byte_ends_without_a_word(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for _ in range(3):
        await world.publish("orders.a", b"x" * 100)
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(1, 5.0)
        (first,) = await received.until_delivered(1)
        consumer.pull(5, 5.0, delivered_size([first]))
        await link.fence()
        consumer.pull(5, 0.3, 10_000)
        _, second, third, over = await received.until_delivered(4)
    assert sequences([second, third]) == [2, 3]
    assert ending(over) == (408, "Request Timeout", 4, 10_000 - delivered_size([third]))


async def test_two_pulls_share_what_comes_and_what_is_too_large_ends_both(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(5, 5.0, 400)
        consumer.pull(5, 5.0, 500)
        await link.fence()
        await world.publish("orders.a", b"x")
        await world.publish("orders.a", b"x" * 1000)
        message, *over = await received.until_delivered(3)
    left = [ending(raw)[2:] for raw in over]
    assert sequences([message]) == [1]
    assert sum(messages or 0 for messages, _ in left) == 9
    assert sum(size or 0 for _, size in left) == 900 - delivered_size([message])


async def test_an_acked_message_does_not_come_again_and_an_unacked_one_does(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    await world.publish("orders.b")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        first = await received.until_delivered(2)
        assert not link.ack([first[0][1]])
        consumer.pull(2, 2.5)
        again = (await received.until_delivered(3))[2]
        assert sequences([again]) == [2]
        assert delivered(again) == 2
        assert not link.ack([again[1]])
        ending = (await received.until_delivered(4))[3]
    assert status(header_block(ending))[0] == 408


async def test_a_nak_brings_a_message_again_after_its_delay(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        consumer.pull(3, 10.0)
        first = (await received.until_delivered(1))[0]
        asked_at = trio.current_time()
        link.nak(first[1], 0.0)
        second = (await received.until_delivered(2))[1]
        link.nak(second[1], 0.5)
        third = (await received.until_delivered(3))[2]
        took = trio.current_time() - asked_at
    assert [delivered(raw) for raw in (first, second, third)] == [1, 2, 3]
    assert 0.5 <= took < 3.0


async def test_in_progress_starts_the_ack_wait_anew(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 30.0)
        first = (await received.until_delivered(1))[0]
        started_at = trio.current_time()
        for _ in range(4):
            await trio.sleep(0.5)
            link.in_progress(first[1])
        again = (await received.until_delivered(2))[1]
        took = trio.current_time() - started_at
    assert delivered(again) == 2
    assert took >= 2.9  # half a second four times, then the ack wait


async def test_max_deliver_ends_the_deliveries(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=0.3, max_deliver=2), received)
        consumer.pull(3, 2.0)
        *messages, ending = await received.until_delivered(3)
    assert [delivered(raw) for raw in messages] == [1, 2]
    assert status(header_block(ending))[0] == 408


async def test_max_ack_pending_holds_back_until_something_is_acked(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(3):
        await world.publish(f"orders.{n}")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0, max_ack_pending=2), received)
        consumer.pull(3, 0.4)
        *messages, ending = await received.until_delivered(3)
        assert sequences(messages) == [1, 2]
        assert status(header_block(ending))[0] == 408
        consumer.pull(3, 5.0)
        assert not link.ack([messages[0][1]])
        third = (await received.until_delivered(4))[3]
    assert sequences([third]) == [3]


async def test_a_filter_selects(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for subject in ("orders.eu.1", "orders.us.1", "orders.eu.2"):
        await world.publish(subject)
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(replace(SPEC, filter_subject="orders.eu.*"), received)
        consumer.pull(2, 5.0)
        raws = await received.until_delivered(2)
    assert [raw[0] for raw in raws] == [b"orders.eu.1", b"orders.eu.2"]
    assert [raw[1].split(b".")[8] for raw in raws] == [b"1", b"0"]


async def test_a_durable_goes_on_where_the_last_link_left_off(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(4):
        await world.publish(f"orders.{n}")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(2, 5.0)
        for raw in await received.until_delivered(2):
            assert not link.ack([raw[1]])
        await link.fence()
    later = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, later)
        consumer.pull(2, 5.0)
        raws = await later.until_delivered(2)
    assert sequences(raws) == [3, 4]


async def test_a_durable_that_exists_is_taken_with_its_own_ack_wait(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    async with link_of(world) as link:
        first = await link.open_consumer(SPEC, Recorder())
        second = await link.open_consumer(replace(SPEC, ack_wait=7.0), Recorder())
    assert (first.ack_wait, second.ack_wait) == (1.0, 1.0)


async def test_a_missing_stream_raises_a_source_error_that_names_it(world: World) -> None:
    async with link_of(world) as link:
        with pytest.raises(SourceError, match="ORDERS") as caught:
            await link.open_consumer(SPEC, Recorder())
        assert caught.value.reason == "stream_not_found"
        await link.fence()


async def test_a_durable_with_another_filter_raises_a_source_error_that_names_both(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    async with link_of(world) as link:
        await link.open_consumer(replace(SPEC, filter_subject="orders.eu.*"), Recorder())
        with pytest.raises(SourceError) as caught:
            await link.open_consumer(replace(SPEC, filter_subject="orders.us.*"), Recorder())
        assert caught.value.reason == "consumer_mismatch"
        assert "router" in str(caught.value)
        assert "orders.eu.*" in str(caught.value)
        assert "orders.us.*" in str(caught.value)
        await link.fence()


async def test_who_pulls_hears_that_the_consumer_was_deleted(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 5.0)
        await link.fence()
        await world.delete_consumer("ORDERS", "router")
        (ending,) = await received.until_delivered(1)
        assert status(header_block(ending)) == (409, "Consumer Deleted")
        consumer.pull(3, 5.0)
        nobody = (await received.until_delivered(2))[1]
        assert status(header_block(nobody))[0] == 503


async def test_who_pulls_hears_that_the_stream_was_deleted_and_publishes_find_nobody(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    listener, received = Recorder(), Recorder()
    async with link_of(world, listener) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 5.0)
        await link.fence()
        await world.delete_stream("ORDERS")
        (ending,) = await received.until_delivered(1)
        assert status(header_block(ending)) == (409, "Consumer Deleted")
        await link.send([operation_with_ack(1, b"orders.new")])
        await listener.until(lambda recorder: recorder.refusals)
    assert listener.refusals == {1: ("no_responders", True)}


async def test_what_a_dead_link_left_unacked_comes_again_on_the_next_one(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    first, second = Recorder(), Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, first)
        consumer.pull(5, 30.0)
        await first.until_delivered(1)
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, second)
        consumer.pull(5, 5.0)
        (raw,) = await second.until_delivered(1)
    assert sequences([raw]) == [1]
    assert delivered(raw) == 2


async def test_a_consumer_knows_how_far_it_was_when_it_was_opened(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    spec = replace(SPEC, ack_wait=30.0)
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(spec, received)
        assert consumer.progress == Progress(0, in_use=False)
        assert await consumer.unacked(1) == []
        for n in range(4):
            await world.publish(f"orders.{n}")
        consumer.pull(3, 30.0)
        raws = await received.until_delivered(3)
        assert not link.ack([raws[0][1]])
        await link.fence()
    async with link_of(world) as link:
        consumer = await link.open_consumer(spec, Recorder())
        assert consumer.progress == Progress(3, in_use=False)
        assert [await consumer.unacked(first) for first in (1, 3, 4)] == [[2, 3], [3], []]


async def test_a_consumer_that_another_link_waits_at_is_in_use(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    async with link_of(world) as link, world.connect(world.server, b"_INBOX.other", Recorder()) as other:
        consumer = await link.open_consumer(SPEC, Recorder())
        consumer.pull(3, 30.0)
        await link.fence()
        assert (await other.open_consumer(SPEC, Recorder())).progress.in_use


async def test_what_is_asked_for_again_comes_at_once_and_before_what_is_new(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    spec = replace(SPEC, ack_wait=30.0)
    for n in range(5):
        await world.publish(f"orders.{n}")
    first, second = Recorder(), Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(spec, first)
        consumer.pull(4, 30.0)
        raws = await first.until_delivered(4)
        assert not link.ack([raws[1][1]])
        await link.fence()
    async with link_of(world) as link:
        consumer = await link.open_consumer(spec, second)
        # The second has an ack, the fifth was never delivered, a sixth there is none: those are left alone.
        await consumer.again([1, 2, 3, 5, 6])
        consumer.pull(10, 5.0)
        again = await second.until_delivered(3)
    assert sequences(again) == [1, 3, 5]
    assert [delivered(raw) for raw in again] == [2, 2, 1]


async def test_what_is_asked_for_again_keeps_its_order_whatever_was_due_before(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(5):
        await world.publish(f"orders.{n}")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        consumer.pull(5, 30.0)
        await received.until_delivered(5)
    async with link_of(world) as link:
        again = Recorder()
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), again)
        await consumer.again([4])
        await consumer.again([1, 2, 3, 4, 5])
        consumer.pull(10, 5.0)
        raws = await again.until_delivered(5)
    assert sequences(raws) == [1, 2, 3, 4, 5]


async def test_two_links_share_a_consumer_and_nothing_comes_twice(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    first, second = Recorder(), Recorder()
    async with link_of(world) as one, world.connect(world.server, b"_INBOX.other", Recorder()) as other:
        for link, received in ((one, first), (other, second)):
            consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
            consumer.pull(10, 5.0)
            await link.fence()
        await one.send([operation(n, b"orders.new") for n in range(20)])
        await first.until_delivered(10)
        await second.until_delivered(10)
    assert sorted(sequences(first.messages + second.messages)) == list(range(1, 21))


async def test_a_drained_consumer_leaves_nothing_undelivered_and_nothing_more_comes(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    drained, other = Recorder(), Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), drained)
        consumer.pull(50, 30.0)
        await link.send([operation(n, b"orders.new") for n in range(20)])
        await drained.until_delivered(20)
        await consumer.drain()
        await link.send([operation(20, b"orders.new")])
        successor = await link.open_consumer(replace(SPEC, ack_wait=30.0), other)
        successor.pull(1, 5.0)
        (raw,) = await other.until_delivered(1)
    assert sequences(drained.messages) == list(range(1, 21))
    assert sequences([raw]) == [21]


async def test_a_durable_made_again_resumes_only_in_the_same_incarnation_of_its_stream(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(4):
        await world.publish(f"orders.{n}")
    lost, resumed, anew = Recorder(), Recorder(), Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, lost)
        resuming = replace(SPEC, start_sequence=3, stream_created=consumer.stream_created)
        await world.delete_consumer("ORDERS", "router")
        consumer = await link.open_consumer(resuming, resumed)
        assert consumer.stream_created == resuming.stream_created
        consumer.pull(1, 5.0)
        assert sequences(await resumed.until_delivered(1)) == [3]
        await world.delete_stream("ORDERS")
        await world.add_stream("ORDERS", ["orders.>"])
        for n in range(4):
            await world.publish(f"orders.{n}")
        consumer = await link.open_consumer(resuming, anew)
        assert consumer.stream_created != resuming.stream_created
        consumer.pull(1, 5.0)
        assert sequences(await anew.until_delivered(1)) == [1]


@pytest.mark.parametrize(
    ("last_sequence", "off", "went_back"),
    [(4, 0, False), (1, 0, False), (2, 0, False), (5, 0, True), (4, 1, True), (1, 1, True), (2, -1_000_000_000, True)],
)
async def test_a_stream_that_contradicts_what_is_known_of_it_went_back(
    world: World, last_sequence: int, off: int, went_back: bool
) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(4):
        await world.publish(f"orders.{n}")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(4, 5.0)
        times = [int(raw[1].split(b".")[7]) for raw in await received.until_delivered(4)]
        known = replace(
            SPEC,
            stream_created=consumer.stream_created,
            last_sequence=last_sequence,
            last_time=times[min(last_sequence, 4) - 1] + off,
        )
        assert ((await link.open_consumer(known, Recorder())).went_back is not None) is went_back


async def test_a_durable_made_again_in_a_stream_that_went_back_starts_at_the_beginning(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(4):
        await world.publish(f"orders.{n}")
    received = Recorder()
    async with link_of(world) as link:
        created = (await link.open_consumer(SPEC, Recorder())).stream_created
        await world.delete_consumer("ORDERS", "router")
        known = replace(SPEC, stream_created=created, start_sequence=4, last_sequence=3, last_time=2**62)
        consumer = await link.open_consumer(known, received)
        assert consumer.went_back is not None
        consumer.pull(1, 5.0)
        assert sequences(await received.until_delivered(1)) == [1]


async def test_what_was_delivered_is_gone_when_its_stream_or_its_consumer_has_it_no_more(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    for n in range(6):
        await world.publish(f"orders.{n}")
    received = Recorder()
    async with link_of(world) as link, world.connect(world.server, b"_INBOX.other", Recorder()) as other:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=30.0), received)
        consumer.pull(5, 5.0)
        raws = await received.until_delivered(5)
        times = {sequence: raw[1].split(b".")[7] for sequence, raw in enumerate(raws, 1)}
        late = {sequence: times[sequence] for sequence in (1, 2, 3)}
        assert not await consumer.gone(late, 2)
        assert not other.ack([raws[0][1], raws[1][1]])
        await other.fence()
        assert sorted(await consumer.gone(late, 2)) == [1, 2], "those before are acked too"
        assert not other.ack([raws[4][1]])
        link.nak(raws[2][1], 20.0)
        await other.fence()
        await link.fence()
        assert not await consumer.gone({3: times[3]}, 1)


async def test_what_was_delivered_is_gone_when_the_stream_has_another_message_there(world: World) -> None:
    """Also one that the consumer of the new stream will not deliver."""
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    spec, received = replace(SPEC, filter_subject="orders.a", ack_wait=30.0), Recorder()
    async with link_of(world) as link, world.connect(world.server, b"_INBOX.other", Recorder()) as other:
        consumer = await link.open_consumer(spec, received)
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)
        awaited = {1: raw[1].split(b".")[7]}
        await world.delete_stream("ORDERS")
        await world.add_stream("ORDERS", ["orders.>"])
        await world.publish("orders.b")
        await world.publish("orders.a")
        await other.open_consumer(spec, Recorder())
        assert [*await consumer.gone(awaited, 0)] == [1]
        assert not await consumer.gone({2: b""}, 0)


async def test_who_says_that_it_works_on_a_message_uses_the_consumer(world: World, clock: object) -> None:
    """Though it waits for no more, and acks nothing."""
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    spec, received = replace(SPEC, ack_wait=30.0), Recorder()
    async with link_of(world) as link, world.connect(world.server, b"_INBOX.other", Recorder()) as other:
        consumer = await link.open_consumer(spec, received)
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)

        async def work() -> None:
            while True:
                link.in_progress(raw[1])
                await trio.sleep(SIGN_OF_WORK_EVERY)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            assert (await other.open_consumer(spec, Recorder())).progress.in_use
            nursery.cancel_scope.cancel()
        await trio.sleep(SIGN_OF_WORK_EVERY)
        assert not (await other.open_consumer(spec, Recorder())).progress.in_use


async def test_an_idle_pull_gives_signs_of_life(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        consumer.pull(3, 30.0)
        (sign,) = await received.until_delivered(1, within=8.0)
    assert status(header_block(sign)) == (100, "Idle Heartbeat")


async def test_a_closed_consumer_takes_nothing_more_and_the_next_one_gets_it(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    closed, other = Recorder(), Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, closed)
        consumer.pull(3, 30.0)
        await link.fence()
        consumer.close()
        await link.fence()
        successor = await link.open_consumer(SPEC, other)
        successor.pull(1, 5.0)
        await world.publish("orders.a")
        (raw,) = await other.until_delivered(1)
    assert closed.messages == []
    assert sequences([raw]) == [1]


async def test_a_limit_of_deliveries_is_lifted(world: World, clock: object) -> None:
    """It counts what was delivered, also to links that died, and not what failed."""
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    async with link_of(world) as link:
        consumer = await link.open_consumer(replace(SPEC, max_deliver=2), Recorder())
        assert consumer.limits == Limits(2, SPEC.max_ack_pending, "limits")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        assert consumer.limits == Limits(-1, SPEC.max_ack_pending, "limits")
        consumer.pull(10, 5.0)
        for number in range(1, 6):
            link.nak((await received.until_delivered(number))[-1][1], 0.0)
        assert [delivered(raw) for raw in received.messages] == [1, 2, 3, 4, 5]


async def test_what_is_terminated_is_not_delivered_again(world: World, clock: object) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    await world.publish("orders.a")
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(replace(SPEC, ack_wait=0.3), received)
        consumer.pull(2, 1.5)
        link.term((await received.until_delivered(1))[0][1], "it was bad")
        *messages, ending = await received.until_delivered(2)
    assert len(messages) == 1
    assert status(header_block(ending))[0] == 408
    assert await world.payloads("ORDERS") == [b""], "the stream keeps it"


# --- lookups ---


async def test_streams_are_found_by_what_they_take(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>", "old.*.x"])
    await world.add_stream("OTHER", ["other.a", "other.b"])
    async with link_of(world) as link:
        for subject, names in {
            "orders.new": ["ORDERS"],
            "orders.*": ["ORDERS"],
            "old.>": ["ORDERS"],
            "other.*": ["OTHER"],
            "other.c": [],
            "*.a": ["ORDERS", "OTHER"],
            ">": ["ORDERS", "OTHER"],
            "none.>": [],
        }.items():
            assert sorted(await link.find_streams(subject)) == names, subject


async def holding(link: Link, stream: str, count: int) -> StreamState:
    """The state of a stream once it has stored so many messages: a server says PONG to a publish before that."""
    with trio.fail_after(10):
        while (state := await link.stream_state(stream)) is None or state.held < count:
            await trio.sleep(0.01)
    return state


async def test_a_stream_tells_whether_it_takes_a_message(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"], max_messages=2)
    async with link_of(world) as link:
        state = await link.stream_state("ORDERS")
        assert state is not None
        assert (state.name, state.subjects) == ("ORDERS", ("orders.>",))
        assert (state.refuses, state.room, state.held) == (None, (2, inf), 0)
        before = state
        await world.publish("orders.new")
        state = await holding(link, "ORDERS", 1)
        assert (state.refuses, state.room) == (None, (1, inf))
        await world.publish("orders.new")
        state = await holding(link, "ORDERS", 2)
        assert state.refuses is not None
        assert (state.refuses[0], state.room[0], state.held) == ("stream_full", 0, 2)
        assert before.has_more_room_than(state)
        assert not state.has_more_room_than(before)
        assert "'ORDERS' is full" in state.refuses[1]


async def test_a_sealed_stream_says_so_and_refuses(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    await world.edit_stream("ORDERS", sealed=True)
    listener = Recorder()
    async with link_of(world, listener) as link:
        state = await link.stream_state("ORDERS")
        assert state is not None
        assert state.refuses is not None
        assert state.refuses[0] == "stream_sealed"
        await link.send([operation_with_ack(1, b"orders.new")])
        await listener.until(lambda recorder: recorder.refusals)
    assert listener.refusals == {1: ("jetstream_10109", False)}


async def test_a_stream_that_is_edited_or_gone_says_so(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    async with link_of(world) as link:
        await world.edit_stream("ORDERS", "other.>")
        assert not await link.find_streams("orders.new")
        state = await link.stream_state("ORDERS")
        assert state is not None
        assert state.subjects == ("other.>",)
        await world.delete_stream("ORDERS")
        assert await link.stream_state("ORDERS") is None


async def test_what_may_not_be_looked_up_is_an_error_that_says_nothing_of_it(world: World) -> None:
    async with link_of(world) as link:
        began = trio.current_time()
        with pytest.raises(SourceError) as caught:
            await link.stream_state("SECRET")
        assert caught.value.reason == "permission_denied"
        assert caught.value.reason in LOOKUP_FAILED
        assert trio.current_time() - began < LOOKUP_WITHIN, "the server has said so"
        assert await link.stream_state("ORDERS") is None


async def test_a_consumer_that_is_paused_says_so_until_it_goes_on(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        assert await consumer.check() is None
        await world.pause_consumer("ORDERS", "router", 60.0)
        assert "is paused" in str(await consumer.check())
        await world.pause_consumer("ORDERS", "router", 0.0)
        assert await consumer.check() is None


async def test_a_consumer_that_delivers_only_headers_is_refused_by_name(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        await world.edit_consumer("ORDERS", "router", headers_only=True)
        for refused in (consumer.check(), link.open_consumer(SPEC, Recorder())):
            with pytest.raises(SourceError, match="headers_only") as caught:
                await refused
            assert caught.value.reason == "consumer_mismatch"
        await world.edit_consumer("ORDERS", "router", headers_only=False)
        assert await consumer.check() is None


async def test_a_consumer_that_is_gone_says_so(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, Recorder())
        await world.delete_consumer("ORDERS", "router")
        with pytest.raises(SourceError) as caught:
            await consumer.check()
        assert caught.value.reason == "consumer_not_found"


async def test_a_message_without_its_payload_tells_how_large_that_is(world: World) -> None:
    await world.add_stream("ORDERS", ["orders.>"])
    received = Recorder()
    async with link_of(world) as link:
        consumer = await link.open_consumer(SPEC, received)
        await world.edit_consumer("ORDERS", "router", headers_only=True)
        await world.publish("orders.new", b"12345")
        consumer.pull(1, 5.0)
        (raw,) = await received.until_delivered(1)
    assert payload(raw) == b""
    assert find_number(header_block(raw), b"Nats-Msg-Size") == 5
