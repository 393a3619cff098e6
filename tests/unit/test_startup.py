"""Imports forbidden to commands that must start fast, and to a router before it routes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {
    "trio",
    "trio_asyncio",
    "asyncio",
    "nats",
    "opentelemetry",
    "structlog",
    "starlette",
    "h11",
    "prometheus_client",
    "jsonschema",
    "jsonschema_specifications",
    "referencing",
}
PROBE = """
import sys
from router_trio.cli import main
code = main(sys.argv[2:])
loaded = sorted(set(sys.argv[1].split(",")) & set(sys.modules))
print(f"exit code {code}, loaded {loaded}", file=sys.stderr)
"""
CONFIG = """
[connections.main]
servers = ["nats://127.0.0.1:4222"]
[[routes]]
name = "orders"
from = { subject = "orders.*" }
to = [ { subject = "eu.{{wildcard(1)}}" } ]
"""


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--help"], {"pydantic"}),
        (["run", "--help"], {"pydantic"}),
        (["--version"], {"pydantic"}),
        (["check", "CONFIG"], {"msgspec", "rich", "pydantic_settings", "argcomplete", "difflib"}),
        (["explain", "CONFIG", "orders.7"], {"msgspec", "rich", "pydantic_settings", "argcomplete", "difflib"}),
        (["schema"], {"msgspec", "rich", "pydantic_settings", "argcomplete"}),
    ],
)
def test_heavy_packages_are_not_imported(arguments: list[str], more: set[str], tmp_path: Path) -> None:
    config = tmp_path / "router.toml"
    config.write_text(CONFIG)
    given = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(HEAVY | more), *given], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stderr.splitlines()[-1] == "exit code 0, loaded []"


ROUTES_FIRST = """
import sys, trio
from router_trio import Router, Settings
from router_trio.testing import FakeBroker

loaded = []

def look(event):
    if event.code == "ROUTER_STARTED":
        loaded.extend(sorted(set(sys.argv[1].split(",")) & set(sys.modules)))

async def main():
    broker = FakeBroker()
    settings = Settings(
        telemetry={"listen": "127.0.0.1:0"},
        connections={"main": {"servers": ["nats://127.0.0.1:4222"]}},
        routes=[{"name": "all", "from": {"subject": "in.*"}, "to": [{"subject": "out"}]}],
    )
    router = Router(settings, log=True, observers=[look], connect=lambda name, _: broker.connect)
    async with router.open() as live:
        stream = await trio.open_tcp_stream(*live.http_address)
        await stream.send_all(b"GET /metrics HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
        page = b"".join([part async for part in stream])
    print(loaded, b"router_messages_received_total{connection=\\"main\\",route=\\"all\\"} 0.0" in page)

trio.run(main)
"""


def test_a_router_is_up_before_http_is_imported_and_the_first_scrape_is_complete() -> None:
    heavy = ",".join(("opentelemetry", "prometheus_client", "starlette", "h11", "structlog", "rich", "requests"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", ROUTES_FIRST, heavy], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout == "[] True\n", done.stderr
