"""The setting of a run: the server, how long, how often, and where to write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import NatsServer, nats_server

SERVER_CONFIG = 'ping_interval: "1h"\nmax_payload: 2MB\n'
"""No PING in the middle of a measurement: the load generator answers none."""


@dataclass(frozen=True)
class Setting:
    """What every workload needs. `seconds` is the length of one measurement, `rounds` how often each has its turn."""

    server: NatsServer
    directory: Path
    seconds: float
    rounds: int
    quick: bool
    say: Callable[[str], None]

    @property
    def url(self) -> str:
        """The server's."""
        return self.server.url

    @property
    def server_pid(self) -> int:
        """The server's."""
        return self.server.pid


@asynccontextmanager
async def setting(directory: Path, *, quick: bool, say: Callable[[str], None]) -> AsyncIterator[Setting]:
    """A server of one's own while this is entered."""
    async with nats_server(directory, config=SERVER_CONFIG) as server:
        yield Setting(server, directory, 1.2 if quick else 3.0, 3 if quick else 5, quick, say)
