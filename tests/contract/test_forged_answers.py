"""Answers of a server to another client that publishes with the reply subject of one of our publishes."""

from __future__ import annotations

import pytest

from tests.contract.peers import Peer, link_of
from tests.support.recorder import INBOX, Recorder, operation_with_ack

REPLY = f"{INBOX.decode()}.7"


async def test_a_puback_to_a_forged_reply_subject_names_the_stream_that_sent_it(peer: Peer) -> None:
    await peer.add_stream("EVIL", ["evil.>"])
    listener = Recorder()
    async with link_of(peer, listener):
        await peer.publish("evil.x", b"forged", reply=REPLY)
        await listener.until(lambda recorder: recorder.acks)
    assert listener.acks == {7: ("EVIL", 1, False)}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Nats-Expected-Last-Sequence": "99"}, "wrong_expectation"),
        ({"Nats-Expected-Stream": "ORDERS"}, "wrong_expectation"),
        (None, "limit"),
    ],
)
async def test_a_refusal_to_a_forged_reply_subject_names_the_stream_that_sent_it(
    headers: dict[str, str] | None, reason: str, peer: Peer
) -> None:
    await peer.add_stream("EVIL", ["evil.>"], max_messages=1)
    listener = Recorder()
    async with link_of(peer, listener):
        await peer.publish("evil.x", b"fills it")
        await peer.publish("evil.x", b"forged", headers, reply=REPLY)
        await listener.until(lambda recorder: recorder.refusals)
    assert (listener.refusals, listener.refused_by) == ({7: (reason, False)}, {7: "EVIL"})
    assert await peer.payloads("EVIL") == [b"fills it"]


async def test_no_responders_is_reported_only_to_the_publisher_itself(peer: Peer) -> None:
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await peer.publish("unheard.x", b"forged", reply=REPLY)
        await link.send([operation_with_ack(8, b"unheard.x")])
        await listener.until(lambda recorder: recorder.refusals)
        await link.fence()
    assert listener.refusals == {8: ("no_responders", True)}


async def test_a_subject_with_a_subscriber_and_without_a_stream_gets_no_answer(peer: Peer) -> None:
    """The server does not report "no responders", because the subscriber might answer."""
    await peer.add_stream("ORDERS", ["orders.>"])
    listener, heard = Recorder(), Recorder()
    async with link_of(peer, listener) as link:
        await link.subscribe("heard.>", heard)
        await link.send([operation_with_ack(1, b"heard.x"), operation_with_ack(2, b"orders.x")])
        await listener.until(lambda recorder: recorder.acks)
        await heard.until(lambda recorder: recorder.messages)
        await link.fence()
    assert (listener.acks, listener.refusals) == ({2: ("ORDERS", 1, False)}, {})
    assert heard.messages[0][1] == INBOX + b".1"


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"[]",
        b'{"stream":"ORDERS","seq":0}',
        b'{"stream":"ORDERS","seq":18446744073709551616}',
        b'{"stream":"ORDERS"}',
        b'{"type":"io.nats.jetstream.api.v1.stream_info_response","error":{"code":404,"err_code":10059}}',
        b'{"error":{"err_code":"10077"}}',
    ],
)
async def test_an_answer_that_is_not_a_puback_is_a_bad_answer(junk: bytes, peer: Peer) -> None:
    """Such an answer arrives when a client asks a service, or the JetStream API, with that reply subject."""
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await peer.publish(f"{REPLY}.more", junk)
        await peer.publish(REPLY[:-1] + "x", junk)
        await peer.publish(REPLY, junk)
        await listener.until(lambda recorder: recorder.refusals)
        await link.fence()
    assert (listener.acks, listener.refusals) == ({}, {7: ("bad_answer", False)})


async def test_no_client_can_publish_with_the_reply_subject_of_a_delivery(peer: Peer) -> None:
    """So a message in an inbox that has such a reply subject was delivered by a consumer."""
    listener = Recorder()
    async with link_of(peer, listener) as link:
        await link.subscribe("_INBOX.pull", listener)
        await peer.publish("_INBOX.pull", b"forged", reply="$JS.ACK.ORDERS.router.1.1.1.1.0")
        await peer.publish("_INBOX.pull", b"forged", reply="$JS.ACK.hub.account.ORDERS.router.1.1.1.1.0.x")
        await peer.publish("_INBOX.pull", b"passes", reply="$JS.ACKED")
        await listener.until(lambda recorder: recorder.messages)
        await link.fence()
    assert [raw[1] for raw in listener.messages] == [b"$JS.ACKED"]
