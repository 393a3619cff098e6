"""A source stream is rolled back: its sequences are reused for new messages, and every one of them is routed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Message, Router
from router_trio.settings import Settings
from tests.support.eventually import eventually
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch, until_stored, watched

KNOWN = 150
"""Number of messages that were routed before."""


@pytest.fixture
async def streams(server: NatsServer) -> NatsServer:
    """Return the server, with a source and a sink."""
    async with connect(server.url) as client:
        await JetStream(client).create_stream("SINK", ["sink.*"])
        await JetStream(client).create_stream("SOURCE", ["source.*"])
    return server


@needs_server(2, 14, lacks="reset of a durable that is ahead of its stream")
@pytest.mark.parametrize("new", [KNOWN // 3, KNOWN, 2 * KNOWN], ids=["fewer", "as many", "more"])
@pytest.mark.parametrize("first_back", ["router", "messages"])
async def test_a_stream_that_lost_its_messages_routes_all_new_ones(
    streams: NatsServer, proxy: TcpProxy, first_back: str, new: int
) -> None:
    async with watched(_settings(proxy.url)) as watch:
        await _publish(streams, range(KNOWN))
        await _stored(streams, range(KNOWN))
        await _all_acked(streams)
        proxy.refuse()
        await streams.terminate()
        messages = _directory(streams) / "msgs"
        shutil.rmtree(messages)
        messages.mkdir()
        await streams.restart()
        if first_back == "messages":
            await _publish(streams, range(KNOWN, KNOWN + new))
        proxy.accept()
        if first_back == "router":
            await watch.until("STREAM_WENT_BACK")
            await _publish(streams, range(KNOWN, KNOWN + new))
        await _stored(streams, range(KNOWN + new))
        _reported_once(watch)


@pytest.mark.parametrize("new", [20, 50, 100])
@pytest.mark.parametrize("durable", ["restored", "deleted"])
async def test_a_stream_restored_from_a_snapshot_routes_all_new_messages(
    streams: NatsServer, proxy: TcpProxy, tmp_path: Path, durable: str, new: int
) -> None:
    """It has new messages before the router reconnects."""
    backup = tmp_path / "backup"
    async with watched(_settings(proxy.url)) as watch:
        await _publish(streams, range(100))
        await _stored(streams, range(100))
        await _all_acked(streams)
        await streams.terminate()
        directory = _directory(streams)
        shutil.copytree(directory, backup)
        await streams.restart()
        await _publish(streams, range(100, KNOWN))
        await _stored(streams, range(KNOWN))
        proxy.refuse()
        await streams.terminate()
        shutil.rmtree(directory)
        shutil.copytree(backup, directory)
        await streams.restart()
        await _publish(streams, range(KNOWN, KNOWN + new))
        if durable == "deleted":
            async with connect(streams.url) as client:
                await JetStream(client).delete_consumer("SOURCE", "router")
        proxy.accept()
        await _stored(streams, range(KNOWN + new))
        _reported_once(watch)


@pytest.mark.parametrize("in_hand", [0, 3])
async def test_a_stream_and_durable_recreated_without_a_pull_request_are_noticed(
    streams: NatsServer, in_hand: int
) -> None:
    """Only the new messages reveal it to the router."""
    held = {b"%d" % number for number in range(KNOWN, KNOWN + in_hand)}
    full, go_on = trio.Event(), trio.Event()
    config = settings(streams.url)
    watch = Watch()
    router = Router(config, observers=[watch])

    @router.route(
        to={"subject": "sink.x", "jetstream": True},
        stream="SOURCE",
        durable="router",
        name="route",
        max_in_flight=max(in_hand, 1),
    )
    async def hold(message: Message) -> Message:
        last = held or {b"%d" % (KNOWN - 1)}
        if message.payload in last and not go_on.is_set():
            full.set()
            await go_on.wait()
        return message

    async with watched(router, watch):
        await _publish(streams, range(KNOWN + in_hand))
        await full.wait()
        async with connect(streams.url) as client:
            stream = JetStream(client)
            await eventually(lambda: watch.router.routes[0].received == KNOWN + in_hand)
            assert (await stream.consumer_info("SOURCE", "router"))["num_waiting"] == 0
            await stream.delete_stream("SOURCE")
            await stream.create_stream("SOURCE", ["source.*"])
            await stream.create_consumer("SOURCE", "router", ack_wait=2_000_000_000)
        new = range(KNOWN + in_hand, 2 * KNOWN)
        await _publish(streams, new)
        go_on.set()
        await _stored(streams, range(new.stop))
        await _all_acked(streams)
        _reported_once(watch)


async def test_a_purge_and_deleted_messages_are_not_mistaken_for_a_rollback(
    streams: NatsServer, proxy: TcpProxy
) -> None:
    async with watched(_settings(proxy.url)) as watch:
        for purged in (False, True):
            first = KNOWN * purged
            await _publish(streams, range(first, first + KNOWN))
            await _stored(streams, range(first + KNOWN))
            await _all_acked(streams)
            async with connect(streams.url) as client:
                stream = JetStream(client)
                last = (await stream.stream_info("SOURCE"))["state"]["last_seq"]
                for sequence in (last, 1) if not purged else ():
                    await stream.api("STREAM.MSG.DELETE.SOURCE", {"seq": sequence})
                if purged:
                    await stream.api("STREAM.PURGE.SOURCE")
                await stream.delete_consumer("SOURCE", "router")
            proxy.reset()
            await watch.until("NATS_CONNECTION_RESTORED", 1 + purged)
        await _publish(streams, range(2 * KNOWN, 3 * KNOWN))
        await _stored(streams, range(3 * KNOWN))
        assert watch.router.routes[0].received == 3 * KNOWN, "no message was routed again"
        assert watch.count("STREAM_WENT_BACK") == 0


def _settings(url: str, **source: Any) -> Settings:
    return settings(url, routes=[stream_route("SOURCE", "sink.x", **source)])


def _directory(server: NatsServer) -> Path:
    return next(server.directory.rglob("SOURCE"))


async def _publish(server: NatsServer, numbers: Iterable[int]) -> None:
    async with connect(server.url) as client:
        await JetStream(client).publish_many([("source.x", b"%d" % number, None) for number in numbers])


async def _stored(server: NatsServer, numbers: range) -> None:
    """Wait until the sink has exactly these."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        await until_stored(stream, "SINK", len(numbers), within=20)
        stored = [int(message.payload) for message in await stream.stream_messages("SINK")]
        assert stored == sorted(stored) == list(numbers)


async def _all_acked(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        with trio.fail_after(10):
            while True:
                info = await stream.consumer_info("SOURCE", "router")
                if info["num_pending"] == info["num_ack_pending"] == 0:
                    return
                await trio.sleep(0.02)


def _reported_once(watch: Watch) -> None:
    reports = watch.of("STREAM_WENT_BACK")
    assert [(event.route, event.stream) for event in reports] == [("route", "SOURCE")], reports
