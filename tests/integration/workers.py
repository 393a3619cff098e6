"""`router-trio run` with several workers, as a process with pages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.integration.pages import Address, get
from tests.support.command import RunningCommand, running
from tests.support.raw_nats import RawClient
from tests.support.servers import NatsServer

CONFIG = """
[router]
shutdown_timeout = "10s"
workers = 2

[telemetry]
listen = "127.0.0.1:0"

[connections.main]
servers = ["URL"]

[[routes]]
name = "stored"
from = { stream = "ORDERS", durable = "router", filter = "orders.*", ack_wait = "2s" }
to = [ { subject = "stored.{{wildcard(1)}}", jetstream = true } ]

[[routes]]
name = "passed"
from = { subject = "in.*", queue = "routers" }
to = [ { subject = "out.{{wildcard(1)}}" } ]
"""


class Workers:
    """A `router-trio run` with workers."""

    def __init__(self, run: RunningCommand, address: Address) -> None:
        self.run = run
        self.address = address

    async def status(self) -> dict[str, Any]:
        code, _, body = await get(self.address, "/status")
        assert code == 200
        status: dict[str, Any] = json.loads(body)
        return status

    async def ready(self) -> None:
        with trio.fail_after(20):
            while (await get(self.address, "/readyz"))[0] != 200:
                await trio.sleep(0.02)

    async def metric(self, name: str, **labels: str) -> float:
        _, _, body = await get(self.address, "/metrics")
        for line in body.decode().splitlines():
            if line.startswith(name) and all(f'{label}="{value}"' in line for label, value in labels.items()):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no {name} with {labels}")

    async def until(self, is_so: Callable[[dict[str, Any]], bool], within: float = 30) -> dict[str, Any]:
        with trio.fail_after(within):
            while not is_so(status := await self.status()):
                await trio.sleep(0.02)
        return status

    def descriptors(self) -> int:
        """Return how many descriptors the supervisor has, without those of connections to its pages."""
        folder = Path(f"/proc/{self.run._process.pid}/fd")
        return sum(not os.readlink(one).startswith("socket:") for one in folder.iterdir())

    async def pids(self) -> dict[str, int]:
        return {number: one["pid"] for number, one in (await self.status())["workers"].items()}


async def address_of(run: RunningCommand) -> Address:
    """Return the address of a command's pages, once it has logged it."""
    url = (await run.has_logged("ROUTER_STATUS_PAGE"))["url"]
    found = re.fullmatch(r"http://([\d.]+):(\d+)/", url)
    assert found is not None
    return found[1], int(found[2])


@asynccontextmanager
async def workers(
    server: NatsServer, folder: Path, config: str = CONFIG, *arguments: str, **more: Any
) -> AsyncIterator[Workers]:
    path = folder / "router.toml"
    path.write_text(config.replace("URL", server.url))
    async with running("run", *arguments, path, cwd=folder, **more) as run:
        one = Workers(run, await address_of(run))
        await one.ready()
        yield one


def assert_balanced(status: Mapping[str, Any]) -> None:
    """Assert that each ledger adds up."""
    for ledger in status["ledger"].values():
        settled = sum(ledger["settled"].values())
        assert ledger["accepted"] == ledger["pending"] + ledger["in_flight"] + settled, ledger
    for route in status["routes"].values():
        ledger = route["ledger"]
        assert ledger["received"] == ledger["in_hand"] + sum(ledger["settled"].values()), ledger


def settled(status: Mapping[str, Any], route: str) -> dict[str, int]:
    fates: dict[str, int] = status["routes"][route]["ledger"]["settled"]
    return fates


async def publish(client: RawClient, subject: str, first: int, count: int) -> None:
    await client.publish_many([(f"{subject}.{number}", b"%d" % number) for number in range(first, first + count)])
    await client.ping()


def gone(pid: int) -> bool:
    """Return True if there is no such process, or only a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
