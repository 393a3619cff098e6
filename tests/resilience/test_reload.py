"""Reloads of a router under load, as a process of its own on a real server: nothing lost or duplicated, and no pause.

20,000 messages a second, or as many as this machine can publish. A pause is compared with a phase of the same run
without reloads: a machine with other load has pauses of its own.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio

from tests.support.command import RunningCommand, running
from tests.support.eventually import eventually
from tests.support.raw_jetstream import JetStream
from tests.support.raw_nats import RawClient, RawSubscription, connect
from tests.support.servers import NatsServer

RATE = 20_000
"""Messages per second, of all subjects together."""
EVERY = 0.005
SUBJECTS = ("stays.1", "changes.1", "goes.1", "comes.1")
SECONDS = 1.5
"""Duration of each part of a run."""
PAUSE = 0.05
ROUNDS = 3

HEAD = """
[router]
shutdown_timeout = "10s"

[telemetry]
listen = ""

[connections.main]
servers = ["URL"]
"""


def core(name: str, to: str) -> str:
    return f"""
[[routes]]
name = "{name}"
from = {{ subject = "{name}.*" }}
to = [ {{ subject = "{to}" }} ]
"""


STREAM = """
[[routes]]
name = "stream"
from = { stream = "IN", durable = "router" }
to = [ { subject = "out.$1", jetstream = true } ]
"""

STAYS, GOES, COMES = core("stays", "stayed.$1"), core("goes", "went.$1"), core("comes", "came.$1")
BEFORE = STAYS + core("changes", "old.$1") + GOES + STREAM.replace("$1", "old")
AFTER = COMES + STAYS + core("changes", "new.$1") + STREAM.replace("$1", "new")
WRONG = AFTER + core("wrong", "out..$1")


class Arrivals:
    """Arrivals on one subject: the numbers, and their times."""

    def __init__(self, subscription: RawSubscription) -> None:
        self.numbers: list[int] = []
        self.times: list[float] = []
        self._subscription = subscription

    async def collect(self) -> None:
        """Collect messages until cancelled."""
        async for message in self._subscription:
            self.numbers.append(int(message.payload))
            self.times.append(trio.current_time())

    def longest_pause(self, begin: float, end: float) -> float:
        """Return the longest time between two consecutive arrivals."""
        times = [begin, *(time for time in self.times if begin <= time <= end), end]
        return max(later - earlier for earlier, later in pairwise(times))


class Load:
    """A load of numbers, published to all subjects at the rate for as long as `run` lasts."""

    def __init__(self, client: RawClient) -> None:
        self.sent = 0
        self._client = client

    async def run(self) -> None:
        """Publish until cancelled."""
        due = trio.current_time()
        at_a_time = int(RATE * EVERY / len(SUBJECTS))
        while True:
            due = max(due + EVERY, trio.current_time() - 10 * EVERY)
            await trio.sleep_until(due)
            numbers = range(self.sent, self.sent + at_a_time)
            messages = [(subject, b"%d" % number) for number in numbers for subject in SUBJECTS]
            with trio.CancelScope(shield=True):
                await self._client.publish_many(messages)
            self.sent += at_a_time


async def reload(run: RunningCommand, path: Path, url: str, routes: str, code: str) -> dict[str, Any]:
    """Write this configuration and send SIGHUP. Return the log line with which the reload ends."""
    await trio.Path(path).write_text(HEAD.replace("URL", url) + routes)
    before = len(run.logged(code))
    run.send(signal.SIGHUP)
    await eventually(lambda: len(run.logged(code)) > before, 30, lambda: run.errors)
    return run.logged(code)[-1]


async def test_adding_changing_and_removing_routes_under_load_loses_and_duplicates_nothing(
    server: NatsServer, tmp_path: Path
) -> None:
    path = tmp_path / "router.toml"
    await trio.Path(path).write_text(HEAD.replace("URL", server.url) + BEFORE)
    async with (
        connect(server.url) as publisher,
        connect(server.url) as subscriber,
        running("run", path, cwd=tmp_path) as run,
    ):
        stream = JetStream(publisher)
        await stream.create_stream("IN", ["in.*"])
        await stream.create_stream("OUT", ["out.>"])
        await run.has_logged("ROUTER_STARTED")
        names = ("stayed", "old", "new", "went", "came")
        came = {name: Arrivals(await subscriber.subscribe(f"{name}.*")) for name in names}
        await subscriber.ping()
        load = Load(publisher)
        pauses: list[tuple[float, float]] = []
        async with trio.open_nursery() as nursery:
            for arrivals in came.values():
                nursery.start_soon(arrivals.collect)
            loading = trio.CancelScope()
            ended = trio.Event()
            nursery.start_soon(_within, loading, load.run, ended)
            await trio.sleep(SECONDS)  # so that everything is warm
            for routes in (AFTER, BEFORE) * ROUNDS:
                began = trio.current_time()
                await trio.sleep(SECONDS)
                between = trio.current_time()
                told = await reload(run, path, server.url, routes, "ROUTER_RELOADED")
                assert told["unsettled"] == 0
                assert told["changed"] == ["route changes", "route stream"]
                await reload(run, path, server.url, WRONG, "ROUTER_RELOAD_REFUSED")
                await trio.sleep(SECONDS / 3)
                stays = came["stayed"]
                pauses.append((stays.longest_pause(between, trio.current_time()), stays.longest_pause(began, between)))
            loading.cancel()
            await ended.wait()  # messages being published are counted once they are
            await eventually(
                lambda: len(came["stayed"].numbers) >= load.sent <= len(came["old"].numbers + came["new"].numbers),
                30,
                lambda: ({name: len(one.numbers) for name, one in came.items()}, load.sent),
            )
            run.send(signal.SIGTERM)
            assert await run.ended() == 0
            nursery.cancel_scope.cancel()
        everything = list(range(load.sent))
        assert came["stayed"].numbers == everything
        assert Counter(came["old"].numbers + came["new"].numbers) == Counter(everything)
        assert all(one.numbers == sorted(set(one.numbers)) for one in came.values())
        print(f"{load.sent} messages to each of {len(SUBJECTS)} subjects; pauses with and without a reload: {pauses}")
        # A pause caused by the reload would be in each of them.
        assert min(with_it - max(PAUSE, 2 * without) for with_it, without in pauses) <= 0, pauses


async def _within(scope: trio.CancelScope, work: Callable[[], Any], ended: trio.Event) -> None:
    with scope:
        await work()
    ended.set()
