"""Order per key against real servers that are killed, with a handler that fails and varies in duration."""

from __future__ import annotations

import json
import signal
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from router_trio import Router
from tests.integration.pages import get
from tests.integration.workers import address_of, assert_balanced
from tests.support.command import RunningCommand, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer
from tests.support.settings import settings, stream_route_file
from tests.support.watch import Watch, until_nothing_is_unacked, watched

KEYS = 500
KILLS = 3
ATTEMPTS = 5
DEAD: dict[str, Any] = {"subject": "dead.{{wildcard(1)}}"}
SOURCE: dict[str, Any] = {"stream": "SOURCE", "durable": "router", "filter": "in.*", "ack_wait": "5s"}
RETRY: dict[str, Any] = {"initial": "100ms", "attempts": ATTEMPTS, "max": "1s"}

HANDLER = '''
from collections import Counter
from random import Random

import trio

attempts = Counter()
at_work = set()


async def work(message):
    key, number = message.payload.split(b":")
    assert key not in at_work
    at_work.add(key)
    try:
        attempts[number] += 1
        await trio.sleep(Random(number).random() * LONGEST)
        if never(int(number)) or attempts[number] <= 3 and fails(int(number), attempts[number]):
            raise ValueError("no")
    finally:
        at_work.discard(key)
    return message


def never(number):
    """One of fifty fails each time; every other one passes at its fourth attempt, if not before."""
    return number % 50 == 7


def fails(number, attempt):
    return Random(f"{number} {attempt}").random() < 0.2
'''
"""The result for a message depends only on it and on how often it was tried."""


def handler(longest: float) -> dict[str, Any]:
    """Return the names that `HANDLER` defines."""
    names: dict[str, Any] = {"LONGEST": longest}
    exec(HANDLER, names)
    return names


async def filled(stream: JetStream, count: int) -> dict[str, list[int]]:
    """Fill SOURCE with `count` messages, and create SINK and DEAD. Return the numbers of each key, in order."""
    await stream.create_stream("SOURCE", ["in.*"])
    await stream.create_stream("SINK", ["out.*"])
    await stream.create_stream("DEAD", ["dead.*"])
    random = Random(1)
    keys = [f"k{random.randrange(KEYS)}" for _ in range(count)]
    for start in range(0, count, 5_000):
        chunk = range(start, min(start + 5_000, count))
        # A key has several subjects, at the source and at the destination.
        await stream.publish_many(
            [(f"in.{n % 7}", b"%b:%d" % (keys[n].encode(), n), [("key", keys[n])]) for n in chunk]
        )
    numbers = defaultdict(list)
    for number, key in enumerate(keys):
        numbers[key].append(number)
    return numbers


async def counted(stream: JetStream, name: str) -> int:
    info = await stream.stream_info(name)
    return int(info["state"]["messages"])


async def kill_again_and_again(server: NatsServer, count: int) -> None:
    """Kill the server `count` times, each time after a further part has arrived."""
    for time in range(1, KILLS + 1):
        async with connect(server.url) as client:
            stream = JetStream(client)

            async def arrived(part: int = count * time // (KILLS + 1), stream: JetStream = stream) -> bool:
                return await counted(stream, "SINK") >= part

            await eventually(arrived, 600)
        await server.kill()
        await trio.sleep(0.3)
        await server.restart()


async def assert_each_arrived_once_in_order(server: NatsServer, numbers: dict[str, list[int]], within: float) -> None:
    """Wait until each message is in SINK or in DEAD, as its handler decides, with each key in order there."""
    never = handler(0)["never"]
    count = sum(map(len, numbers.values()))
    async with connect(server.url) as client:
        stream = JetStream(client)

        async def all_there() -> bool:
            return await counted(stream, "SINK") + await counted(stream, "DEAD") >= count

        await eventually(all_there, within)
        await until_nothing_is_unacked(stream)
        for name, wanted in (("SINK", False), ("DEAD", True)):
            came: defaultdict[str, list[int]] = defaultdict(list)
            for message in await stream.stream_messages(name, 120):
                key, _, number = message.payload.decode().partition(":")
                came[key].append(int(number))
            expected = {key: [n for n in of_key if bool(never(n)) is wanted] for key, of_key in numbers.items()}
            assert dict(came) == {key: of_key for key, of_key in expected.items() if of_key}


@pytest.mark.parametrize(
    "count", [5_000, pytest.param(100_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1_800)])]
)
async def test_killing_the_server_keeps_each_message_once_and_in_key_order(server: NatsServer, count: int) -> None:
    async with connect(server.url) as client:
        numbers = await filled(JetStream(client), count)
    names, watch = handler(0.02), Watch()
    made = Router(settings(server.url), observers=[watch])
    keys: dict[str, Any] = {"key": "headers.key", "concurrency": 64, "retry": RETRY, "dead_letter": DEAD}
    made.route(to={"subject": "out.{{wildcard(1)}}", "jetstream": True}, name="route", **SOURCE, **keys)(names["work"])
    async with watched(made, watch):
        await kill_again_and_again(server, count)
        await assert_each_arrived_once_in_order(server, numbers, 600)
        assert watch.metric("router_nats_connection_lost_total") == KILLS
        assert watch.metric("router_route_ledger_unbalanced") == 0
        fates = watch.router.routes[0].settled
        dead = sum(map(names["never"], range(count)))
        assert (fates["routed"], fates["dead_lettered"], fates["lost"]) == (count - dead, dead, 0)
    tried = Counter(names["attempts"])
    assert max(tried.values()) >= ATTEMPTS


class Scrapes:
    """Repeated scrapes of a router that runs as a process: its ledgers add up each time."""

    def __init__(self) -> None:
        self.count = 0

    async def scrape(self, process: RunningCommand) -> None:
        """Scrape until cancelled."""
        address = await address_of(process)
        while True:
            _, _, body = await get(address, "/status")
            assert_balanced(json.loads(body))
            self.count += 1
            await trio.sleep(0.05)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(5_000, marks=pytest.mark.timeout(180)),
        pytest.param(100_000, marks=[pytest.mark.nightly, pytest.mark.timeout(1_800)]),
    ],
)
async def test_killing_the_router_as_well_keeps_the_order_of_each_key(
    server: NatsServer, tmp_path: Path, count: int
) -> None:
    async with connect(server.url) as client:
        numbers = await filled(JetStream(client), count)
    (tmp_path / "work.py").write_text(f"LONGEST = 0.02\n{HANDLER}")
    stream_route_file(
        tmp_path,
        server.url,
        listen="127.0.0.1:0",
        handler='"work:work"',
        key='"headers.key"',
        concurrency=64,
        retry=f'{{ initial = "100ms", attempts = {ATTEMPTS}, max = "1s" }}',
        dead_letter='{ subject = "dead.{{wildcard(1)}}" }',
    )
    scrapes = Scrapes()
    async with (
        running("run", "router.toml", cwd=tmp_path) as process,
        connect(server.url) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(scrapes.scrape, process)
        stream = JetStream(client)

        async def some_arrived() -> bool:
            return await counted(stream, "SINK") >= count // 8

        await eventually(some_arrived, 600)
        await eventually(lambda: scrapes.count > 0, 30)
        nursery.cancel_scope.cancel()
        process.send(signal.SIGKILL)
    before = scrapes.count
    async with running("run", "router.toml", cwd=tmp_path) as process:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrapes.scrape, process)
            await kill_again_and_again(server, count)
            await assert_each_arrived_once_in_order(server, numbers, 900)
            nursery.cancel_scope.cancel()
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
        (stopped,) = process.logged("ROUTER_STOPPED")
    assert_balanced({"ledger": stopped["ledger"], "routes": {}})
    assert stopped["unsettled"] == 0
    assert before > 0
    assert scrapes.count > before
