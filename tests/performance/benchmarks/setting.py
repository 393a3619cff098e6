"""The setting of a run: the server, durations, rounds, and where to write."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.performance.benchmarks.contestants import Job
from tests.performance.benchmarks.environment import PEERS
from tests.support.servers import NatsServer
from tests.support.websockets import websocket_server

SERVER_CONFIG = 'ping_interval: "1h"\nmax_payload: 2MB\n'
"""No PING in the middle of a measurement: the load generator answers none."""


@dataclass(frozen=True)
class Setting:
    """The common needs of all workloads. `collector` is the address of a collector that accepts every span.

    `seconds` is the length of one measurement, `rounds` how often each has its turn. `websocket_url` is that of the
    server's listener for WebSockets, if there is one server.
    """

    servers: Sequence[NatsServer]
    collector: str
    directory: Path
    seconds: float
    rounds: int
    quick: bool
    say: Callable[[str], None]
    websocket_url: str = ""

    @property
    def url(self) -> str:
        """The URL of the server, of the first one if there are several."""
        return self.servers[0].url

    def job(self, kind: str, **changes: Any) -> Job:
        """Return a job for a contestant here: with traces on, unless `changes` set something else."""
        return replace(Job(self.url, kind, self.directory, self.collector), **changes)

    @property
    def server_pids(self) -> list[int]:
        """The process ids of the servers."""
        return [server.pid for server in self.servers]


@asynccontextmanager
async def setting(directory: Path, *, quick: bool, say: Callable[[str], None]) -> AsyncIterator[Setting]:
    """Run a server while the context is open."""
    async with (
        websocket_server(directory, config=SERVER_CONFIG) as (server, websocket_url),
        listening("otlp_sink.py") as port,
    ):
        yield Setting(
            [server],
            f"http://127.0.0.1:{port}",
            directory,
            1.2 if quick else 3.0,
            3 if quick else 5,
            quick,
            say,
            websocket_url,
        )


@asynccontextmanager
async def listening(script: str, *arguments: str) -> AsyncIterator[int]:
    """Run a script of `peers/` while the context is open. Return the port that it prints first."""
    command = [sys.executable, str(PEERS / script), *arguments]
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE, check=False)
        )
        assert process.stdout is not None
        try:
            yield int(await process.stdout.receive_some())
        finally:
            process.kill()
