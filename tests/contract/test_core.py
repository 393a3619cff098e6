"""Promises of `router_trio.link` about core publishes and subscriptions, and about what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from router_trio.errors import LinkError, SourceError
from router_trio.link import Deliver, SharedDelivery, Subscription, SubscriptionBatch
from router_trio.protocol.framing import RawMessage, header_block, payload, publish
from router_trio.protocol.headers import Headers, decode, encode
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder, operation

# --- core ---


async def test_everything_sent_before_a_fence_is_delivered_when_it_returns_and_in_order(peer: Peer) -> None:
    received = Recorder()
    async with link_of(peer) as link:
        await link.subscribe("orders.*", received)
        batch = [operation(n, b"orders.new", b"%d" % n) for n in range(500)]
        assert await link.send(batch[:200]) == []
        assert await link.send(batch[200:]) == []
        await link.fence()
        # A server answers on one socket in order, so its deliveries to this link have arrived as well.
        assert [payload(raw) for raw in received.messages] == [b"%d" % n for n in range(500)]


async def test_messages_are_delivered_in_batches(peer: Peer) -> None:
    received = Recorder()
    async with link_of(peer) as link:
        await link.subscribe("orders.*", received)
        await link.send([operation(n, b"orders.new") for n in range(500)])
        await link.fence()
    assert len(received.messages) == 500
    assert len(received.batches) < 50


async def test_the_listener_is_notified_after_all_messages_of_a_read_are_delivered(peer: Peer) -> None:
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.subscribe("one.*", listener)
        await link.subscribe("two.*", listener)
        listener.events.clear()
        await link.send([operation(n, b"one.a" if n % 2 else b"two.a") for n in range(100)])
        await listener.until_delivered(100)
        await listener.until(lambda heard: heard.events[-1] == "handed out")
        # The messages of one read are delivered first: one batch for each subscription, and nothing after the
        # notification.
        assert listener.events.count("handed out") <= listener.events.count("delivered")
        assert listener.events[0] == "delivered"


async def test_deliveries_can_be_switched_to_another_handler_between_two_messages(peer: Peer) -> None:
    takers = [Recorder() for _ in range(3)]

    def together(touched: Sequence[SubscriptionBatch]) -> None:
        for arrivals in touched:
            arrivals.key(arrivals)

    async with link_of(peer) as link:
        subscription = await link.subscribe("in.*", takers[0])
        delivers: list[Deliver | SharedDelivery] = [takers[0], SharedDelivery(together, takers[1]), takers[2]]
        for number, deliver in enumerate(delivers):
            subscription.deliver_to(deliver)
            await link.send([operation(n, b"in.a", b"%d" % n) for n in range(100 * number, 100 * number + 100)])
            await link.fence()
        subscription.close()
        subscription.deliver_to(takers[0])
        await link.send([operation(300, b"in.a", b"300")])
        await link.fence()
    numbers = [[int(payload(raw)) for raw in taker.messages] for taker in takers]
    assert numbers == [[*range(100)], [*range(100, 200)], [*range(200, 300)]]


async def test_messages_of_one_read_for_several_subscriptions_are_delivered_together(peer: Peer) -> None:
    first, second, alone = Recorder(), Recorder(), Recorder()
    calls: list[int] = []

    def together(touched: Sequence[SubscriptionBatch]) -> None:
        calls.append(len(touched))
        for arrivals in touched:
            arrivals.key(arrivals)

    async with link_of(peer) as link:
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
async def test_a_joint_delivery_has_no_messages_of_a_subscription_that_was_just_closed(
    peer: Peer, sent: tuple[bytes, ...]
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

    async with link_of(peer) as link:
        await link.subscribe("end", close)
        await link.subscribe("kept.*", SharedDelivery(together, kept))
        subscriptions.append(await link.subscribe("closed.*", SharedDelivery(together, closed)))
        await link.send([operation(n, subject) for n, subject in enumerate(sent)])
        await link.fence()
    assert len(kept.messages) == 1
    assert [len(closed.messages)] == before, "delivered after it was closed"


async def test_a_raw_message_has_the_form_that_the_protocol_module_documents(peer: Peer) -> None:
    received = Recorder()
    block = encode(Headers({"A": "1"}))
    async with link_of(peer) as link:
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


async def test_headers_arrive_with_repeated_names_in_order(peer: Peer) -> None:
    received = Recorder()
    headers = Headers([("X-Trace", "1"), ("Other", "Grüße"), ("X-Trace", "2")])
    async with link_of(peer) as link:
        await link.subscribe("orders.*", received)
        await link.send([operation(1, b"orders.new", b"body", headers=encode(headers))])
        (raw,) = await received.until_delivered(1)
    assert decode(header_block(raw)) == headers
    assert payload(raw) == b"body"


async def test_malformed_messages_are_delivered_byte_for_byte_and_disturb_no_others(peer: Peer) -> None:
    received = Recorder()
    async with link_of(peer) as link:
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
async def test_a_subscription_gets_what_its_wildcards_match(peer: Peer, pattern: str, taken: list[bytes]) -> None:
    received = Recorder()
    async with link_of(peer) as link:
        await link.subscribe(pattern, received)
        subjects = [b"orders.7.new", b"orders", b"orders.7", b"orders.8.new", b"other.7.new"]
        await link.send([operation(n, subject) for n, subject in enumerate(subjects)])
        await link.fence()
    assert [raw[0] for raw in received.messages] == taken


async def test_a_queue_group_shares_and_a_plain_subscription_gets_all(peer: Peer) -> None:
    first, second, all_of_it = Recorder(), Recorder(), Recorder()
    async with link_of(peer) as link:
        await link.subscribe("orders.*", first, queue="routers")
        await link.subscribe("orders.*", second, queue="routers")
        await link.subscribe("orders.*", all_of_it)
        await link.send([operation(n, b"orders.new", b"%d" % n) for n in range(200)])
        await link.fence()
    shares = [[int(payload(raw)) for raw in recorder.messages] for recorder in (first, second)]
    assert all(shares)
    assert sorted(shares[0] + shares[1]) == list(range(200))
    assert len(all_of_it.messages) == 200


async def test_a_subscription_gets_what_other_clients_publish(peer: Peer) -> None:
    received = Recorder()
    async with link_of(peer) as link:
        await link.subscribe("orders.*", received)
        await peer.publish("orders.new", b"from elsewhere")
        (raw,) = await received.until_delivered(1)
    assert payload(raw) == b"from elsewhere"


async def test_a_closed_subscription_gets_nothing_more(peer: Peer) -> None:
    closed, other = Recorder(), Recorder()
    async with link_of(peer) as link:
        subscription = await link.subscribe("orders.*", closed)
        await link.subscribe("orders.*", other)
        await link.send([operation(1, b"orders.new")])
        await link.fence()
        subscription.close()
        subscription.close()
        await link.send([operation(2, b"orders.new")])
        await link.fence()
    assert (len(closed.messages), len(other.messages)) == (1, 2)


async def test_a_drained_subscription_gets_all_that_was_sent_before_and_nothing_after(peer: Peer) -> None:
    drained, other = Recorder(), Recorder()
    async with link_of(peer) as link:
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


async def test_a_denied_publish_is_reported_before_the_fence_and_the_others_are_delivered(peer: Peer) -> None:
    listener, received = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        await link.subscribe("orders.*", received)
        await link.send([operation(1, b"denied.a"), operation(2, b"orders.new"), operation(3, b"denied.b")])
        await link.fence()
        assert [subject for subject, _ in listener.denied] == [b"denied.a", b"denied.b"]
        assert "denied.a" in listener.denied[0][1]
        assert len(received.messages) == 1


async def test_a_response_is_delivered_and_a_denied_one_is_reported_before_the_fence(peer: Peer) -> None:
    listener, received = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        await link.subscribe("asked.*", received)
        link.respond(b"denied.a", b"refused")
        link.respond(b"asked.7", b"answer")
        link.respond(b"asked.8", b"")
        await link.fence()
        assert [subject for subject, _ in listener.denied] == [b"denied.a"]
        assert [(raw[0], payload(raw)) for raw in received.messages] == [(b"asked.7", b"answer"), (b"asked.8", b"")]
    assert listener.acks == {}
    with pytest.raises(LinkError):
        link.respond(b"asked.7", b"answer")


async def test_a_denied_subscription_raises_a_source_error_and_the_link_survives(peer: Peer) -> None:
    received = Recorder()
    async with link_of(peer) as link:
        with pytest.raises(SourceError, match=r"secret\.plans") as caught:
            await link.subscribe("secret.plans", Recorder())
        assert caught.value.reason == "permission_denied"
        await link.subscribe("orders.*", received)
        await link.send([operation(1, b"orders.new")])
        await link.fence()
    assert len(received.messages) == 1


async def test_a_publish_that_is_too_large_is_refused_and_not_written(peer: Peer) -> None:
    received = Recorder()
    block = encode(Headers({"A": "1"}))
    async with link_of(peer) as link:
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
