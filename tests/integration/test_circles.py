"""Circles that no configuration shows end by themselves, and are reported: over two routers, and over servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.routing.policy import hops
from tests.support.command import over_its_links
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings
from tests.support.watch import Watch, watched

MOST = 2 * hops.EVERY // (hops.A_READ + 1) + hops.DEFAULT_LIMIT
"""Copies of a message in a circle of two routes, until it is counted in one of them and ends."""

ENDS: dict[str, Any] = {"retry": {"attempts": 1}}


def stream_route(name: str, source: str, to: str) -> dict[str, Any]:
    return {"name": name, "from": {"stream": source, "durable": name}, "to": [{"subject": to}], **ENDS}


def failed(watch: Watch) -> int:
    return watch.router.routes[0].failed["loop"]


async def stored(stream: JetStream, name: str) -> int:
    return int((await stream.stream_info(name))["state"]["messages"])


async def test_two_routers_that_send_to_each_other_end_each_message(server: NatsServer) -> None:
    there = {"name": "there", "from": {"subject": "a.*"}, "to": [{"subject": "b.{{wildcard(1)}}"}]}
    back = {"name": "back", "from": {"subject": "b.*"}, "to": [{"subject": "a.{{wildcard(1)}}"}]}
    async with (
        connect(server.url) as client,
        watched(settings(server.url, routes=[there])) as one,
        watched(settings(server.url, routes=[back])) as other,
    ):
        arrived = await client.subscribe("a.*")
        for number in range(3):
            await client.publish("a.x", b"%d" % number)
        await eventually(lambda: failed(one) + failed(other) == 3)
        await client.publish("a.end", b"", headers={"Router-Hops": "99"})
        count = 0
        while (await arrived.next()).subject != "a.end":
            count += 1
        assert count < 3 * MOST
        for watch in (one, other):
            assert (await watch.until("ROUTE_IN_CIRCLE")).route in ("there", "back")
            (why,) = watch.router.routes[0].reasons(trio.current_time())
            assert why.startswith("it receives mostly messages that it has sent itself")


async def test_two_routers_that_copy_streams_to_each_other_end_each_message(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("A", ["a.*"])
        await stream.create_stream("B", ["b.*"])
        async with (
            watched(settings(server.url, routes=[stream_route("there", "A", "b.x")])) as one,
            watched(settings(server.url, routes=[stream_route("back", "B", "a.x")])) as other,
        ):
            await stream.publish("a.x", b"1")
            await eventually(lambda: failed(one) + failed(other) == 1)
            assert await stored(stream, "A") + await stored(stream, "B") <= MOST + 2
            assert one.of("ROUTE_IN_CIRCLE") or other.of("ROUTE_IN_CIRCLE")


COPIES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "sources": ({"sources": [{"name": "SINK"}], "subjects": ["source.*"]}, {}, "source.a"),
    "mirror": ({"mirror": {"name": "SINK"}, "subjects": [], "duplicate_window": 0}, {}, "sink.a"),
    "republish": (
        {"subjects": ["source.*"]},
        {"republish": {"src": "sink.*", "dest": "source.{{wildcard(1)}}"}},
        "source.a",
    ),
}


@pytest.mark.parametrize("way", COPIES)
async def test_a_circle_over_what_a_server_copies_ends(server: NatsServer, way: str) -> None:
    source, sink, subject = COPIES[way]
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SINK", ["sink.*"], **sink)
        await stream.create_stream("SOURCE", **source)
        await stream.publish(subject, b"1")
        async with watched(settings(server.url, routes=[stream_route("round", "SOURCE", "sink.copy")])) as watch:
            await eventually(lambda: failed(watch) == 1)
            assert await stored(stream, "SINK") <= MOST
            await watch.until("ROUTE_IN_CIRCLE")


async def test_a_circle_of_buckets_over_a_mirror_ends(server: NatsServer) -> None:
    async with connect(server.url) as client:
        stream = JetStream(client)
        kept = {"allow_rollup_hdrs": True, "max_msgs_per_subject": 64}
        await stream.create_stream("KV_there", ["$KV.there.>"], **kept)
        mapping = {"src": "$KV.there.>", "dest": "$KV.here.>"}
        copied = [{"name": "KV_there", "subject_transforms": [mapping]}]
        await stream.create_stream("KV_here", ["$KV.here.>"], sources=copied, **kept)
        route = {"name": "round", "from": {"bucket": "here", "durable": "round"}, "to": [{"bucket": "there"}], **ENDS}
        async with watched(settings(server.url, routes=[route])) as watch:
            await stream.publish("$KV.here.key", b"1")
            await eventually(lambda: watch.router.routes[0].received >= 1 and not watch.router.routes[0].in_hand)
            await trio.sleep(2)
            assert await stored(stream, "KV_there") <= MOST


# --- what `check --online` shows of them ---

HEAD = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
"""

ROUTE = """
[[routes]]
name = "{name}"
from = {{ stream = "{source}", durable = "{name}" }}
to = [ {{ subject = "{to}" }} ]
"""


async def circles_found(folder: Path) -> list[str]:
    done = await over_its_links("check", "router.toml", "--online", "--json", cwd=folder)
    assert done.stdout, done.stderr
    return [one["message"] for one in json.loads(done.stdout)["findings"] if one["name"] == "circle_over_servers"]


async def test_check_online_shows_a_circle_over_another_router(server: NatsServer, tmp_path: Path) -> None:
    text = HEAD.format(url=server.url) + ROUTE.format(name="there", source="A", to="b.x")
    (tmp_path / "router.toml").write_text(text)
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("A", ["a.*"])
        await stream.create_stream("B", ["b.*"])
        assert await circles_found(tmp_path) == []
        async with watched(settings(server.url, routes=[stream_route("back", "B", "a.x")])) as other:
            await other.until("ROUTE_READY")
        (found,) = await circles_found(tmp_path)
        assert found == (
            "messages of route 'there' may return to it: route 'there' sends 'b.x', route 'back' of another router "
            "(durable 'back') sends 'a.x', which the route reads; send to other subjects, narrow a source, or set "
            "hop_limit on the route if it is intended"
        )
        (tmp_path / "router.toml").write_text(text.replace("[[routes]]", "[[routes]]\nhop_limit = 4"))
        assert await circles_found(tmp_path) == []


@pytest.mark.parametrize("way", COPIES)
async def test_check_online_shows_a_circle_over_what_a_server_copies(
    server: NatsServer, tmp_path: Path, way: str
) -> None:
    source, sink, _ = COPIES[way]
    text = HEAD.format(url=server.url) + ROUTE.format(name="round", source="SOURCE", to="sink.copy")
    (tmp_path / "router.toml").write_text(text)
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("SINK", ["sink.*"], **sink)
        await stream.create_stream("SOURCE", **source)
        (found,) = await circles_found(tmp_path)
        moved = "SINK' republishes as 'source.copy'" if way == "republish" else "SOURCE' copies from stream 'SINK'"
        assert f"sends 'sink.copy', stream '{moved}, which the route reads; send" in found
