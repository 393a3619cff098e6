"""Thousands of reloads of twenty routes under load on a real server: what they lose, double, delay and leave in memory.

    python -m tests.resilience.reload_soak --reloads 10000

The router is the real command, which gets SIGHUP. One route never changes, and its pauses are measured. Each reload
changes, removes or brings back some of the others; a route from a subject is only changed, since what is published
while it is gone would be lost. In the end each message is stored once, and in order within its subject.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean, median

import trio

from tests.performance.benchmarks.processor import resident_bytes
from tests.support.command import COMMAND, environment
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, RawSubscription, connect
from tests.support.servers import NatsServer, nats_server

OF_STREAM = 13
OF_SUBJECT = 6
"""Routes that change, from a stream and from subjects."""
RATE = 300
"""Messages per second, for one route after the other."""
TICK = 0.01
"""Seconds between two publishes, unless there is less than one message for each."""
SUBJECTS = 3
"""Subjects of each route."""
PROBE_EVERY = 0.001
"""Seconds between two messages for the route that never changes."""
MOST_AT_ONCE = 3
"""Routes that one reload changes."""
RELOADED_WITHIN = 20.0
SETTLED_WITHIN = 30.0
SAMPLES = 40
"""Samples of the memory over the whole run."""
FLAT_WITHIN = 0.15
"""Allowed growth of the memory of thousands of reloads, from the second quarter to the last.

What an ended route has left is in cycles, which Python collects after thousands of reloads; that none of it stays is
held by tests/unit/router/test_reload_memory.py.
"""
SHOWN = 10

HEAD = """
[router]
shutdown_timeout = "5s"
[telemetry]
listen = ""
[connections.main]
servers = ["{url}"]
[[routes]]
name = "stays"
from = {{ subject = "stays" }}
to = [ {{ subject = "stayed" }} ]
"""

CHANGES = (
    "",
    'key = "subject"\n',
    'limit = { rate = "2000/s" }\n',
    'retry = { initial = "50ms", attempts = 5 }\n',
    'retry = { initial = "50ms" }\nkey = "subject"\n',
    'limit = { rate = "2000/s", per = "subject" }\n',
    'dead_letter = { subject = "dead.x", jetstream = true }\nretry = { attempts = 3 }\n',
)
"""Keys of a route, in place of none."""

TO = (
    "",
    ', headers = { set = { "X-Version" = \'"2"\' } }',
    ", breaker = { failures = 5 }",
    ', headers = { set = { "X-Subject" = "subject" } }, breaker = { failures = 3 }',
)
"""Further keys of its destination."""


@dataclass
class Report:
    """The findings of a soak. `wrong` are the promises that were not kept."""

    reloads: int = 0
    published: int = 0
    seconds: float = 0.0
    memory: list[float] = field(default_factory=list)
    """MiB, at equal distances."""
    durations: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    """The longest pause of the route that never changes, during each reload, in seconds."""
    usual_pauses: list[float] = field(default_factory=list)
    """Its longest pause in as much time after each reload."""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.reloads} reloads, {self.published} messages, {self.seconds:.0f} s",
            f"reload: {_spread(self.durations)}",
            f"pause of an unchanged route in a reload: {_spread(self.pauses)}",
            f"pause as long after it: {_spread(self.usual_pauses)}",
            f"memory in MiB: {' '.join(f'{one:.1f}' for one in self.memory)}; last quarter {self.growth:+.2%}",
            *(f"WRONG: {one}" for one in self.wrong[:SHOWN]),
            *([f"and {len(self.wrong) - SHOWN} more"] if len(self.wrong) > SHOWN else []),
        ]
        return "\n".join(lines)

    @property
    def growth(self) -> float:
        """The growth of the memory from the second quarter to the last."""
        size = len(self.memory) // 4
        return fmean(self.memory[-size:]) / fmean(self.memory[size : 2 * size]) - 1 if size else 0.0


def _spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds) or [0.0]
    late = ordered[int(0.99 * (len(ordered) - 1))]
    return f"median {1e3 * median(ordered):.1f} ms, 99 % {1e3 * late:.1f} ms, longest {1e3 * ordered[-1]:.1f} ms"


class Routes:
    """The routes of the configuration, as drawn."""

    def __init__(self, url: str, random: Random) -> None:
        self._url = url
        self._random = random
        self.names = [*(f"s{number}" for number in range(OF_STREAM)), *(f"c{number}" for number in range(OF_SUBJECT))]
        self._drawn: dict[str, tuple[str, str] | None] = dict.fromkeys(self.names, ("", ""))
        """For each route its keys and those of its destination; None while it is removed."""

    def subject(self, name: str, number: int) -> str:
        """Return the subject to which a message for a route is published."""
        return f"{'in' if name[0] == 's' else 'core'}.{name}.{number % SUBJECTS}"

    def change(self) -> None:
        """Change some routes, and each to something else."""
        for name in self._random.sample(self.names, self._random.randint(1, MOST_AT_ONCE)):
            before, choices = self._drawn[name], [(keys, to) for keys in CHANGES for to in TO]
            gone = name[0] == "s" and before is not None and self._random.random() < 0.2
            self._drawn[name] = None if gone else self._random.choice([one for one in choices if one != before])

    def all_present(self) -> None:
        """Bring back those that are removed."""
        self._drawn = {name: drawn or ("", "") for name, drawn in self._drawn.items()}

    def configuration(self) -> str:
        """Return the file."""
        return HEAD.format(url=self._url) + "".join(map(self._route, self.names))

    def _route(self, name: str) -> str:
        drawn = self._drawn[name]
        if drawn is None:
            return ""
        keys, to = drawn
        source = f'subject = "core.{name}.*"'
        if name[0] == "s":
            source = f'stream = "IN", durable = "{name}", filter = "in.{name}.*"'
        subject = f"out.{name}.{{{{wildcard(1)}}}}"
        return (
            f'[[routes]]\nname = "{name}"\n{keys}from = {{ {source} }}\n'
            f'to = [ {{ subject = "{subject}", jetstream = true{to} }} ]\n'
        )


class Router:
    """The command, and the lines of its log."""

    def __init__(self, process: trio.Process, path: Path) -> None:
        self._process = process
        self._path = path
        self._counts: Counter[str] = Counter()
        self._changed = trio.Event()
        self._last: deque[str] = deque(maxlen=SHOWN)
        self.errors: list[str] = []

    async def read(self) -> None:
        """Read the log until the process ends."""
        assert self._process.stderr is not None
        rest = b""
        async for part in self._process.stderr:
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                entry = json.loads(line) if line.startswith(b"{") else {"error_code": "", "level": "ERROR"}
                self._counts[entry["error_code"]] += 1
                self._last.append(line.decode())
                if entry["level"] in ("ERROR", "CRITICAL"):
                    self.errors.append(line.decode())
            self._changed.set()
            self._changed = trio.Event()

    async def has_logged(self, code: str, times: int) -> None:
        """Wait until a code was logged that many times. Raises `AssertionError` with the last lines of the log."""
        with trio.move_on_after(RELOADED_WITHIN):
            while self._counts[code] < times:
                await self._changed.wait()
        assert self._counts[code] >= times, "\n".join([f"no {code} in {RELOADED_WITHIN:g} s, only:", *self._last])

    async def reload(self, configuration: str) -> None:
        """Have it read this file, and wait until the reload is over."""
        self._path.write_text(configuration)
        times = self._counts["ROUTER_RELOADED"]
        self._process.send_signal(signal.SIGHUP)
        await self.has_logged("ROUTER_RELOADED", times + 1)

    @property
    def memory(self) -> float:
        """Its resident memory in MiB."""
        return resident_bytes(self._process.pid) / 2**20

    async def end(self) -> None:
        """End it in good order."""
        self._process.terminate()
        with trio.fail_after(RELOADED_WITHIN):
            code = await self._process.wait()
        if code:
            self.errors.append(f"exit code {code}")


class Probes:
    """Messages through the route that never changes, and when they arrive."""

    def __init__(self, client: RawClient, arriving: RawSubscription) -> None:
        self._client = client
        self._arriving = arriving
        self._times: list[float] = []

    async def send(self) -> None:
        """Publish until cancelled."""
        due = trio.current_time()
        while True:
            due = max(due + PROBE_EVERY, trio.current_time() - PROBE_EVERY)
            await trio.sleep_until(due)
            await self._client.publish_many([("stays", b"x")])

    async def receive(self) -> None:
        """Note each arrival until cancelled."""
        async for _ in self._arriving:
            self._times.append(trio.current_time())

    def longest_pause(self, begin: float, end: float) -> float:
        """Return the longest time between two arrivals within these moments, and forget the earlier ones."""
        times = [begin, *(time for time in self._times if begin <= time <= end), end]
        self._times = [time for time in self._times if time > end]
        return max(later - earlier for earlier, later in pairwise(times))


class Load:
    """Numbered messages for all routes that change."""

    def __init__(self, client: RawClient, routes: Routes, rate: int) -> None:
        self._at_a_time = max(1, int(rate * TICK))
        self._every = self._at_a_time / rate
        self.published: Counter[str] = Counter()
        """The number of messages of each route: they are numbered from 0 on."""
        self._client = client
        self._routes = routes

    async def run(self, scope: trio.CancelScope, over: trio.Event) -> None:
        """Publish until cancelled; what is being published then is published."""
        place, due = 0, trio.current_time()
        with scope:
            while True:
                due = max(due + self._every, trio.current_time() - 5 * self._every)
                await trio.sleep_until(due)
                messages = []
                for _ in range(self._at_a_time):
                    name = self._routes.names[place % len(self._routes.names)]
                    place += 1
                    number = self.published[name]
                    self.published[name] += 1
                    messages.append((self._routes.subject(name, number), b"%d" % number, None))
                with trio.CancelScope(shield=True):
                    await JetStream(self._client).publish_many([one for one in messages if one[0].startswith("in.")])
                    await self._client.publish_many([one[:2] for one in messages if one[0].startswith("core.")])
        over.set()


async def reload_soak(directory: Path, reloads: int, seed: int = 0, rate: int = RATE) -> Report:
    """Reload that many times, at `rate` messages a second, and judge.

    A route from a stream remembers 65,536 messages and more, about 100 bytes for each: to see what reloads leave in
    memory, take a low rate.
    """
    report, random = Report(), Random(f"reloads {seed}")
    began = trio.current_time()
    async with nats_server(directory) as server, connect(server.url) as client, connect(server.url) as probing:
        for name, taken in (("IN", "in.>"), ("OUT", "out.>"), ("DEAD", "dead.>")):
            await JetStream(client).create_stream(name, [taken], storage="memory")
        routes = Routes(server.url, random)
        probes = Probes(probing, await probing.subscribe("stayed"))
        async with _command(server, directory, routes) as router, trio.open_nursery() as nursery:
            load, loading, over = Load(client, routes, rate), trio.CancelScope(), trio.Event()
            nursery.start_soon(probes.receive)
            nursery.start_soon(probes.send)
            nursery.start_soon(load.run, loading, over)
            every = max(1, reloads // SAMPLES)
            for number in range(reloads):
                if number % every == 0:
                    report.memory.append(router.memory)
                routes.change()
                start = trio.current_time()
                await router.reload(routes.configuration())
                end = trio.current_time()
                await trio.sleep(end - start)
                report.durations.append(end - start)
                report.pauses.append(probes.longest_pause(start, end))
                report.usual_pauses.append(probes.longest_pause(end, trio.current_time()))
                report.reloads += 1
            loading.cancel()
            await over.wait()
            routes.all_present()
            await router.reload(routes.configuration())
            report.published = load.published.total()
            report.wrong += await _until_stored(server, load)
            await router.end()
            nursery.cancel_scope.cancel()
        report.wrong += [*await _judged(server, load), *router.errors]
    report.seconds = trio.current_time() - began
    return report


async def _until_stored(server: NatsServer, load: Load) -> list[str]:
    """Wait until as many messages are stored as were published, or nothing more comes. Return what is wrong."""
    async with connect(server.url) as client:
        stored, moved = -1, trio.current_time()
        while stored < load.published.total():
            state = (await JetStream(client).stream_info("OUT"))["state"]
            if state["messages"] != stored:
                stored, moved = state["messages"], trio.current_time()
            elif trio.current_time() > moved + SETTLED_WITHIN:
                return [f"{stored} of {load.published.total()} are stored"]
            await trio.sleep(0.2)
        dead = (await JetStream(client).stream_info("DEAD"))["state"]["messages"]
    return [f"{dead} dead letters"] if dead else []


async def _judged(server: NatsServer, load: Load) -> list[str]:
    lines: defaultdict[str, list[int]] = defaultdict(list)
    async with connect(server.url) as client:
        for message in await JetStream(client).stream_messages("OUT", within=300.0):
            lines[message.subject].append(int(message.payload))
    found = []
    for name, published in load.published.items():
        stored = Counter(number for subject, numbers in lines.items() if f".{name}." in subject for number in numbers)
        missing = [number for number in range(published) if number not in stored]
        found += [f"{name}: {len(missing)} of {published} lost: {missing[:20]}"] if missing else []
        found += [f"{name}: message {number} is stored {times} times" for number, times in stored.items() if times > 1]
    return [*found, *_disorder(lines)]


def _disorder(lines: dict[str, list[int]]) -> Iterator[str]:
    for subject, numbers in lines.items():
        for earlier, later in pairwise(numbers):
            if later < earlier:
                yield f"message {later} of {subject} is stored behind {earlier}"


@asynccontextmanager
async def _command(server: NatsServer, directory: Path, routes: Routes) -> AsyncIterator[Router]:
    path = directory / "router.toml"
    path.write_text(routes.configuration())
    process = await trio.lowlevel.open_process(
        [*COMMAND, "run", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=directory,
    )
    try:
        async with trio.open_nursery() as nursery:
            router = Router(process, path)
            nursery.start_soon(router.read)
            await router.has_logged("ROUTER_READY", 1)
            yield router
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


def main() -> int:
    """Run the command and return its exit code: 1 if a promise was not kept, or memory grows."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience.reload_soak", description=__doc__)
    parser.add_argument("--reloads", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=int, default=RATE, help="messages a second")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="router-trio-reloads-") as directory:
        report = trio.run(reload_soak, Path(directory), given.reloads, given.seed, given.rate)
    print(report)
    return 1 if report.wrong or report.growth > FLAT_WITHIN else 0


if __name__ == "__main__":
    sys.exit(main())
