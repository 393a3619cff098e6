"""Promises of `router_trio.link` about the processes that share the partitions of a route."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from router_trio.errors import SourceError
from router_trio.link import LOOKUP_WITHIN, MEMBER_GONE_AFTER, Announced, Group, SeenMembers
from tests.contract.peers import BUCKET, Peer, link_of

pytestmark = pytest.mark.real_needs_server(2, 11, lacks="messages with a time to live")

A, B = "a" * 16, "b" * 16
GROUP = Group("ORDERS", "router", A)
EU = Announced("eu", "host-1", (3, 11))

LATE = 1.5
"""Seconds after which a silent member may be gone later: a server looks once a second."""


async def test_a_member_is_seen_by_all_until_it_leaves(peer: Peer) -> None:
    async with link_of(peer) as here, link_of(peer) as there:
        first, second = await here.members(GROUP), await there.members(replace(GROUP, member=B))
        assert await first.seen() == SeenMembers(frozenset(), {})
        await first.announce(EU)
        await second.announce(Announced("us", "", ()))
        for members in (first, second):
            assert await members.seen() == SeenMembers(frozenset({A, B}), {})
            assert await members.announcements() == {A: EU, B: Announced("us", "", ())}
        await first.announce(replace(EU, led=()))
        assert (await second.announcements())[A].led == ()
        await first.withdraw()
        assert (await second.seen()).ids == {B}
        await first.withdraw()  # again: nothing to remove
        assert (await first.seen()).ids == {B}


async def test_members_of_other_streams_and_durables_are_not_seen(peer: Peer) -> None:
    async with link_of(peer) as link:
        for group in (replace(GROUP, durable="other"), replace(GROUP, stream="ORDERS2"), replace(GROUP, durable="r")):
            members = await link.members(group)
            await members.announce(EU)
            await members.move({1: B})
        assert await (await link.members(GROUP)).seen() == SeenMembers(frozenset(), {})


async def test_a_silent_member_is_gone_after_its_time_and_a_renewed_one_is_not(
    peer: Peer, clock: trio.abc.Clock | None
) -> None:
    async with link_of(peer) as link:
        silent, renewed = await link.members(GROUP), await link.members(replace(GROUP, member=B))
        await silent.announce(EU)
        began = trio.current_time()
        await renewed.announce(EU)
        await trio.sleep(MEMBER_GONE_AFTER - 1.0)
        await renewed.announce(EU)
        assert (await renewed.seen()).ids == {A, B}
        while A in (await renewed.seen()).ids:
            assert trio.current_time() < began + MEMBER_GONE_AFTER + LATE
            await trio.sleep(0.05)
        assert trio.current_time() >= began + MEMBER_GONE_AFTER - 0.5
        assert (await renewed.seen()).ids == {B}


async def test_partitions_that_are_moved_by_hand_are_seen_by_all(peer: Peer) -> None:
    async with link_of(peer) as link:
        members = await link.members(GROUP)
        await members.announce(EU)
        await members.move({3: A, 12: B})
        assert await (await link.members(replace(GROUP, member=B))).seen() == SeenMembers(frozenset({A}), {3: A, 12: B})
        await members.move({0: B})
        assert (await members.seen()).moved == {0: B}
        await members.move({})
        assert await members.seen() == SeenMembers(frozenset({A}), {})


async def test_a_bucket_that_was_deleted_is_created_again(peer: Peer) -> None:
    async with link_of(peer) as link:
        members = await link.members(GROUP)
        await members.announce(EU)
        await peer.delete_stream(BUCKET)
        with pytest.raises(SourceError) as caught:
            await members.announce(EU)
        assert caught.value.reason == "jetstream_unavailable"
        assert await members.seen() == SeenMembers(frozenset(), {})
        await members.announce(EU)
        assert (await members.seen()).ids == {A}


@pytest.mark.parametrize(
    ("subject", "what"),
    [
        ("$KV.router-trio-members.>", "announce"),
        (f"$JS.API.STREAM.INFO.{BUCKET}", "look"),
        (f"$JS.API.STREAM.MSG.GET.{BUCKET}", "look"),
    ],
)
async def test_a_request_that_this_user_may_not_send_fails_at_once(peer: Peer, subject: str, what: str) -> None:
    async with link_of(peer) as link:
        members = await link.members(GROUP)
        await members.announce(EU)
        await members.move({1: A})
        await peer.deny_publish(subject)
        began = trio.current_time()
        with pytest.raises(SourceError, match="may not publish") as caught:
            await (members.announce(EU) if what == "announce" else members.seen())
        assert caught.value.reason == "permission_denied"
        assert trio.current_time() < began + LOOKUP_WITHIN / 2


async def test_a_member_that_may_not_remove_its_announcement_leaves_it(peer: Peer) -> None:
    async with link_of(peer) as link:
        members = await link.members(GROUP)
        await members.announce(EU)
        await peer.deny_publish(f"$JS.API.STREAM.PURGE.{BUCKET}")
        await members.withdraw()
        assert (await members.seen()).ids == {A}


@pytest.mark.parametrize("request_", ["CREATE", "INFO"])
async def test_a_bucket_that_may_not_be_created_or_looked_up_is_refused(peer: Peer, request_: str) -> None:
    await peer.deny_publish(f"$JS.API.STREAM.{request_}.{BUCKET}")
    async with link_of(peer) as link:
        with pytest.raises(SourceError, match=BUCKET) as caught:
            await link.members(GROUP)
        assert caught.value.reason == "permission_denied"
