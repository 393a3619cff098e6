"""Promises of `router_trio.link` about streams that it creates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from router_trio.errors import SourceError
from router_trio.link import LOOKUP_WITHIN
from router_trio.protocol.stream_config import StreamConfig
from tests.contract.peers import Peer, link_of
from tests.support.recorder import Recorder, operation_with_ack

DEAD = StreamConfig("DEAD", ("dead.>", "lost.*"), duplicate_window=60.0)


async def test_a_stream_is_created_once_and_takes_messages(peer: Peer) -> None:
    listener = Recorder()
    async with link_of(peer, listener) as link:
        made = await link.ensure_stream(DEAD)
        assert made == (DEAD, True)
        assert await link.ensure_stream(DEAD) == (DEAD, False)
        assert sorted(await link.find_streams("dead.x")) == ["DEAD"]
        await link.send([operation_with_ack(1, b"dead.x")])
        await listener.until(lambda recorder: recorder.acks)
    assert len(await peer.payloads("DEAD")) == 1


async def test_each_setting_of_a_stream_is_applied(peer: Peer) -> None:
    wanted = StreamConfig(
        "DEAD",
        ("dead.>",),
        storage="memory",
        retention="workqueue",
        max_age=3600.0,
        max_bytes=1_000_000,
        max_messages=1000,
        discard="new",
        duplicate_window=1800.0,
    )
    async with link_of(peer) as link:
        assert await link.ensure_stream(wanted) == (wanted, True)


async def test_the_duplicate_window_chosen_by_the_server_is_returned(peer: Peer) -> None:
    async with link_of(peer) as link:
        found, _ = await link.ensure_stream(StreamConfig("DEAD", ("dead.>",)))
        assert found.duplicate_window == 120.0
        found, _ = await link.ensure_stream(StreamConfig("SHORT", ("short",), max_age=30.0))
        assert found.duplicate_window == 30.0


@pytest.mark.real_needs_server(2, 14, lacks="allow_batched")
async def test_settings_that_only_newer_servers_allow_are_applied(peer: Peer) -> None:
    wanted = replace(DEAD, allow_batched=True, allow_message_ttl=True)
    async with link_of(peer) as link:
        assert await link.ensure_stream(wanted) == (wanted, True)


async def test_an_existing_stream_is_left_unchanged(peer: Peer) -> None:
    await peer.add_stream("DEAD", ["dead.x"], max_messages=7)
    async with link_of(peer) as link:
        found, made = await link.ensure_stream(DEAD)
        assert not made
        assert (found.subjects, found.max_messages, found.discard) == (("dead.x",), 7, "new")
        state = await link.stream_state("DEAD")
        assert state is not None
        assert state.subjects == ("dead.x",)


async def test_a_stream_that_the_server_can_not_create_is_refused(peer: Peer) -> None:
    await peer.add_stream("OTHER", ["dead.a"])
    async with link_of(peer) as link:
        with pytest.raises(SourceError, match=r"overlap.*'OTHER'") as caught:
            await link.ensure_stream(DEAD)
        assert caught.value.reason == "stream_refused"
        assert await link.stream_state("DEAD") is None


async def test_creating_a_stream_without_permission_fails_at_once(peer: Peer) -> None:
    async with link_of(peer) as link:
        for name in ("SECRET", "FORBIDDEN"):
            began = trio.current_time()
            with pytest.raises(SourceError) as caught:
                await link.ensure_stream(StreamConfig(name, ("x",)))
            assert caught.value.reason == "permission_denied"
            assert trio.current_time() - began < LOOKUP_WITHIN, "the server has reported it"
