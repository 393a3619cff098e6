"""A scene: one server, a proxy for each connection of the router, and routers that follow one another.

Everything that a fault may touch is here. The routers are real ones in this process; each is watched, and its books are
checked when it is left.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from router_trio import Live, Settings
from router_trio.embedded import HOST
from router_trio.errors import AuthorizationError
from tests.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.proxy import TcpProxy, background, tcp_proxy
from tests.raw_jetstream import JetStream, StoredMessage
from tests.resilience.chaos import load
from tests.resilience.chaos.schedule import Schedule
from tests.resilience.chaos.spy import Spy
from tests.servers import NatsServer, nats_server
from tests.watch import Watch, watched

LIVENESS = 0.4
ACK_WAIT = 2.0
"""Seconds: what a router under test is set to. The longest fault is longer than two missed fences."""

DURABLE = "router"
SINK = "SINK"
SOURCE = "SOURCE"


class Scene:
    """See `scene`."""

    def __init__(
        self, schedule: Schedule, server: NatsServer, proxies: Sequence[TcpProxy], collector: OtlpReceiver
    ) -> None:
        self.schedule = schedule
        self.server = server
        self.proxies = proxies
        self.collector = collector
        self.spy = Spy()
        self.deaths: list[tuple[float, float]] = []
        """From when to when the server ended: JetStream before the process, and that before it is reaped."""
        self.runs: list[Watch] = []
        self.failed: Counter[str] = Counter()
        """Messages that routes failed, by reason, over all runs that are over."""
        self.received = 0
        self.routed = 0
        self.sink_before: list[StoredMessage] = []
        """What the sinks held that were deleted."""
        self.sink_is_read = trio.Lock()
        """Held while nothing may reach the server: a fault of the network that ends must not let anything through."""
        self._leave = trio.Event()
        self._over = False
        self._left = trio.Event()
        self._opened = trio.Event()

    @property
    def live(self) -> Live:
        """The router that runs now, or ran last."""
        live = self.runs[-1].live
        assert live is not None
        return live

    # --- the router ---

    async def keep_routers(self) -> None:
        """Run a router, and a new one whenever that is left, until `close_router`."""
        while not self._over:
            self._leave = trio.Event()
            watch = Watch()
            try:
                async with watched(self._settings(), watch, connect=self.spy.connect):
                    self.runs.append(watch)
                    self._opened.set()
                    await self._leave.wait()
            except AuthorizationError:
                # A server that loads another configuration refuses whoever is just shaking hands. A router that is
                # refused before its first link ends, and who watches over processes starts it again.
                continue
            self._count(self.live)
            self._left.set()

    async def restart_router(self) -> None:
        """Leave the router that runs, and wait for the next."""
        self._opened = trio.Event()
        self._leave.set()
        await self._opened.wait()

    async def close_router(self) -> None:
        """Leave the last router: it drains, and its books are closed."""
        self._over = True
        self._left = trio.Event()
        self._leave.set()
        await self._left.wait()

    async def router_is_open(self) -> None:
        """Wait for the first one."""
        await self._opened.wait()

    def told(self) -> str:
        """What the last router says of itself, for a failure's message."""
        status = self.live.status()
        return json.dumps({"connections": status["connections"], "routes": status["routes"]}, default=str)

    def _count(self, live: Live) -> None:
        for route in live.routes:
            self.received += route.received
            self.routed += sum(route.routed.values())
            self.failed.update(route.failed)

    # --- the server ---

    async def die(self, *, gently: bool = False, since: float | None = None) -> None:
        """End the server's process; `since` says when that began."""
        began = trio.current_time() if since is None else since
        if gently:
            await self.server.terminate()
        else:
            await self.server.kill()
        self.deaths.append((began, trio.current_time()))

    async def change(self, **changes: Any) -> None:
        """Let the server run with another configuration; without arguments with the first one."""
        await self.server.reload(config(**changes))

    async def stored(self, stream: str) -> list[StoredMessage]:
        """What a stream holds."""
        async with load.client(self.server.url) as client:
            return await JetStream(client).stream_messages(stream)

    async def create_sink(self) -> None:
        """Create the stream that keeps what the routers send."""
        async with load.client(self.server.url) as client:
            await JetStream(client).create_stream(SINK, ["sink.*" if self.schedule.kind == "stream" else "out.*"])

    # --- settings ---

    def _settings(self) -> Settings:
        schedule = self.schedule
        names = ("main", "away")[: schedule.connections]
        common: dict[str, Any] = {
            "user": "router",
            "password": "router",
            "connect_timeout": 1.0,
            "liveness_interval": LIVENESS,
            "reconnect_delay": 0.05,
            "max_reconnect_delay": 0.3,
            "max_pending_operations": schedule.max_pending,
        }
        source: dict[str, Any] = {"connection": "main"}
        to: dict[str, Any] = {"connection": names[-1]}
        if schedule.kind == "stream":
            source |= {"stream": SOURCE, "durable": DURABLE, "filter": "source.*"}
            source |= {"ack_wait": ACK_WAIT, "nak_delay": 0.1, "max_in_flight": schedule.max_in_flight}
            to |= {"subject": "sink.{{wildcard(1)}}", "jetstream": True}
        else:
            source |= {"subject": "in.*"}
            to |= {"subject": "out.{{wildcard(1)}}"}
        telemetry: dict[str, Any] = {"listen": ""}
        if schedule.sampled:
            telemetry |= {"otlp_endpoint": self.collector.endpoint, "trace_sample_ratio": schedule.sampled}
        return Settings(
            router={"shutdown_timeout": 0.5},
            telemetry=telemetry,
            connections={
                name: {"servers": [proxy.url], **common} for name, proxy in zip(names, self.proxies, strict=True)
            },
            routes=[{"name": "route", "from": source, "to": [to]}],
        )


def config(
    *,
    max_payload: int | None = None,
    max_connections: int | None = None,
    no_publish: Sequence[str] = (),
    no_subscribe: Sequence[str] = (),
) -> str:
    """The server's configuration: two users, one of whom may be kept from some subjects."""

    def deny(subjects: Sequence[str]) -> str:
        return f"{{ deny: {json.dumps(list(subjects))} }}"

    permissions = f"{{ publish: {deny(no_publish)}, subscribe: {deny(no_subscribe)} }}"
    lines = [
        "authorization { users: [",
        "  { user: load, password: load }",
        f"  {{ user: router, password: router, permissions: {permissions} }}",
        "] }",
        'lame_duck_grace_period: "100ms"',
    ]
    if max_payload is not None:
        lines.append(f"max_payload: {max_payload}")
    if max_connections is not None:
        lines.append(f"max_connections: {max_connections}")
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def scene(schedule: Schedule, directory: Path) -> AsyncIterator[Scene]:
    """Server, streams, proxies and the first router, ready to be troubled. `close_router` before the end."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(nats_server(directory, config=config()))
        proxies = [await stack.enter_async_context(tcp_proxy(HOST, server.port)) for _ in range(schedule.connections)]
        made = Scene(schedule, server, proxies, await stack.enter_async_context(otlp_receiver()))
        await made.create_sink()
        if schedule.kind == "stream":
            async with load.client(server.url) as client:
                await JetStream(client).create_stream(SOURCE, ["source.*"])
        async with background() as nursery:
            nursery.start_soon(made.keep_routers)
            await made.router_is_open()
            yield made
