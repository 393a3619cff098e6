"""A scene: one server, routers, and a proxy for each of their connections.

A scene holds everything that a fault may touch. The routers are real ones in this process; those of `workers/` are
processes of their own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from router_trio import Settings
from router_trio.embedded import HOST, reserve_port
from tests.resilience.chaos import load, variants
from tests.resilience.chaos.routers import Kept, KeptRouter
from tests.resilience.chaos.schedule import Schedule
from tests.resilience.chaos.spy import Spy
from tests.resilience.chaos.variants import ACK_WAIT, DURABLE, FILTER, SOURCE
from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.support.proxy import TcpProxy, background, tcp_proxy
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.servers import NatsServer, nats_server
from tests.support.watch import Watch
from tests.support.websockets import websocket_config

LIVENESS = 0.4
"""Seconds, the setting of a router under test. The longest fault is longer than two missed fences."""


class Surroundings:
    """Everything around the routers that a fault may touch, and the routers as far as a fault restarts them."""

    routers: Sequence[Kept]

    def __init__(
        self, schedule: Schedule, server: NatsServer, proxies: Sequence[TcpProxy], listeners: str = ""
    ) -> None:
        """`listeners` is the configuration of the server's other listeners."""
        self.schedule = schedule
        self._listeners = listeners
        self.server = server
        self.proxies = proxies
        self.spy = Spy()
        self.deaths: list[tuple[float, float]] = []
        """Start and end of each death of the server: JetStream stops before the process, which ends before it is
        reaped.
        """
        self.taken: Sequence[load.Taken] = ()
        """Messages that the source has stored, and when."""
        self.sink_before: list[StoredMessage] = []
        """Contents of the sinks that were deleted."""
        self.sink_is_read = trio.Lock()
        """Held while nothing may reach the server: a network fault that ends must not let anything through."""

    async def close_routers(self) -> None:
        """Leave all routers: they drain, and their ledgers are closed."""
        for router in self.routers:
            await router.close()

    # --- the server ---

    async def die(self, *, gently: bool = False, since: float | None = None) -> None:
        """End the server's process; `since` is when that began."""
        began = trio.current_time() if since is None else since
        if gently:
            await self.server.terminate()
        else:
            await self.server.kill()
        self.deaths.append((began, trio.current_time()))

    async def revive(self) -> None:
        """Start a new process of the server on the same store; streams in memory are created again."""
        await self.server.restart()
        if variants.dies_with_its_server(self.schedule.variant):
            await self.create_sink()
            await self.create_source()

    async def change(self, **changes: Any) -> None:
        """Reload the server with another configuration; without arguments, with the original one."""
        await self.server.reload(config(**changes) + self._listeners)

    async def stored(self, stream: str) -> list[StoredMessage]:
        """Return the contents of a stream."""
        async with load.client(self.server.url) as client:
            return await JetStream(client).stream_messages(stream)

    async def create_source(self) -> None:
        """Create the stream that the routers read."""
        async with load.client(self.server.url) as client:
            await variants.create_source(JetStream(client), self.schedule.variant)

    async def create_sink(self) -> None:
        """Create the stream that keeps what the routers send."""
        async with load.client(self.server.url) as client:
            await variants.create_sink(JetStream(client), self.schedule)


class Scene(Surroundings):
    """All that a fault may touch, around routers in this process; open it with `scene`."""

    def __init__(
        self,
        schedule: Schedule,
        server: NatsServer,
        proxies: Sequence[TcpProxy],
        collector: OtlpReceiver,
        listeners: str = "",
    ) -> None:
        super().__init__(schedule, server, proxies, listeners)
        self.collector = collector
        count = variants.routers(schedule.variant)
        self.routers: list[KeptRouter] = [
            self._router(proxies[first::count], alone=count == 1) for first in range(count)
        ]

    def _router(self, proxies: Sequence[TcpProxy], *, alone: bool) -> KeptRouter:
        return KeptRouter(router_settings(self.schedule, proxies, self.collector), self.spy, proxies, alone=alone)

    @property
    def runs(self) -> list[Watch]:
        """Every router that was opened."""
        return [watch for router in self.routers for watch in router.runs]

    @property
    def failed(self) -> Counter[str]:
        """Messages that routes failed, by reason, over all finished runs."""
        return sum((router.failed for router in self.routers), Counter())

    @property
    def received(self) -> int:
        """Messages that routes received, over all finished runs."""
        return sum(router.received for router in self.routers)

    @property
    def routed(self) -> int:
        """Messages that routes delivered, over all finished runs."""
        return sum(router.routed for router in self.routers)

    @property
    def in_hand(self) -> int:
        """Messages that the running routes have received and not settled."""
        return sum(route.in_hand for router in self.routers for route in router.live.routes)

    def orphans(self) -> int:
        """Return how many messages are in hand whose durable may be gone with a stream in memory."""
        return self.in_hand if variants.dies_with_its_server(self.schedule.variant) else 0

    def reports(self) -> str:
        """Return the state that the last routers report, for the message of a failure."""
        reports = [router.live.status() for router in self.routers]
        return json.dumps([{name: one[name] for name in ("connections", "routes")} for one in reports], default=str)


def router_settings(schedule: Schedule, proxies: Sequence[TcpProxy], collector: OtlpReceiver) -> Settings:
    """Return the settings of a router that reaches its server through these proxies: one for each connection."""
    return Settings(**router_sections(schedule, proxies, collector))


def router_sections(
    schedule: Schedule, proxies: Sequence[TcpProxy], collector: OtlpReceiver | None = None
) -> dict[str, Any]:
    """Return the sections of the configuration of such a router; without a collector nothing is traced."""
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
        source |= {"stream": SOURCE, "durable": DURABLE, "filter": FILTER}
        source |= {"ack_wait": ACK_WAIT, "max_in_flight": schedule.max_in_flight}
        to |= {"subject": "sink.{{wildcard(1)}}", "jetstream": True}
    else:
        source |= {"subject": "in.*"}
        to |= {"subject": "out.{{wildcard(1)}}"}
    retry = {"retry": {"initial": 0.1}} if schedule.kind == "stream" else {}
    telemetry: dict[str, Any] = {"listen": ""}
    if schedule.sampled and collector is not None:
        telemetry |= {"otlp_endpoint": collector.endpoint, "trace_sample_ratio": schedule.sampled}
    route: dict[str, Any] = {"name": "route", "from": source, "to": [to], **retry}
    if schedule.variant == "content":
        route = variants.by_content(schedule.seed, route)
    elif schedule.variant == "keys":
        route |= variants.by_key(schedule.seed)
    return {
        "router": {"shutdown_timeout": 0.5},
        "telemetry": telemetry,
        "connections": {
            name: {"servers": [variants.url(schedule.variant, proxy)], **common}
            for name, proxy in zip(names, proxies, strict=True)
        },
        "routes": [route],
    }


def config(
    *,
    max_payload: int | None = None,
    max_connections: int | None = None,
    no_publish: Sequence[str] = (),
    no_subscribe: Sequence[str] = (),
) -> str:
    """Return the server's configuration: two users, one of whom may be denied some subjects."""

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
    """Yield server, streams, proxies and the first routers, ready for faults. Call `close_routers` before the end."""
    async with AsyncExitStack() as stack:
        server, proxies, listeners = await servers_for(schedule, directory, stack)
        made = Scene(schedule, server, proxies, await stack.enter_async_context(otlp_receiver()), listeners)
        async with opened(made):
            yield made


async def servers_for(
    schedule: Schedule, directory: Path, stack: AsyncExitStack
) -> tuple[NatsServer, list[TcpProxy], str]:
    """Open, on `stack`, a server and a proxy for each connection; return them, and the server's other listeners."""
    listeners, port = "", 0
    if schedule.variant == "websocket":
        port = stack.enter_context(reserve_port())
        listeners = websocket_config(port)
    server = await stack.enter_async_context(nats_server(directory, config=config() + listeners))
    needed = schedule.connections * variants.routers(schedule.variant)
    proxies = [await stack.enter_async_context(tcp_proxy(HOST, port or server.port)) for _ in range(needed)]
    return server, proxies, listeners


@asynccontextmanager
async def opened(made: Surroundings) -> AsyncIterator[None]:
    """Create the streams, and keep the routers of a scene running until the end."""
    await made.create_sink()
    if made.schedule.kind == "stream":
        await made.create_source()
    if made.schedule.variant == "max-deliver":
        async with load.client(made.server.url) as client:
            await variants.create_worn_durable(client, made.schedule.messages)
    async with background() as nursery:
        for router in made.routers:
            nursery.start_soon(router.keep)
        for router in made.routers:
            await router.is_open()
        yield
