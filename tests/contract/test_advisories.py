"""Promises of `router_trio.link` about advisories."""

from __future__ import annotations

import trio

from router_trio.protocol import framing
from router_trio.protocol.advisories import DELETED, PAUSE, Advisory, read_advisory, subjects_of
from tests.contract.orders import SPEC
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder


def read(received: Recorder) -> list[Advisory]:
    return [found for raw in received.messages if (found := read_advisory(raw)) is not None]


async def test_advisories_are_received_until_listening_stops(peer: Peer, clock: object) -> None:
    await peer.add_stream("ORDERS", ["orders.>"])
    heard = Recorder()
    async with link_of(peer) as link:
        await link.open_consumer(SPEC, Recorder())
        assert await link.listen([*subjects_of("ORDERS"), *subjects_of("ORDERS", "router")], heard) == []
        await peer.pause_consumer("ORDERS", "router", 60.0)
        await peer.delete_consumer("ORDERS", "router")
        with trio.fail_after(5):
            while [one.kind for one in read(heard)] != [PAUSE, DELETED]:
                await trio.sleep(0.05)
        assert {(one.stream, one.durable) for one in read(heard)} == {("ORDERS", "router")}
        link.stop_listening([*subjects_of("ORDERS")])
        await link.fence()
        await peer.delete_stream("ORDERS")
        await link.fence()
        assert len(read(heard)) == 2


async def test_refused_advisories_are_returned_and_the_others_are_received(peer: Peer, clock: object) -> None:
    heard = Recorder()
    async with link_of(peer) as link:
        ((subject, words),) = await link.listen(["secret.a", "open.a"], heard)
        assert subject == "secret.a"
        assert "Permissions Violation" in words
        await peer.publish("secret.a", b"1")
        await peer.publish("open.a", b"2")
        await heard.until_delivered(1)
        assert [framing.payload(raw) for raw in heard.messages] == [b"2"]
