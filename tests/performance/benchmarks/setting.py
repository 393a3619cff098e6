"""The setting of a run: the server, how long, how often, and where to write."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.performance.benchmarks.contestants import Job
from tests.performance.benchmarks.environment import PEERS
from tests.support.servers import NatsServer, nats_server

SERVER_CONFIG = 'ping_interval: "1h"\nmax_payload: 2MB\n'
"""No PING in the middle of a measurement: the load generator answers none."""


@dataclass(frozen=True)
class Setting:
    """What every workload needs. `collector` is the address of one that takes every span.

    `seconds` is the length of one measurement, `rounds` how often each has its turn.
    """

    server: NatsServer
    collector: str
    directory: Path
    seconds: float
    rounds: int
    quick: bool
    say: Callable[[str], None]

    @property
    def url(self) -> str:
        """The server's."""
        return self.server.url

    def job(self, kind: str, **changes: Any) -> Job:
        """What a contestant is to do here: with traces on, unless `changes` say something else."""
        return replace(Job(self.url, kind, self.directory, self.collector), **changes)

    @property
    def server_pid(self) -> int:
        """The server's."""
        return self.server.pid


@asynccontextmanager
async def setting(directory: Path, *, quick: bool, say: Callable[[str], None]) -> AsyncIterator[Setting]:
    """A server of one's own while this is entered."""
    async with nats_server(directory, config=SERVER_CONFIG) as server, listening("otlp_sink.py") as port:
        yield Setting(
            server, f"http://127.0.0.1:{port}", directory, 1.2 if quick else 3.0, 3 if quick else 5, quick, say
        )


@asynccontextmanager
async def listening(script: str, *arguments: str) -> AsyncIterator[int]:
    """Run a script of `peers/` while this is entered. Return the port that it prints first."""
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
