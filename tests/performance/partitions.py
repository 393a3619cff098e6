"""Figures of processes that share the partitions of a route: throughput by members, and the cost of idle partitions.

    python -m tests.performance.partitions                    all tables
    python -m tests.performance.partitions waits copies idle  some of them

One server, streams on file, `router-trio run` for each member. The source is filled while its durables are paused, so
that every member has its share when it begins. Rates are of the messages stored in the destination, from a tenth to
nine tenths of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from router_trio.subjects.partitions import Partitioning
from tests.performance.benchmarks.environment import GO_PEERS
from tests.performance.benchmarks.measure import running
from tests.performance.benchmarks.processor import processor_seconds, resident_bytes
from tests.resilience.chaos.partitions.member import Member
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

SOURCE, SINK, DURABLE, FILTER = "IN", "OUT", "router", "in.*"
KEYS = 500
PARTITIONS = 16
MEMBERS = (1, 2, 4)
PAYLOAD = b"x" * 128

WAITS = 0.04
AT_A_TIME = 16
PER_MEMBER = round(AT_A_TIME / WAITS)
"""Messages per second of a member whose handler waits, if nothing else takes time."""

COPIED = 200_000
SECONDS = 6.0
"""Seconds of the load of members whose handler waits."""

HEAD = "| members | msg/s | times one | CPU us/msg | of the server |\n|---|---|---|---|---|"

ORBIT = GO_PEERS / "orbit_group"

IDLE = (16, 64, 256)
IDLE_FOR = 20.0
SHARED_WITHIN = 60.0

CONFIG = """
[connections.main]
servers = ["{url}"]
[[routes]]
name = "route"
{more}
[routes.from]
stream = "IN"
durable = "router"
filter = "in.*"
partitions = {partitions}
partition_by = [1]
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}"
jetstream = true
"""

HANDLER = f"""
import trio
async def work(message):
    await trio.sleep({WAITS})
    return message
"""

HANDLED = f'handler = "work:work"\nconcurrency = {AT_A_TIME}'


@dataclass
class Place:
    """A server with the streams, and the members on it."""

    server: NatsServer
    streams: JetStream
    members: Sequence[Member]
    partitions: int
    folder: Path
    pids: list[int]

    async def shared(self) -> float:
        """Wait until each member leads its share. Return the seconds that took."""
        began = trio.current_time()
        with trio.fail_after(SHARED_WITHIN):
            while True:
                led = [await member.led() for member in self.members]
                shares = [len(one or ()) for one in led]
                if sum(shares) == self.partitions and max(shares) - min(shares) <= 1:
                    return trio.current_time() - began
                await trio.sleep(0.1)

    async def fill(self, count: int) -> None:
        """Publish messages while all durables are paused."""
        await self._pause(600.0)
        batch = ((f"in.{number % KEYS}", PAYLOAD, None) for number in range(count))
        await self.streams.publish_many(batch)

    async def resume(self) -> None:
        """End the pause of all durables."""
        await self._pause(0.0)

    async def _pause(self, seconds: float) -> None:
        for number in range(self.partitions):
            await self.streams.pause_consumer(SOURCE, f"{DURABLE}-{number}", seconds)

    async def rate(self, count: int) -> tuple[float, float, float]:
        """Return the rate in messages per second, and processor time in us a message of members and server."""
        first, last = count // 10, 9 * count // 10
        began, used, at = await self.stored(first), self.used(), time.perf_counter()
        ended, used_then = await self.stored(last), self.used()
        took, done = time.perf_counter() - at, ended - began
        of_members, of_server = (1e6 * (then - now) / done for now, then in zip(used, used_then, strict=True))
        await self.stored(count)
        return done / took, of_members, of_server

    def used(self) -> tuple[float, float]:
        """Return the processor seconds of all members, and of the server."""
        return sum(processor_seconds(pid) for pid in self.pids), processor_seconds(self.server.pid)

    async def stored(self, count: int) -> int:
        """Wait until the destination has stored this number of messages. Return how many it has."""
        with trio.fail_after(120):
            while True:
                stored = int((await self.streams.stream_info(SINK))["state"]["messages"])
                if stored >= count:
                    return stored
                await trio.sleep(0.02)


@asynccontextmanager
async def place(members: int, partitions: int, more: str = "") -> AsyncIterator[Place]:
    """Run a server, its streams and the members. The source puts the partition in front of its subjects."""
    with tempfile.TemporaryDirectory(prefix="router-trio-partitions-") as directory:
        folder = Path(directory)
        async with nats_server(folder) as server, connect(server.url) as client:
            streams = JetStream(client)
            ((source, to),) = Partitioning(partitions, (1,), (FILTER,)).transforms
            await streams.create_stream(SOURCE, [FILTER], subject_transform={"src": source, "dest": to})
            await streams.create_stream(SINK, ["out.*"])
            text = CONFIG.format(url=server.url, more=more, partitions=partitions)
            (folder / "router.toml").write_text(text)
            (folder / "work.py").write_text(HANDLER)
            started = [Member(number, folder) for number in range(members)]
            try:
                yield Place(server, streams, started, partitions, folder, [member.pid for member in started])
            finally:
                for member in started:
                    member.kill()


async def waits() -> None:
    """Print the throughput of members whose handler waits."""
    print(
        f"\nHandler that waits {1000 * WAITS:g} ms, {AT_A_TIME} calls at a time; {PARTITIONS} partitions, {KEYS} keys\n"
    )
    await _throughput(HANDLED, lambda members: round(PER_MEMBER * members * SECONDS))


async def copies() -> None:
    """Print the throughput of members that only copy."""
    print(f"\nA plain copy; {PARTITIONS} partitions, {KEYS} keys, {len(PAYLOAD)} B\n")
    await _throughput("", lambda members: COPIED)


async def _throughput(more: str, count_for: Callable[[int], int]) -> None:
    print(HEAD)
    one = 0.0
    for members in MEMBERS:
        async with place(members, PARTITIONS, more) as there:
            await there.shared()
            count = count_for(members)
            await there.fill(count)
            await there.resume()
            rate, cost, of_server = await there.rate(count)
        one = one or rate
        print(f"| {members} | {rate:,.0f} | {rate / one:.2f} | {cost:.1f} | {of_server:.1f} |", flush=True)


async def orbit() -> None:
    """Print the throughput of a group of Orbit in Go, whose members have one message in flight, as order needs."""
    print(f"\nA static group of Orbit, in Go: {1000 * WAITS:g} ms a message, one in flight for each member\n\n{HEAD}")
    if not ORBIT.exists():
        print("left out: `python -m tests.performance.benchmarks.environment` builds it")
        return
    one = 0.0
    for members in MEMBERS:
        async with place(0, PARTITIONS) as there, AsyncExitStack() as stack:
            count = round(members * SECONDS / WAITS)
            await there.streams.publish_many((f"in.{number % KEYS}", PAYLOAD, None) for number in range(count))
            for number in range(members):
                arguments = [there.server.url, str(number), str(members), str(PARTITIONS), f"{1000 * WAITS:g}ms"]
                log = there.folder / f"orbit{number}.log"
                process = await stack.enter_async_context(running([str(ORBIT), *arguments], log))
                there.pids.append(process.pid)
            rate, cost, of_server = await there.rate(count)
        one = one or rate
        print(f"| {members} | {rate:,.0f} | {rate / one:.2f} | {cost:.1f} | {of_server:.1f} |", flush=True)


async def idle() -> None:
    """Print the cost of one process that leads idle partitions."""
    print("\nOne process that leads all partitions, and nothing to do\n")
    print(
        "| partitions | led after s | first messages after s | CPU % | of the server | MB |\n|---|---|---|---|---|---|"
    )
    for partitions in IDLE:
        async with place(1, partitions) as there:
            shared = await there.shared()
            began = time.perf_counter()
            await there.streams.publish_many([(f"in.{number}", PAYLOAD, None) for number in range(4 * partitions)])
            await there.stored(4 * partitions)
            first = time.perf_counter() - began
            await trio.sleep(2.0)
            before = there.used()
            await trio.sleep(IDLE_FOR)
            after, memory = there.used(), resident_bytes(there.members[0].pid) / 2**20
        percent = [100 * (end - start) / IDLE_FOR for start, end in zip(before, after, strict=True)]
        figures = f"{shared:.1f} | {first:.2f} | {percent[0]:.1f} | {percent[1]:.1f} | {memory:.0f}"
        print(f"| {partitions} | {figures} |", flush=True)


TABLES = {"waits": waits, "orbit": orbit, "copies": copies, "idle": idle}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.partitions", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    given = parser.parse_args()
    if unknown := [name for name in given.tables if name not in TABLES]:
        parser.error(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    for name in given.tables or TABLES:
        trio.run(TABLES[name])


if __name__ == "__main__":
    main()
