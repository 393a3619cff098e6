"""Buckets of a hub and of its leaf node, which have a JetStream domain each: copied one way and both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router_trio import Settings
from tests.integration.test_buckets import BUCKET, DELETE, PURGE
from tests.integration.test_domains import servers_of_domains
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer
from tests.support.watch import Watch, watched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KEYS = 50
EQUAL_WITHIN = 50.0


def copying(hub: tuple[NatsServer, str | None], leaf: tuple[NatsServer, str | None], *ways: str) -> Settings:
    """Return settings with a route for each of the `ways`, which are the names of the buckets to read.

    `hub` and `leaf` are the server to connect to for that bucket, and the bucket's domain if it is not the server's.
    """
    quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "300ms", "liveness_interval": "1s"}
    connections: dict[str, Any] = {
        name: {"servers": [server.url], **quick, **({"domain": domain} if domain else {})}
        for name, (server, domain) in (("hub", hub), ("leaf", leaf))
    }
    routes = [
        {
            "name": f"from-{way}",
            "from": {"connection": way, "bucket": "settings", "durable": "copy", "ack_wait": "1s"},
            "retry": {"max": "1s"},
            "to": [
                {
                    "connection": "leaf" if way == "hub" else "hub",
                    "bucket": "settings",
                    "last_writer": len(ways) > 1,
                }
            ],
        }
        for way in ways
    ]
    return Settings(telemetry={"listen": ""}, connections=connections, routes=routes)


async def create_bucket(server: NatsServer, **config: Any) -> None:
    """Create the bucket `settings` in the domain of a server."""
    async with connect(server.url) as client:
        await JetStream(client).create_stream("KV_settings", ["$KV.settings.>"], **(BUCKET | config))


async def put(server: NatsServer, key: str, payload: bytes, headers: list[tuple[str, str]] | None = None) -> None:
    """Put a value into the bucket of the domain of a server."""
    async with connect(server.url) as client:
        await JetStream(client).publish(f"$KV.settings.{key}", payload, headers)


async def stored(server: NatsServer) -> list[StoredMessage]:
    """Return all messages of the bucket of the domain of a server."""
    async with connect(server.url) as client:
        return await JetStream(client).stream_messages("KV_settings")


async def values(server: NatsServer) -> dict[str, bytes | None]:
    """Return the newest value of each key; None if it is deleted."""
    found: dict[str, bytes | None] = {}
    for one in await stored(server):
        gone = one.header("KV-Operation") or one.header("Nats-Marker-Reason")
        found[one.subject.removeprefix("$KV.settings.")] = None if gone else one.payload
    return found


async def until_both_have(hub: NatsServer, leaf: NatsServer, expected: dict[str, bytes | None]) -> None:
    """Wait until both buckets have these values."""
    found: list[dict[str, bytes | None]] = []

    async def have() -> bool:
        found[:] = [await values(hub), await values(leaf)]
        return found == [expected, expected]

    await eventually(have, EQUAL_WITHIN, lambda: f"found {found}")


@pytest.mark.parametrize("way", ["hub", "leaf"])
@pytest.mark.parametrize("over", ["the leaf node", "the hub"])
async def test_each_operation_arrives_as_what_it_is_in_another_domain(way: str, over: str, tmp_path: Path) -> None:
    async with servers_of_domains(tmp_path) as (hub, leaf):
        for server in (hub, leaf):
            await create_bucket(server)
        origin, copy = (hub, leaf) if way == "hub" else (leaf, hub)
        one = leaf if over == "the leaf node" else hub
        config = copying((one, None if one is hub else "hub"), (one, None if one is leaf else "leaf"), way)
        for key, value in (("a", b"1"), ("b.c", b"2"), ("d", b"3")):
            await put(origin, key, value)
        async with watched(config, Watch()):
            await until_both_have(hub, leaf, {"a": b"1", "b.c": b"2", "d": b"3"})
            await put(origin, "a", b"", DELETE)
            await put(origin, "b.c", b"4")
            await put(origin, "b.c", b"", PURGE)
            await put(origin, "d", b"5", [("Own", "x")])
            await until_both_have(hub, leaf, {"a": None, "b.c": None, "d": b"5"})
        for key, operations in (("a", [None, "DEL"]), ("b.c", ["PURGE"]), ("d", [None, None])):
            found = [one for one in await stored(copy) if one.subject == f"$KV.settings.{key}"]
            assert [one.header("KV-Operation") for one in found] == operations
        assert found[-1].header("Own") == "x"


@pytest.mark.parametrize("over", ["the leaf node", "the hub", "both"])
async def test_buckets_of_two_domains_are_copied_both_ways(over: str, tmp_path: Path) -> None:
    async with servers_of_domains(tmp_path) as (hub, leaf):
        for server in (hub, leaf):
            await create_bucket(server)
        of_hub: tuple[NatsServer, str | None] = (leaf, "hub") if over == "the leaf node" else (hub, None)
        of_leaf: tuple[NatsServer, str | None] = (hub, "leaf") if over == "the hub" else (leaf, None)
        await put(hub, "early", b"from the hub")
        await put(leaf, "early-too", b"from the leaf")
        watch = Watch()
        async with watched(copying(of_hub, of_leaf, "hub", "leaf"), watch):
            expected: dict[str, bytes | None] = {"early": b"from the hub", "early-too": b"from the leaf"}
            await until_both_have(hub, leaf, expected)
            for number in range(KEYS):
                expected[f"key.{number}"] = b"%d" % number
                await put(hub if number % 2 else leaf, f"key.{number}", b"%d" % number)
            await until_both_have(hub, leaf, expected)
            # Written here after it was written there, and removed where it was not written.
            await put(hub, "key.0", b"later")
            await put(leaf, "key.1", b"", DELETE)
            await put(leaf, "key.3", b"", PURGE)
            expected |= {"key.0": b"later", "key.1": None, "key.3": None}
            await until_both_have(hub, leaf, expected)
            sizes = [len(await stored(server)) for server in (hub, leaf)]
            live = watch.live
            assert live is not None
            await eventually(lambda: not any(route.in_hand for route in live.routes))
            assert [len(await stored(server)) for server in (hub, leaf)] == sizes, "values are sent to and fro"
            assert sum(route.conflicts for route in live.routes) == 0


async def test_both_domains_are_equal_after_the_hub_was_killed(tmp_path: Path) -> None:
    async with servers_of_domains(tmp_path) as (hub, leaf):
        for server in (hub, leaf):
            await create_bucket(server)
        watch = Watch()
        async with watched(copying((leaf, "hub"), (leaf, None), "hub", "leaf"), watch):
            await put(hub, "a", b"1")
            await put(leaf, "b", b"1")
            await until_both_have(hub, leaf, {"a": b"1", "b": b"1"})
            await hub.kill()
            for number in range(KEYS):
                await put(leaf, f"key.{number}", b"%d" % number)
            await put(leaf, "a", b"", DELETE)
            await hub.restart()
            await put(hub, "b", b"2")
            expected: dict[str, bytes | None] = {f"key.{number}": b"%d" % number for number in range(KEYS)}
            await until_both_have(hub, leaf, {"a": None, "b": b"2", **expected})


@needs_server(2, 11, lacks="TTLs of single values")
async def test_a_value_expires_in_both_domains(tmp_path: Path) -> None:
    hour = 3600
    # With more history, a server keeps a value at least as long as its marker.
    config = {"allow_msg_ttl": True, "subject_delete_marker_ttl": hour * 1_000_000_000, "max_msgs_per_subject": 1}
    async with servers_of_domains(tmp_path) as (hub, leaf):
        for server in (hub, leaf):
            await create_bucket(server, **config)
        async with watched(copying((leaf, "hub"), (leaf, None), "hub", "leaf"), Watch()):
            await put(hub, "long", b"1", [("Nats-TTL", f"{hour}s")])
            await put(hub, "short", b"1", [("Nats-TTL", "2s")])
            await put(leaf, "stays", b"1")
            await until_both_have(hub, leaf, {"long": b"1", "short": None, "stays": b"1"})
        (long,) = [one for one in await stored(leaf) if one.subject == "$KV.settings.long"]
        assert hour - 60 <= int(str(long.header("Nats-TTL")).removesuffix("s")) <= hour
        for server in (hub, leaf):
            markers = [one for one in await stored(server) if one.header("Nats-Marker-Reason")]
            assert [one.subject for one in markers] == ["$KV.settings.short"]
