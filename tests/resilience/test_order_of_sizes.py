"""A killed process leaves messages of very different sizes unacked, and the next one routes them in order."""

from __future__ import annotations

import signal
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest
import trio

from tests.support.command import running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer

ROUTES = 10
KEYS = 3
"""Subjects of each route."""

MESSAGES = 300
LARGEST = 600_000
SIZES = (10, 200, 3_000, 40_000, 250_000, LARGEST)

CONFIG = """
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
"""
ROUTE = """
[[routes]]
name = "route-{number}"
handler = "work:{handler}"
from = {{ stream = "IN", durable = "router-{number}", filter = "in.{number}.*"{source} }}
to = [{{ subject = "out.{number}.{{{{wildcard(1)}}}}", jetstream = true }}]
"""
HANDLERS = """
import trio
async def hang(message):
    await trio.sleep_forever()
async def work(message):
    return message
"""


def configure(folder: Path, url: str, handler: str, source: str) -> None:
    """Write `router.toml`, with ten routes on one connection that share its bytes."""
    (folder / "work.py").write_text(HANDLERS)
    routes = (ROUTE.format(number=number, handler=handler, source=source) for number in range(ROUTES))
    (folder / "router.toml").write_text(CONFIG.format(url=url) + "".join(routes))


def late(stored: list[StoredMessage]) -> int:
    """Return how many messages were stored behind a later one of their subject."""
    highest: dict[str, int] = defaultdict(lambda: -1)
    found = 0
    for message in stored:
        number = int(message.payload.split(b" ", 1)[0])
        found += number < highest[message.subject]
        highest[message.subject] = max(highest[message.subject], number)
    return found


@pytest.mark.parametrize("source", ["", ', max_in_flight_bytes = "700KiB"'], ids=["defaults", "small"])
async def test_messages_of_all_sizes_that_a_killed_process_left_are_routed_in_order(
    source: str, server: NatsServer, tmp_path: Path
) -> None:
    dice = Random(46)
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("IN", ["in.>"], storage="memory")
        await stream.create_stream("OUT", ["out.>"], storage="memory")
        for number in range(MESSAGES):
            payload = b"%d " % number + b"x" * dice.choice(SIZES)
            await stream.publish(f"in.{number % ROUTES}.{number // ROUTES % KEYS}", payload)
        configure(tmp_path, server.url, "hang", "")

        async def all_delivered() -> bool:
            if len(process.logged("ROUTE_READY")) < ROUTES:
                return False
            consumers = [await stream.consumer_info("IN", f"router-{number}") for number in range(ROUTES)]
            return sum(int(one["num_ack_pending"]) for one in consumers) == MESSAGES

        async with running("run", "router.toml", cwd=tmp_path) as process:
            await eventually(all_delivered, 20)
            process.send(signal.SIGKILL)
        configure(tmp_path, server.url, "work", source)

        async def all_stored() -> bool:
            return bool((await stream.stream_info("OUT"))["state"]["messages"] == MESSAGES)

        async with running("run", "router.toml", cwd=tmp_path):
            await eventually(all_stored, 30)
        stored = await stream.stream_messages("OUT")
    assert len(stored) == MESSAGES
    assert late(stored) == 0


STANDBY = ", standby = true"


async def test_with_two_processes_waiting_for_the_lead_redeliveries_keep_their_order(
    server: NatsServer, tmp_path: Path
) -> None:
    """The process that does not get the lead goes on waiting."""
    async with connect(server.url) as client:
        stream = JetStream(client)
        await stream.create_stream("IN", ["in.>"], storage="memory")
        await stream.create_stream("OUT", ["out.>"], storage="memory")
        for number in range(MESSAGES):
            await stream.publish(f"in.{number % ROUTES}.{number // ROUTES % KEYS}", b"%d " % number)
        folders = [tmp_path / name for name in ("leading", "first", "second")]
        for folder, handler in zip(folders, ("hang", "work", "work"), strict=True):
            folder.mkdir()
            configure(folder, server.url, handler, STANDBY)

        async def all_delivered() -> bool:
            if len(process.logged("ROUTE_READY")) < ROUTES:
                return False
            consumers = [await stream.consumer_info("IN", f"router-{number}") for number in range(ROUTES)]
            return sum(int(one["num_ack_pending"]) for one in consumers) == MESSAGES

        async def all_stored() -> bool:
            return bool((await stream.stream_info("OUT"))["state"]["messages"] == MESSAGES)

        async with running("run", "router.toml", cwd=folders[0]) as process:
            await eventually(all_delivered, 20)
            async with (
                running("run", "router.toml", cwd=folders[1]) as first,
                running("run", "router.toml", cwd=folders[2]) as second,
            ):
                await eventually(lambda: all(len(one.logged("ROUTE_STANDBY")) >= ROUTES for one in (first, second)), 20)
                await trio.sleep(2.0)  # until they wait for the lead in the way that they go on waiting
                process.send(signal.SIGKILL)
                await eventually(all_stored, 60)
        stored = await stream.stream_messages("OUT")
    assert len(stored) == MESSAGES
    assert late(stored) == 0
