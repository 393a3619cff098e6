"""`[[positions]]`: a consumer continues on the copy when the server of the source is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router_trio import Router, Settings
from router_trio.events import Event, PositionNotSaved
from tests.integration.test_position import Place, number
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

CONFIGURATION = """
[telemetry]
listen = ""
[connections.east]
servers = ["{east}"]
[connections.west]
servers = ["{west}"]
[[positions]]
consumer = "billing"
route = "copy"
interval = "1s"
[[routes]]
name = "copy"
from = {{ connection = "east", stream = "SOURCE", durable = "router", filter = "source.*" }}
to = [ {{ connection = "west", subject = "copy.{{{{wildcard(1)}}}}", jetstream = true }} ]
"""

CHECKPOINT = {
    "stream": "SOURCE",
    "consumer": "billing",
    "floor": 1,
    "delivered": 2,
    "unacked": 1,
    "pending": 0,
    "since": 0,
    "at": "2026-11-29T06:00:00Z",
    "fields": {"ack_policy": "explicit"},
}


async def test_a_consumer_continues_when_the_source_is_gone(tmp_path: Path, server: NatsServer) -> None:
    folder = tmp_path / "east"
    folder.mkdir()
    async with connect(server.url) as far:
        west = JetStream(far)
        await west.create_stream("COPY", ["copy.*"])
        async with nats_server(folder) as source, connect(source.url) as near:
            east = JetStream(near)
            await east.create_stream("SOURCE", ["source.*"])
            await east.create_consumer("SOURCE", "billing", ack_wait=600 * 10**9, filter_subject="source.1")
            (tmp_path / "router.toml").write_text(CONFIGURATION.format(east=source.url, west=server.url))
            here = Place(tmp_path, source, east)
            await here.publish(60)
            got = await here.pull("SOURCE", 10)
            await here.ack([got[0], got[1], got[4], got[7]])

            async def saved() -> bool:
                try:
                    stored = await west.stream_messages("KV_router-positions")
                    copied = (await west.stream_info("COPY"))["state"]["messages"]
                except JetStreamError:
                    return False
                return copied == 60 and bool(stored) and json.loads(stored[-1].payload)["unacked"] == 6

            async with Router(Settings.load(tmp_path / "router.toml"), log=False).open():
                await eventually(saved)
        words = ("position", "router.toml", "copy", "--consumer", "billing", "--apply", "--json")
        result = await over_its_links(*words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        assert "using the checkpoint of" in result.stderr
        assert (answer["checkpoint"], answer["filters"], answer["source"]["unacked"]) == (True, ["copy.1"], 6)
        continued = await Place(tmp_path, server, west).pull("COPY", 100)
        assert [number(one) for one in continued] == list(range(7, 60, 3))  # all but the two below the ack floor
        repeats = {number(one) for one in continued} & {number(got[4]), number(got[7])}
        assert answer["repeats"]["least"] <= len(repeats) <= answer["repeats"]["most"]


async def test_without_a_checkpoint_the_source_has_to_be_reached(tmp_path: Path, server: NatsServer) -> None:
    closed = "nats://127.0.0.1:1"
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(east=closed, west=server.url))
    async with connect(server.url) as client:
        await JetStream(client).create_stream("COPY", ["copy.*"])
        await JetStream(client).create_stream("KV_router-positions", ["$KV.router-positions.>"])
    result = await over_its_links("position", "router.toml", "copy", "--consumer", "billing", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "east" in result.stderr


async def test_a_checkpoint_that_is_not_saved_is_logged_once(tmp_path: Path, server: NatsServer) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(east=server.url, west=server.url))
    heard: list[Event] = []
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("COPY", ["copy.*"])

        async def failed() -> bool:
            return any(isinstance(one, PositionNotSaved) for one in heard)

        async def saved() -> bool:
            return bool(await stream.stream_messages("KV_router-positions"))

        async with Router(Settings.load(tmp_path / "router.toml"), observers=[heard.append], log=False).open():
            await eventually(failed)
            await stream.create_consumer("SOURCE", "billing")
            await eventually(saved)
    (event,) = [one for one in heard if isinstance(one, PositionNotSaved)]
    assert event.detail == "stream SOURCE has no consumer billing; `nats consumer ls SOURCE` lists those it has"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "bucket router-positions has none of consumer billing"),
        ({"consumer": "other"}, "the checkpoint is not valid: it is one of consumer other"),
        ({"floor": -1}, "the checkpoint is not valid: floor is not a whole number"),
        ({"stream": "OTHER"}, "the checkpoint is of stream OTHER, and route copy reads SOURCE"),
    ],
)
async def test_a_checkpoint_that_can_not_be_used_is_refused_with_the_reason(
    changes: dict[str, Any] | None, why: str, tmp_path: Path, server: NatsServer
) -> None:
    (tmp_path / "router.toml").write_text(CONFIGURATION.format(east="nats://127.0.0.1:1", west=server.url))
    async with connect(server.url) as client:
        west = JetStream(client)
        await west.create_stream("COPY", ["copy.*"])
        await west.create_stream("KV_router-positions", ["$KV.router-positions.>"])
        if changes is not None:
            await west.publish("$KV.router-positions.copy.billing", json.dumps(CHECKPOINT | changes).encode())
        words = ("position", "router.toml", "copy", "--consumer", "billing", "--apply")
        result = await over_its_links(*words, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert why in result.stderr
        assert "connection 'east': connection refused" in result.stderr
        assert (await west.stream_info("COPY"))["state"]["consumer_count"] == 0


@pytest.mark.parametrize("has_jetstream", [True, False])
async def test_a_server_that_lost_its_streams_is_no_source(
    has_jetstream: bool, tmp_path: Path, server: NatsServer
) -> None:
    folder = tmp_path / "east"
    folder.mkdir()
    async with connect(server.url) as client, nats_server(folder, jetstream=has_jetstream) as east:
        (tmp_path / "router.toml").write_text(CONFIGURATION.format(east=east.url, west=server.url))
        west = JetStream(client)
        await west.create_stream("COPY", ["copy.*"])
        words = ("position", "router.toml", "copy", "--consumer", "billing", "--json")
        result = await over_its_links(*words, cwd=tmp_path)
        lost = "there is no stream 'SOURCE'" if has_jetstream else "JetStream is not enabled"
        assert result.returncode == 1
        assert lost in result.stderr
        assert "and no checkpoint can be used: " in result.stderr
        await west.create_stream("KV_router-positions", ["$KV.router-positions.>"])
        await west.publish("$KV.router-positions.copy.billing", json.dumps(CHECKPOINT).encode())
        result = await over_its_links(*words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert lost in result.stderr
        assert json.loads(result.stdout)["checkpoint"] is True


async def test_a_destination_without_jetstream_is_named(tmp_path: Path, server: NatsServer) -> None:
    heard: list[Event] = []
    folder = tmp_path / "west"
    folder.mkdir()
    async with connect(server.url) as client, nats_server(folder, jetstream=False) as west:
        (tmp_path / "router.toml").write_text(CONFIGURATION.format(east=server.url, west=west.url))
        await JetStream(client).create_stream("SOURCE", ["source.*"])

        async def failed() -> bool:
            return any(isinstance(one, PositionNotSaved) for one in heard)

        async with Router(Settings.load(tmp_path / "router.toml"), observers=[heard.append], log=False).open():
            await eventually(failed)
    (event,) = [one for one in heard if isinstance(one, PositionNotSaved)]
    assert event.detail.startswith("the bucket router-positions can't be looked up: JetStream is not enabled")


DENIED = """
authorization { users: [
  { user: admin, password: admin }
  { user: router, password: router, permissions: { publish: { deny: ["$JS.API.STREAM.CREATE.>"] } } }
] }
"""


async def test_a_bucket_that_exists_needs_no_permission_to_create_one(tmp_path: Path) -> None:
    heard: list[Event] = []
    async with (
        nats_server(tmp_path, config=DENIED) as server,
        connect(server.url, user="admin", password="admin") as client,
    ):
        url = server.url.replace("//", "//router:router@")
        (tmp_path / "router.toml").write_text(CONFIGURATION.format(east=url, west=url))
        stream = JetStream(client)
        await stream.create_stream("SOURCE", ["source.*"])
        await stream.create_stream("COPY", ["copy.*"])
        await stream.create_consumer("SOURCE", "billing")

        async def saved() -> bool:
            return bool(await stream.stream_messages("KV_router-positions"))

        def failed() -> bool:
            return any(isinstance(one, PositionNotSaved) for one in heard)

        async with Router(Settings.load(tmp_path / "router.toml"), observers=[heard.append], log=False).open():
            await eventually(failed)
            await stream.create_stream("KV_router-positions", ["$KV.router-positions.>"], max_msgs_per_subject=5)
            await eventually(saved)
        info = await stream.stream_info("KV_router-positions")
        assert info["config"]["max_msgs_per_subject"] == 5, "it is as it was created"
    (event,) = [one for one in heard if isinstance(one, PositionNotSaved)]
    assert "this user may not publish to $JS.API.STREAM.CREATE.KV_router-positions" in event.detail
