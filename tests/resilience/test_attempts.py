"""Restarts, kills and lost links use up deliveries of a consumer, and no message is lost for that."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import trio

from router_trio import Message, Router, Settings
from tests.support.command import running
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import stream_route_file
from tests.support.watch import until_stored, watched

MESSAGES = 300
LIMIT = {"max_deliver": 3, "ack_wait": 2_000_000_000, "filter_subject": "in.*"}


async def streams(stream: JetStream) -> None:
    """Create a source, with a durable that has a limit of deliveries, and a sink."""
    await stream.create_stream("SOURCE", ["in.*"])
    await stream.create_stream("SINK", ["out.*"])
    await stream.create_consumer("SOURCE", "router", **LIMIT)
    await stream.publish_many([(f"in.{n % 3}", b"%d" % n, None) for n in range(MESSAGES)])


async def sunk(stream: JetStream) -> list[int]:
    """Return what arrived, once all of it has."""
    await until_stored(stream, "SINK", MESSAGES)
    return [int(message.payload) for message in await stream.stream_messages("SINK")]


def router(url: str) -> Router:
    connections = {"main": {"servers": [url]}}
    made = Router(Settings(router={"shutdown_timeout": "100ms"}, telemetry={"listen": ""}, connections=connections))
    source: dict[str, Any] = {"stream": "SOURCE", "durable": "router", "filter": "in.*"}

    @made.route(to={"subject": "out.{{wildcard(1)}}", "jetstream": True}, **source)
    async def work(message: Message) -> Message:
        await trio.sleep(0.005)
        return message

    return made


async def test_orderly_restarts_lose_no_message(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await streams(stream)
        for _ in range(5):
            async with watched(router(server.url)):
                await trio.sleep(0.2)
        async with watched(router(server.url)):
            assert sorted(await sunk(stream)) == list(range(MESSAGES))
        info = await stream.consumer_info("SOURCE", "router")
        assert info["config"]["max_deliver"] == -1


async def test_repeated_kills_of_the_process_lose_no_message(server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import trio\nasync def slowly(message):\n    await trio.sleep(0.005)\n    return message\n"
    )
    stream_route_file(tmp_path, server.url, handler='"work:slowly"', ack_wait="2s")
    async with connect(server.url) as client:
        stream = JetStream(client)
        await streams(stream)
        for _ in range(6):
            async with running("run", "router.toml", cwd=tmp_path) as process:
                await process.has_logged("ROUTE_READY")
                await trio.sleep(0.2)
                process.send(signal.SIGKILL)
        async with running("run", "router.toml", cwd=tmp_path):
            assert sorted(await sunk(stream)) == list(range(MESSAGES))
