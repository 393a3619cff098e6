"""A soak: the real command routes for minutes, its server is restarted again and again, and its memory is measured.

    python -m tests.resilience.soak --minutes 10

Half of the messages go through a core route, half from stream to stream. The router is a process of its own, read
through `/status` and `/proc`; server and load belong to this one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import trio

from router_trio.embedded import HOST, reserve_port
from tests.performance.benchmarks.processor import resident_bytes
from tests.support.command import COMMAND, environment
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import Headers, RawClient, RawNatsError, connect
from tests.support.servers import NatsServer, nats_server

RESTART_EVERY = 20.0
DOWN_FOR = 1.0
SAMPLE_EVERY = 1.0
TICK = 0.04
KEPT = 200_000
"""Messages that each stream keeps: more than an outage accumulates. Their last sequence is the total number."""

FLAT_WITHIN = 0.05
"""Allowed difference between the memory of the last quarter and that of the second."""

SETTLED_WITHIN = 30.0

TROUBLE = (RawNatsError, OSError, trio.BrokenResourceError, trio.TooSlowError)

CONFIG = """
[router]
name = "soak"

[telemetry]
listen = "{listen}"

[connections.main]
servers = ["{url}"]
liveness_interval = "2s"
reconnect_delay = "100ms"
max_reconnect_delay = "1s"
max_pending_operations = 100000

[[routes]]
name = "core"
[routes.from]
subject = "in.*"
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}"

[[routes]]
name = "stream"
[routes.from]
stream = "SOURCE"
durable = "router"
filter = "source.*"
ack_wait = "5s"
[[routes.to]]
subject = "sink.{{{{wildcard(1)}}}}"
jetstream = true
"""


@dataclass(frozen=True)
class Sample:
    """The router's process at one moment: resident bytes, descriptors, and its state."""

    memory: int
    descriptors: int
    connected: bool


class Router:
    """The command, observed from outside."""

    def __init__(self, process: trio.Process, port: int, log: Path) -> None:
        self.process = process
        self._port = port
        self._log = log

    async def status(self) -> dict[str, Any]:
        """Return `/status`. Raises `OSError` if it does not answer."""
        async with await trio.open_tcp_stream(HOST, self._port) as stream:
            await stream.send_all(f"GET /status HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join([part async for part in stream])
        body: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return body

    async def sample(self) -> Sample:
        """Take a sample now, and check its ledgers."""
        status = await self.status()
        _check_ledger(status)
        proc = Path("/proc") / str(self.process.pid)
        connected = status["connections"]["main"]["state"] == "connected"
        return Sample(resident_bytes(self.process.pid), len(list((proc / "fd").iterdir())), connected)

    def stopped(self) -> dict[str, Any]:
        """The log line of its end."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return next(line for line in lines if line["error_code"] == "ROUTER_STOPPED")


@dataclass(frozen=True)
class Report:
    """The findings of a soak. `broken` are the promises that were not kept."""

    seconds: float
    restarts: int
    published: int
    stored: int
    core_received: int
    memory: list[float]
    descriptors: list[int]
    broken: list[str]

    def __str__(self) -> str:
        quarters = ", ".join(f"{one / 2**20:.1f}" for one in self.memory)
        lines = [
            f"{self.seconds:.0f} s, {self.restarts} restarts",
            f"stream route: {self.published} published, {self.stored} stored",
            f"core route: {self.core_received} received, each with its fate",
            f"memory by quarters: {quarters} MiB; last against second {self.growth:+.2%}",
            f"descriptors by quarters, connected: {self.descriptors}",
            *(f"BROKEN: {one}" for one in self.broken),
        ]
        return "\n".join(lines)

    @property
    def growth(self) -> float:
        """The growth from the second quarter's memory to the last quarter's."""
        return self.memory[3] / self.memory[1] - 1


class Load:
    """A publisher with a fixed rate. `published` counts the messages that the source stream has stored."""

    def __init__(self, url: str, rate: float) -> None:
        self.published = 0
        self._url = url
        self._rate = rate

    async def into_stream(self, until: float) -> None:
        """Publish every message until the stream has it."""
        began = trio.current_time()
        while trio.current_time() < until:
            try:
                async with connect(self._url) as client:
                    while (now := trio.current_time()) < until:
                        due = min(1_000, int((now - began) * self._rate) - self.published)
                        await self._publish(client, due)
                        await trio.sleep(TICK)
            except TROUBLE:
                await trio.sleep(TICK)

    async def _publish(self, client: RawClient, count: int) -> None:
        first = self.published
        requests: list[tuple[str, bytes, Headers | None]] = [
            (f"source.{n % 10}", b"%0128d" % n, {"Nats-Msg-Id": str(n)}) for n in range(first, first + count)
        ]
        with trio.fail_after(2):
            await JetStream(client).publish_many(requests)
        self.published += count

    async def to_core(self, until: float) -> None:
        """Publish every message once; while the server is away, none."""
        while trio.current_time() < until:
            try:
                async with connect(self._url) as client:
                    while trio.current_time() < until:
                        chunk = range(int(self._rate * TICK))
                        await client.publish_many([(f"in.{n % 10}", b"%0128d" % n) for n in chunk])
                        await trio.sleep(TICK)
            except TROUBLE:
                await trio.sleep(TICK)


async def soak(minutes: float, rate: float, directory: Path) -> Report:
    """Run for this many minutes at this many messages a second, and judge."""
    samples: list[Sample] = []
    restarts = 0
    async with nats_server(directory) as server:
        async with connect(server.url) as client:
            for name, taken in (("SOURCE", "source.*"), ("SINK", "sink.*")):
                await JetStream(client).create_stream(name, [taken], max_msgs=KEPT)
        async with _command(server, directory) as router:
            load = Load(server.url, rate / 2)
            began = trio.current_time()
            until = began + minutes * 60

            async def restart() -> None:
                nonlocal restarts
                while (at := trio.current_time() + RESTART_EVERY) < until:
                    await trio.sleep_until(at)
                    await (server.kill() if restarts % 2 else server.terminate())
                    await trio.sleep(DOWN_FOR)
                    await server.restart()
                    restarts += 1

            async def watch() -> None:
                while trio.current_time() < until:
                    samples.append(await router.sample())
                    await trio.sleep(SAMPLE_EVERY)

            async with trio.open_nursery() as nursery:
                for task in (restart, watch):
                    nursery.start_soon(task)
                nursery.start_soon(load.into_stream, until)
                nursery.start_soon(load.to_core, until)
            broken = await _settled(router, server)
            status = await router.status()
            async with connect(server.url) as client:
                source, sink = [(await JetStream(client).stream_info(name))["state"] for name in ("SOURCE", "SINK")]
            router.process.terminate()
            with trio.fail_after(SETTLED_WITHIN):
                code = await router.process.wait()
    took = trio.current_time() - began
    if code or router.stopped()["unsettled"]:
        broken.append(f"exit code {code}, {router.stopped()['unsettled']} unsettled")
    if not load.published == source["last_seq"] == sink["last_seq"]:
        broken.append(f"published {load.published}, source {source['last_seq']}, sink {sink['last_seq']}")
    memory = [fmean(one.memory for one in quarter) for quarter in _quarters(samples)]
    descriptors = [max(one.descriptors for one in quarter if one.connected) for quarter in _quarters(samples)]
    received = status["routes"]["core"]["received"]
    report = Report(took, restarts, load.published, sink["last_seq"], received, memory, descriptors, broken)
    if abs(report.growth) > FLAT_WITHIN:
        broken.append(f"memory: the last quarter against the second {report.growth:+.2%}")
    if descriptors[3] > descriptors[1]:
        broken.append(f"descriptors: {descriptors}")
    return report


@asynccontextmanager
async def _command(server: NatsServer, directory: Path) -> AsyncIterator[Router]:
    config, log = directory / "soak.toml", directory / "soak.log"
    with reserve_port() as port, log.open("wb") as stderr:
        config.write_text(CONFIG.format(url=server.url, listen=f"{HOST}:{port}"))
        command = [*COMMAND, "run", str(config)]
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment(), cwd=directory
        )
        try:
            router = Router(process, port, log)
            await eventually(lambda: _is_up(router), 15)
            yield router
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()


async def _is_up(router: Router) -> bool:
    try:
        routes = (await router.status())["routes"].values()
    except OSError:
        return False
    return bool(routes) and all(route["state"] == "running" for route in routes)


async def _settled(router: Router, server: NatsServer) -> list[str]:
    """Wait until nothing is under way; return the ledgers that don't add up then."""
    with trio.move_on_after(SETTLED_WITHIN):
        async with connect(server.url) as client:
            while True:
                info = await JetStream(client).consumer_info("SOURCE", "router")
                status = await router.status()
                books = status["ledger"]["main"]
                if not (info["num_pending"] or info["num_ack_pending"] or books["pending"] or books["in_flight"]):
                    break
                await trio.sleep(0.1)
    status = await router.status()
    _check_ledger(status)
    return [
        f"route {name}: {route}"
        for name, route in status["routes"].items()
        if route["received"] != route["routed"] + route["failed"] or (name == "stream" and route["failed"])
    ]


def _check_ledger(status: dict[str, Any]) -> None:
    books = status["ledger"]["main"]
    total = books["pending"] + books["in_flight"] + sum(books["settled"].values())
    assert books["accepted"] == total, books


def _quarters(samples: list[Sample]) -> list[list[Sample]]:
    size = len(samples) // 4
    return [samples[place * size : (place + 1) * size] for place in range(4)]


def main() -> int:
    """Run the command and return its exit code: 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=5_000, help="messages a second, over both routes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="router-trio-soak-") as directory:
        report = trio.run(soak, given.minutes, given.rate, Path(directory))
    print(report)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
