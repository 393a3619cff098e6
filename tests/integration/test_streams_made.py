"""`[[streams]]` on a real server: created before the routes start, compared, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from router_trio import Router, Settings
from router_trio.telemetry.http.status import readiness
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import nats_server
from tests.support.settings import stream_route
from tests.support.watch import Watch

STREAMS = [
    {"name": "IN", "subjects": ["in.*"]},
    {"name": "OUT", "subjects": ["out.>"], "max_age": "1h", "duplicate_window": "10m"},
]


def router(url: str, watch: Watch, **connection: str) -> Router:
    settings = Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": [url], **connection}},
        routes=[stream_route("IN", "out.{{wildcard(1)}}", filter="in.*")],
        streams=STREAMS,
    )
    return Router(settings, observers=[watch])


async def test_an_empty_server_gets_its_streams_and_the_route_runs_at_once(tmp_path: Path) -> None:
    watch = Watch()
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        jetstream = JetStream(client)
        async with router(server.url, watch).open() as live:
            assert not watch.of("NATS_SUBSCRIBE_ERROR")
            assert readiness(live, trio.current_time())[0] == 200
            await jetstream.publish("in.x", b"1")
            await eventually(lambda: live.routes[0].settled["routed"] == 1)
        config = (await jetstream.stream_info("OUT"))["config"]
        assert (config["max_age"], config["duplicate_window"]) == (3600 * 10**9, 600 * 10**9)
        await jetstream.edit_stream("OUT", max_msgs=5)
        async with router(server.url, watch).open():
            (differs,) = watch.of("NATS_STREAM_DIFFERS")
        assert differs.detail == "max_messages is 5 there and none here"
        assert (await jetstream.stream_info("OUT"))["config"]["max_msgs"] == 5
    assert len(watch.of("NATS_STREAM_CREATED")) == 2


async def test_without_permission_to_create_the_router_is_unready_with_the_reason(tmp_path: Path) -> None:
    denied = {"publish": {"deny": ["$JS.API.STREAM.CREATE.>"]}}
    users = [{"user": "router", "password": "secret", "permissions": denied}, {"user": "other", "password": "other"}]
    config = f"authorization {{ users: {json.dumps(users)} }}"
    watch = Watch()
    async with nats_server(tmp_path, config=config) as server:
        began = trio.current_time()
        async with router(server.url, watch, user="router", password="secret").open() as live:
            assert trio.current_time() - began < 2.0, "it is reported at once"
            events = watch.of("NATS_STREAM_NOT_MADE")
            assert [(one.stream, one.reason) for one in events] == [
                ("IN", "permission_denied"),
                ("OUT", "permission_denied"),
            ]
            code, body = readiness(live, trio.current_time())
            assert code == 503
            assert any("stream 'OUT' can't be looked up or created" in one["reason"] for one in body["reasons"])
            async with connect(server.url, user="other", password="other") as client:
                for stream in STREAMS:
                    await JetStream(client).create_stream(
                        str(stream["name"]), list(stream["subjects"]), max_age=3600 * 10**9
                    )
            await eventually(lambda: readiness(live, trio.current_time())[0] == 200, 20)


async def test_a_server_without_jetstream_does_not_delay_the_start(tmp_path: Path) -> None:
    watch = Watch()
    async with nats_server(tmp_path, jetstream=False) as server:
        began = trio.current_time()
        async with router(server.url, watch).open() as live:
            assert trio.current_time() - began < 5.0
            assert {one.reason for one in watch.of("NATS_STREAM_NOT_MADE")} == {"no_jetstream"}
            assert readiness(live, trio.current_time())[0] == 503


async def test_a_stream_deleted_while_the_link_lives_is_recreated_and_reported(tmp_path: Path) -> None:
    watch = Watch()
    async with nats_server(tmp_path) as server, connect(server.url) as client:
        jetstream = JetStream(client)
        async with router(server.url, watch).open() as live:
            await jetstream.publish("in.x", b"1")
            await eventually(lambda: live.routes[0].settled["routed"] == 1)
            for number, name in enumerate(("OUT", "IN"), 3):
                await jetstream.delete_stream(name)
                created = await watch.until("NATS_STREAM_CREATED", times=number)
                assert created.stream == name
            await eventually(lambda: readiness(live, trio.current_time())[0] == 200, 20)
            await jetstream.publish("in.x", b"2")
            await eventually(lambda: live.routes[0].settled["routed"] == 2)
        assert [message.payload for message in await jetstream.stream_messages("OUT")] == [b"2"]
    assert not watch.of("NATS_CONNECTION_LOST")
