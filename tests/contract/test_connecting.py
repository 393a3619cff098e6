"""Promises of `router_trio.link` about a link's life: how it begins, how it ends, and what its listener is called
for.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router_trio.errors import AuthorizationError, LinkError
from router_trio.link import Link
from tests.contract.peers import PASSWORD, WRONG_PASSWORD, Peer, link_of
from tests.support.recorder import WITHIN, Recorder


async def test_a_link_names_its_server_without_credentials_and_knows_its_limit(peer: Peer) -> None:
    async with link_of(peer) as link:
        host_and_port = peer.server.rpartition("@")[2].rpartition("://")[2]
        assert link.server == host_and_port
        assert link.max_payload == 1024 * 1024


async def test_refused_credentials_raise_an_authorization_error_without_the_password(peer: Peer) -> None:
    await peer.refuse_credentials()
    with pytest.raises(AuthorizationError) as caught:
        async with link_of(peer):
            pytest.fail("entered with credentials that the server does not know")
    assert caught.value.reason == "authorization"
    assert PASSWORD not in str(caught.value)
    assert WRONG_PASSWORD not in str(caught.value)


async def test_connecting_to_a_dead_server_raises_a_link_error(peer: Peer) -> None:
    await peer.die()
    with pytest.raises(LinkError) as caught, trio.fail_after(WITHIN):
        async with link_of(peer):
            pytest.fail("entered without a server")
    assert type(caught.value) is LinkError
    assert caught.value.reason == "network"


async def test_the_death_of_a_link_cancels_its_body_and_raises_a_link_error_bare(peer: Peer) -> None:
    endings: list[BaseException] = []

    async def body() -> None:
        async with link_of(peer):
            try:
                await peer.die()
                await trio.sleep_forever()
            except BaseException as ending:
                endings.append(ending)
                raise

    with pytest.raises(LinkError), trio.fail_after(WITHIN):
        await body()
    assert [type(ending) for ending in endings] == [trio.Cancelled]


async def test_the_death_of_a_link_ends_the_tasks_of_its_body(peer: Peer) -> None:
    async def body() -> None:
        async with link_of(peer) as link, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(trio.sleep_forever)
            await link.fence()
            await peer.die()

    with pytest.raises(LinkError), trio.fail_after(WITHIN):
        await body()


async def test_an_error_of_the_body_is_raised_unwrapped(peer: Peer) -> None:
    mistake = ValueError("a mistake of the body")
    with pytest.raises(ValueError, match="a mistake") as caught:
        async with link_of(peer):
            raise mistake
    assert caught.value is mistake


async def test_cancelling_the_body_is_not_reported_as_a_lost_link(peer: Peer) -> None:
    with trio.CancelScope() as scope:
        async with link_of(peer):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_acks_on_a_dead_link_raise_a_link_error(peer: Peer) -> None:
    kept: list[Link] = []

    async def body() -> None:
        async with link_of(peer) as link:
            kept.append(link)
            await peer.die()
            await trio.sleep_forever()

    with pytest.raises(LinkError), trio.fail_after(WITHIN):
        await body()
    reply = b"$JS.ACK.ORDERS.router.1.1.1.1700000000000000000.0"
    assert [refused for refused, _ in kept[0].ack([reply, reply])] == [reply, reply]
    with pytest.raises(LinkError):
        kept[0].nak(reply, 1.0)
    with pytest.raises(LinkError):
        kept[0].in_progress(reply)


async def test_closing_a_subscription_of_a_dead_link_does_nothing(peer: Peer) -> None:
    subscriptions = []

    async def body() -> None:
        async with link_of(peer) as link:
            subscriptions.append(await link.subscribe("orders.*", Recorder()))
            await peer.die()
            await trio.sleep_forever()

    with pytest.raises(LinkError), trio.fail_after(WITHIN):
        await body()
    subscriptions[0].close()
    subscriptions[0].close()


async def test_the_listener_is_notified_of_a_lame_duck(peer: Peer) -> None:
    listener = Recorder()
    async with link_of(peer, listener):
        await peer.lame_duck()
        await listener.until(lambda recorder: recorder.lame_ducks)
