"""Real nats-servers for tests: killed, stopped, reloaded, queried, and three of them as a cluster.

The process control is that of the package (`router_trio.embedded`). At the end a server is killed, not stopped in
order: its store is discarded, and a test should not wait for it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from router_trio.embedded import HOST, EmbeddedServer, quoted, reserve_port
from tests.support.server_version import server_binary

CLUSTER_READY_WITHIN = 30.0
_POLL_INTERVAL = 0.02


class NatsServer(EmbeddedServer):
    """A server with a monitoring port, and with signals."""

    def __init__(
        self,
        directory: Path,
        port: int,
        monitor_port: int,
        *,
        name: str,
        base: str,
        config: str,
        greets: bool,
    ) -> None:
        self.name = name
        self.monitor_url = f"http://{HOST}:{monitor_port}"
        self.monitor_port = monitor_port
        self._base = f'server_name: "{name}"\nhttp: "{HOST}:{monitor_port}"\n{base}'
        super().__init__(directory, port, config=self._base + config, greets=greets, binary=server_binary())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with trio.CancelScope(shield=True):  # bounded: a killed process is gone within its own deadline
            await self.kill()

    def stop(self) -> None:
        """Freeze the process (SIGSTOP): its sockets stay open and send nothing. Return when it is frozen."""
        self.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def cont(self) -> None:
        """Resume a frozen process (SIGCONT)."""
        self.send_signal(signal.SIGCONT)

    def lame_duck(self) -> None:
        """Enter lame duck mode (SIGUSR2): clients are notified by INFO, later closed, then the server ends.

        The server waits `lame_duck_grace_period` (10 s unless configured) before it closes the first client.
        """
        self.send_signal(signal.SIGUSR2)

    async def reload(self, config: str) -> None:
        """Replace the extra configuration and apply it (SIGHUP). Return when the server has done so.

        Raises `AssertionError`, with the server's log, if the server refuses it.
        """
        loaded_at = (await self.varz())["config_load_time"]
        refused = self.recent_log().count("Failed to reload")
        self.write_config(self._base + config)
        self.send_signal(signal.SIGHUP)
        while (await self.varz())["config_load_time"] == loaded_at:
            if self.recent_log().count("Failed to reload") > refused:
                raise AssertionError(f"the server refused the new configuration:\n{self.recent_log()}")
            await trio.sleep(_POLL_INTERVAL)

    async def varz(self) -> dict[str, Any]:
        """Return general figures: connections, bytes, slow consumers ... See `monitor`."""
        return await self.monitor("/varz")

    async def monitor(self, path: str) -> dict[str, Any]:
        """Return the JSON of the monitoring port for a path, `/jsz?streams=1` for instance, whatever the status.

        Raises `OSError` if the server is not there; waits forever on a frozen one.
        """
        async with await trio.open_tcp_stream(HOST, self.monitor_port) as stream:
            await stream.send_all(f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
            answer = b"".join([part async for part in stream])
        body: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return body


@asynccontextmanager
async def nats_server(
    tmp_path: Path,
    *,
    config: str = "",
    jetstream: bool = True,
    port: int | None = None,
    greets: bool = True,
    name: str = "test",
) -> AsyncIterator[NatsServer]:
    """Run a server in a directory of its own below `tmp_path`; its log stays there, its store does not.

    `config` is extra configuration text, `greets=False` is for servers that require TLS before anything else.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=tmp_path))
    store = directory / "store"
    base = f"jetstream {{ store_dir: {quoted(store)} }}\n" if jetstream else ""
    try:
        with reserve_port(port or 0) as client_port, reserve_port() as monitor_port:
            server = NatsServer(
                directory, client_port, monitor_port, name=name, base=base, config=config, greets=greets
            )
            async with server:
                yield server
    finally:
        shutil.rmtree(store, ignore_errors=True)


@dataclass(frozen=True)
class Cluster:
    """Connected servers, with JetStream over all of them."""

    servers: Sequence[NatsServer]

    @property
    def urls(self) -> list[str]:
        """The URLs to which clients connect, one per server."""
        return [server.url for server in self.servers]

    async def ready(self) -> None:
        """Wait until every server is healthy and JetStream's leader sees all the others up to date.

        Raises `trio.TooSlowError` after `CLUSTER_READY_WITHIN` seconds.
        """
        with trio.fail_after(CLUSTER_READY_WITHIN):
            while True:
                if await self._is_ready():
                    return
                await trio.sleep(_POLL_INTERVAL)

    async def stream_leader(self, stream: str) -> NatsServer:
        """Return the running server that leads a stream. Waits until there is one."""
        while True:
            for server in self.servers:
                if server.is_running and (name := await _stream_leader(server, stream)):
                    for leader in self.servers:
                        if leader.name == name and leader.is_running:
                            return leader
            await trio.sleep(_POLL_INTERVAL)

    async def _is_ready(self) -> bool:
        seen = 0
        for server in self.servers:
            if (await server.monitor("/healthz"))["status"] != "ok":
                return False
            group = (await server.monitor("/jsz")).get("meta_cluster", {})
            if group.get("leader") == server.name:
                others = group.get("replicas", ())
                seen = 1 + sum(1 for other in others if other["current"] and not other.get("offline"))
        return seen == len(self.servers)


@asynccontextmanager
async def cluster(tmp_path: Path, size: int = 3, *, config: str = "") -> AsyncIterator[Cluster]:
    """Run a cluster that can hold R3 streams; entered when it is usable."""
    with ExitStack() as ports:
        routes = [ports.enter_context(reserve_port()) for _ in range(size)]
        peers = ", ".join(f'"nats-route://{HOST}:{route}"' for route in routes)
        async with AsyncExitStack() as stack:
            servers = []
            for number, route in enumerate(routes, 1):
                own = f'cluster {{ name: test, listen: "{HOST}:{route}", routes: [{peers}] }}\n'
                running = nats_server(tmp_path, config=own + config, name=f"node{number}")
                servers.append(await stack.enter_async_context(running))
            group = Cluster(servers)
            await group.ready()
            yield group


async def _stream_leader(server: NatsServer, stream: str) -> str | None:
    try:
        accounts = (await server.monitor("/jsz?streams=1")).get("account_details", ())
    except (OSError, trio.BrokenResourceError):
        return None
    for account in accounts:
        for detail in account.get("stream_detail", ()):
            if detail["name"] == stream:
                name: str | None = detail.get("cluster", {}).get("leader")
                return name
    return None
