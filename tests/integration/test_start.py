"""Imports that `router-trio run` defers until its first route is subscribed: a core route misses messages until then.

The list has modules that take long, and those that only some configurations need.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.command import command
from tests.support.servers import NatsServer

OBSERVERS = {"opentelemetry", "google.protobuf", "requests", "prometheus_client", "starlette", "h11", "anyio"}
"""Modules that serve HTTP and export spans."""
COMMAND_LINE = {"rich", "argcomplete", "difflib", "router_trio.cli.explain"}
LOGIN = {"nkeys", "nacl", "cffi"}
CONTROL_PLANE = {"nats", "asyncio", "trio_asyncio"}
"""Modules for the JetStream API, which no core route calls at its start."""
OTHERS = {
    "pydantic_settings",
    "msgspec",
    "router_trio.demo",
    "router_trio.embedded",
    "router_trio.expressions",
    "router_trio.faults",
    "router_trio.nats.jetstream.consumers",
    "router_trio.nats.jetstream.streams",
    "router_trio.router.reload",
    "router_trio.routing.content.routing",
    "router_trio.routing.core.keeper",
    "router_trio.routing.schedule",
    "router_trio.routing.stream.source",
    "router_trio.telemetry.metrics.readers",
    "router_trio.telemetry.metrics.table",
    "router_trio.testing",
}
PROBE = """
import signal, sys
from router_trio.cli import main
from router_trio.cli.run.systemd import Systemd

observe = Systemd.observe

def look(self, event):
    observe(self, event)
    if event.code == "ROUTE_READY":
        print(*sys.modules)
        signal.raise_signal(signal.SIGTERM)

Systemd.observe = look
sys.exit(main(["run", sys.argv[1]]))
"""
CONFIG = """
[telemetry]
listen = "127.0.0.1:0"
otlp_endpoint = "http://127.0.0.1:9"
[connections.main]
servers = ["SERVER"]
[[routes]]
name = "orders"
from = { subject = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
"""


async def test_deferred_modules_are_not_imported_before_the_first_route_is_subscribed(
    core_server: NatsServer, tmp_path: Path
) -> None:
    config = tmp_path / "router.toml"
    config.write_text(CONFIG.replace("SERVER", core_server.url))
    done = command(config, cwd=tmp_path, python=[sys.executable, "-c", PROBE])
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "router_trio.routing.core.source" in imported
    assert sorted(imported & (OBSERVERS | COMMAND_LINE | LOGIN | CONTROL_PLANE | OTHERS)) == []
