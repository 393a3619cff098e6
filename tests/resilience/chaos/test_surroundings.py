"""Faults around a router and a server: clocks, names, certificates, disks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio import Settings
from router_trio.embedded import quoted
from router_trio.errors import PublishError
from tests.resilience.chaos import load
from tests.resilience.chaos.load import numbers, payload, subject
from tests.resilience.chaos.scene import config
from tests.resilience.chaos.verdict import out_of_order
from tests.support.certificates import create_certificates
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.server_version import needs_server
from tests.support.servers import NatsServer, nats_server
from tests.support.settings import settings, stream_route
from tests.support.watch import Watch, assert_alive, watched

DAY = 24 * 3600.0
MESSAGES = 1_000

DISK = 32 * 1024 * 1024
"""Size of the disk that fills up, in bytes."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of `DISK` bytes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small file system needs Linux and root")
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount a tmpfs")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], capture_output=True, check=True)


async def test_a_jump_of_the_wall_clock_expires_and_delays_nothing(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_time, jump = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true_time() + jump[0])
    async with watched(settings(server.url, pending_max_age="20s")) as watch:
        live = watch.live
        assert live is not None
        await server.kill()
        await watch.until("NATS_CONNECTION_LOST")
        receipts = []
        for jump[0] in (DAY, -2 * DAY, 0.0, 30 * DAY):
            receipts.append(await live.publish("out", b"x"))
            attempts = watch.count("NATS_RECONNECT_ATTEMPT")
            await watch.until("NATS_RECONNECT_ATTEMPT", times=attempts + 2)
        await server.restart()
        restored = await watch.until("NATS_CONNECTION_RESTORED")
        assert restored.outage_seconds < 20
        with trio.fail_after(10):
            assert {(await receipt.settled()).name for receipt in receipts} == {"fenced"}
        assert not watch.of("NATS_PENDING_DROPPED")
        await assert_alive(live)


async def test_a_slow_resolver_does_not_delay_other_connections(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = SlowResolver("nats.test")
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    try:
        given = Settings(
            telemetry={"listen": ""},
            connections={
                "far": _quick(f"nats://nats.test:{server.port}", connect_timeout=0.3),
                "near": _quick(server.url, connect_timeout=0.3),
            },
        )
        began = trio.current_time()
        async with watched(given) as watch:
            live = watch.live
            assert live is not None
            assert trio.current_time() - began < 2
            near = await live.publish("out", b"x", connection="near")
            assert (await near.settled()).name == "fenced"
            far = await live.publish("out", b"x", connection="far")
            failed = await watch.until("NATS_CONNECTION_FAILED", times=2)
            assert (failed.connection, failed.reason) == ("far", "timeout")
            assert live.connections["near"].state.lost == 0
            resolver.answers.set()
            with trio.fail_after(10):
                assert (await far.settled()).name == "fenced"
            await assert_alive(live)
    finally:
        resolver.answers.set()


async def test_leaving_does_not_wait_for_a_slow_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = SlowResolver("nats.test")
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    try:
        given = Settings(telemetry={"listen": ""}, connections={"far": _quick("nats.test:4222", connect_timeout=30)})
        with trio.move_on_after(0.3) as scope:
            async with watched(given):
                pytest.fail("opened without an answer of the resolver")
        assert scope.cancelled_caught
        assert trio.current_time() - scope.deadline < 2
    finally:
        resolver.answers.set()


async def test_an_expired_certificate_is_reported_and_its_successor_accepted(tmp_path: Path) -> None:
    certificates = create_certificates(tmp_path / "certificates")
    good = certificates.server_config()
    expired = certificates.server_config(server=certificates.expired_server)
    async with (
        nats_server(tmp_path, config=good, jetstream=False) as server,
        watched(settings(server.url, tls_ca_file=certificates.ca)) as watch,
    ):
        live = watch.live
        assert live is not None
        await server.reload(expired)
        await server.kill()
        await server.restart()
        failed = await watch.until("NATS_CONNECTION_FAILED")
        while "expired" not in failed.detail:  # the first attempts may have found no server
            failed = await watch.until("NATS_CONNECTION_FAILED", times=len(watch.of("NATS_CONNECTION_FAILED")) + 1)
        receipt = await live.publish("out", b"x")
        assert receipt.status == "queued"
        await server.reload(good)
        with trio.fail_after(10):
            assert (await receipt.settled()).name == "fenced"
        await assert_alive(live)
        assert watch.gauges["main"] == [1.0, 0.5, 1.0]


async def test_a_restored_permission_is_noticed_on_the_link_that_lacked_it(tmp_path: Path) -> None:
    async with nats_server(tmp_path, config=config(no_subscribe=["_INBOX.>"])) as server:
        async with load.client(server.url) as client:
            await JetStream(client).create_stream("SOURCE", ["source.*"])
            await JetStream(client).create_stream("SINK", ["sink.*"])
            await _publish(client, range(10))
        route = stream_route("SOURCE", "sink.{{wildcard(1)}}", filter="source.*")
        given = settings(server.url, routes=[route], user="router", password="router")
        async with watched(given) as watch:
            live = watch.live
            assert live is not None
            # Neither nats-py, which requests the consumer, nor the link, which waits for PubAcks, gets an answer.
            assert watch.of("NATS_SUBSCRIBE_ERROR")
            with pytest.raises(PublishError, match="does not permit this user"):
                await live.publish_with_ack("sink.x", b"x")
            await server.reload(config())
            await eventually(lambda: live.routes[0].routed["sink.{{wildcard(1)}}"] == 10, 20, live.status)
            assert (await live.publish_with_ack("sink.x", b"x")).status == "acked"
            assert not watch.of("NATS_CONNECTION_LOST")
            await assert_alive(live)


@needs_server(2, 14, lacks="end of a stream at the first write that failed")
async def test_a_full_disk_stops_a_stream_and_loses_nothing(server: NatsServer, small_disk: Path) -> None:
    limit = f"jetstream {{ store_dir: {quoted(small_disk / 'store')}, max_file_store: 1GB }}\n"
    async with nats_server(small_disk, config=limit, jetstream=False, name="full") as full:
        async with connect(server.url) as client:
            await JetStream(client).create_stream("SOURCE", ["source.*"])
            await _publish(client, range(MESSAGES // 2))
        async with connect(full.url) as client:
            await JetStream(client).create_stream("SINK", ["sink.*"])
        async with watched(_two(server.url, full.url)) as watch:
            live = watch.live
            assert live is not None
            route = live.routes[0]
            await eventually(lambda: sum(route.routed.values()) == MESSAGES // 2, 30)
            filler = small_disk / "filler"
            _fill(filler)
            async with connect(server.url) as client:
                await _publish(client, range(MESSAGES // 2, MESSAGES))
            # Such a server answers nothing at all: publishes stay in flight.
            await eventually(lambda: live.ledger()["sink"]["in_flight"] == MESSAGES // 2, 30, live.ledger)
            async with connect(full.url) as client:
                await client.ping()
            assert sum(route.routed.values()) == MESSAGES // 2
            filler.unlink()
            await full.restart()
            await eventually(lambda: _all_acked(watch), 40, lambda: f"{live.status()}")
            await assert_alive(live)
        async with connect(full.url) as client:
            stored = await JetStream(client).stream_messages("SINK")
    arrived = [found for message in stored for found in numbers(message.payload)]
    assert set(arrived) == set(range(MESSAGES))
    assert out_of_order(range(MESSAGES), arrived) == []


class SlowResolver:
    """A `socket.getaddrinfo` that does not answer for one name until `answers` is set; then that name is loopback.

    Numeric look-ups, which trio makes first, are answered at once: they involve no resolver.
    """

    def __init__(self, name: str) -> None:
        self.answers = threading.Event()
        self._name = name
        self._resolve = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        if host in (self._name, self._name.encode()) and not flags & socket.AI_NUMERICHOST:
            self.answers.wait(30)
            host = "127.0.0.1"
        return self._resolve(host, port, family, type, proto, flags)


def _fill(file: Path) -> None:
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as filler, suppress(OSError):  # no space left
        while True:
            filler.write(b"x" * 4096)


def _quick(server: str, **options: Any) -> dict[str, Any]:
    return {"servers": [server], "reconnect_delay": 0.05, "max_reconnect_delay": 0.3, **options}


def _two(source: str, sink: str) -> Settings:
    route = stream_route(
        "SOURCE", "sink.{{wildcard(1)}}", filter="source.*", connection="source", retry={"initial": 0.2}
    )
    route["to"][0]["connection"] = "sink"
    return Settings(
        telemetry={"listen": ""}, connections={"source": _quick(source), "sink": _quick(sink)}, routes=[route]
    )


async def _publish(client: Any, chunk: range) -> None:
    await JetStream(client).publish_many(
        [(subject("source", n), payload(n), [("Nats-Msg-Id", f"id-{n}")]) for n in chunk]
    )


def _all_acked(watch: Watch) -> bool:
    assert watch.live is not None
    route = watch.live.routes[0]
    return sum(route.routed.values()) >= MESSAGES and not watch.live.ledger()["sink"]["in_flight"]
