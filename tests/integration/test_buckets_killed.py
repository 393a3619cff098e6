"""Two buckets on two servers, written to while routers and servers are killed: equal after quiet."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from random import Random

import pytest
import trio

from router_trio import Router, Settings
from tests.integration.test_buckets import BUCKET, DELETE, PURGE
from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import nats_server

CONFIGURATION = """
[telemetry]
listen = ""
[connections.here]
servers = ["{here}"]
reconnect_delay = "50ms"
max_reconnect_delay = "300ms"
liveness_interval = "1s"
[connections.there]
servers = ["{there}"]
reconnect_delay = "50ms"
max_reconnect_delay = "300ms"
liveness_interval = "1s"
[[routes]]
name = "to-there"
from = {{ connection = "here", bucket = "settings", durable = "copy", ack_wait = "1s" }}
to = [ {{ connection = "there", bucket = "settings", last_writer = true }} ]
[[routes]]
name = "to-here"
from = {{ connection = "there", bucket = "settings", durable = "copy", ack_wait = "1s" }}
to = [ {{ connection = "here", bucket = "settings", last_writer = true }} ]
"""
KEYS = ("a", "b.c", "b.d", "e")
SEEDS = int(os.environ.get("BUCKET_HISTORIES", "1"))


async def newest(url: str) -> dict[str, bytes | None]:
    """Return the newest values of a bucket; None for those that are deleted."""
    async with connect(url) as client:
        return {
            one.subject: None if one.header("KV-Operation") else one.payload
            for one in await JetStream(client).stream_messages("KV_settings")
        }


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_buckets_are_equal_after_routers_and_servers_were_killed(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    async with nats_server(tmp_path, name="here") as here, nats_server(tmp_path, name="there") as there:
        for server in (here, there):
            async with connect(server.url) as client:
                # Ids are remembered for less time than a killed router is away.
                config = BUCKET | {"duplicate_window": 200_000_000}
                await JetStream(client).create_stream("KV_settings", ["$KV.settings.>"], **config)
        (tmp_path / "router.toml").write_text(CONFIGURATION.format(here=here.url, there=there.url))
        number = 0
        for _ in range(3):
            async with running("run", tmp_path / "router.toml", cwd=tmp_path) as router:
                await router.has_logged("ROUTER_STARTED")
                killed = random.choice([None, here, there])
                for server in (here, there):
                    async with connect(server.url) as client:
                        for _ in range(random.randint(10, 60)):
                            number += 1
                            headers = random.choice([None, None, None, DELETE, PURGE])
                            payload = b"" if headers else b"%d" % number
                            subject = f"$KV.settings.{random.choice(KEYS)}"
                            await JetStream(client).publish(subject, payload, headers)
                    if server is killed:
                        await server.kill()
                        await trio.sleep(random.choice([0, 0.2]))
                        await server.restart()
                await trio.sleep(random.choice([0, 0.01, 0.3]))
                router.send(signal.SIGKILL)
                await router.ended()
            await trio.sleep(random.choice([0, 0.4]))
        async with running("run", tmp_path / "router.toml", cwd=tmp_path) as router:
            await router.has_logged("ROUTER_STARTED")
            found: list[dict[str, bytes | None]] = []

            async def are_equal() -> bool:
                found[:] = [await newest(server.url) for server in (here, there)]
                async with connect(here.url) as one, connect(there.url) as other:
                    infos = [await JetStream(client).consumer_info("KV_settings", "copy") for client in (one, other)]
                left = sum(info["num_pending"] + info["num_ack_pending"] for info in infos)
                return found[0] == found[1] and not left

            await eventually(are_equal, 30, lambda: f"{found}")
            assert len(found[0]) >= 2
            router.send(signal.SIGTERM)
            assert await router.ended() == 0


@pytest.mark.timeout(180)
async def test_lookups_that_a_killed_server_leaves_unanswered_end_no_router(tmp_path: Path) -> None:
    async with nats_server(tmp_path, name="here") as here, nats_server(tmp_path, name="there") as there:
        for server in (here, there):
            async with connect(server.url) as client:
                await JetStream(client).create_stream("KV_settings", ["$KV.settings.>"], **BUCKET)
        patient = CONFIGURATION.replace('liveness_interval = "1s"', 'liveness_interval = "60s"')
        (tmp_path / "router.toml").write_text(patient.format(here=here.url, there=there.url))
        async with Router(Settings.load(tmp_path / "router.toml"), log=False).open() as live:
            await eventually(lambda: all(route.state == "running" for route in live.routes))
            async with connect(here.url) as client:
                await JetStream(client).publish("$KV.settings.a", b"1")
            await eventually(lambda: live.routes[0].settled["routed"] == 1)
            there.stop()
            async with connect(here.url) as client:
                await JetStream(client).publish("$KV.settings.b", b"2")
            await eventually(lambda: live.routes[0].received == 2)
            await trio.sleep(0.1)  # the newest value of `b` is looked up now; otherwise this shows less
            await there.kill()
            await there.restart()
            await eventually(lambda: live.routes[0].settled["routed"] == 2, 60.0, live.status)
        assert await newest(there.url) == {"$KV.settings.a": b"1", "$KV.settings.b": b"2"}
