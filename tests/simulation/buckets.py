"""Drawn histories of two KV buckets: puts, deletes and purges, lost links, killed routers, and clocks that differ.

After quiet both buckets have the same newest value of each key, or none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import trio
import trio.testing

from router_trio import Live, Router, Settings
from router_trio.connection.platform import Platform
from router_trio.events import BucketConflict, Event
from router_trio.testing import FakeBroker
from router_trio.testing.streams import EPOCH
from tests.simulation import claims
from tests.simulation.machines import Machines
from tests.simulation.run import Outcome, Story, run_history

KEYS = ("a", "b.c", "b.d")
STEPS = 40
QUIET_WITHIN = 600.0
"""Seconds after which both buckets must be equal, once all faults have ended."""

OPERATIONS = {
    "delete": (("KV-Operation", "DEL"),),
    "purge": (("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")),
    "marker": (("Nats-Marker-Reason", "MaxAge"), ("Nats-Rollup", "sub")),
}


class History:
    """A history of one seed. `both`: values are copied both ways, else from `here` to `there`."""

    def __init__(self, seed: int, *, both: bool) -> None:
        self.random = Random(f"{seed} {both}")
        self.steps: list[str] = []
        """The steps so far, in order, each with its time."""
        self._both = both
        self._names = {"here": "settings", "there": self.random.choice(["settings", "other"])}
        skew = self.random.choice([0.0, 0.0, -4.0, 3.0])
        self.brokers = {"here": FakeBroker(), "there": FakeBroker(epoch=EPOCH + skew)}
        self.live: Live | None = None
        self.conflicts = 0
        self.false: list[str] = []
        """False conflicts so far: see `claims`."""

        window = self.random.choice([1.0, 120.0])
        self.brokers["there"].add_stream("EARLIER", ["earlier"])  # so that no stream was created when one of `here` was
        for name, broker in self.brokers.items():
            bucket = self._names[name]
            broker.add_stream(f"KV_{bucket}", [f"$KV.{bucket}.>"], duplicate_window=window)

    # --- the router ---

    def _settings(self) -> Settings:
        quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "5s", "liveness_interval": "1s"}
        ways = [("here", "there"), *([("there", "here")] if self._both else [])]
        routes = [
            {
                "name": f"from-{source}",
                "from": {"connection": source, "bucket": self._names[source], "durable": "copy", "ack_wait": "2s"},
                "to": [{"connection": to, "bucket": self._names[to], "last_writer": self._both}],
                "retry": {"max": "5s"},
            }
            for source, to in ways
        ]
        connections = {name: {"servers": [f"nats://{name}"], **quick} for name in self.brokers}
        return Settings(telemetry={"listen": ""}, connections=connections, routes=routes)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """Run a router; kill it at the end, so that nothing that it does then has an effect."""
        machines = Machines(self.brokers, sends_on=self.random.random() < 0.5)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            platform = Platform(random=Random(self.random.random()), watch_loop=False)
            router = Router(
                self._settings(), connect=machines.connect, platform=platform, log=False, observers=[self._observe]
            )
            async with router.open() as self.live:
                task_status.started()
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(5):
                await nursery.start(run)
            yield
            machines.kill()
            if self.live is not None:
                self.conflicts += sum(route.conflicts for route in self.live.routes)
            nursery.cancel_scope.cancel()

    def _observe(self, event: Event) -> None:
        if isinstance(event, BucketConflict):
            sources = {f"from-{name}": (name, f"KV_{bucket}", "copy") for name, bucket in self._names.items()}
            self.false += claims.wrong(event, claims.World(self.brokers.__getitem__, sources))

    # --- the steps ---

    async def run(self) -> None:
        """Run all steps. Raises `AssertionError` if the buckets are different in the end."""
        left = STEPS
        while left > 0:
            async with self._running():
                for _ in range(min(left, self.random.randint(3, 25))):
                    left -= 1
                    await self._step()
            self._note("killed")
            await trio.sleep(self.random.choice([0, 1, 150]))
        for broker in self.brokers.values():
            broker.up()
        assert not self.false, self.false[:3]
        async with self._running():
            began = trio.current_time()
            while self.newest("here") != self.newest("there") or not self._is_quiet():
                await trio.sleep(1)
                if trio.current_time() - began > QUIET_WITHIN:
                    raise AssertionError(f"here {self.newest('here')}, there {self.newest('there')}")
            sizes = self._sizes()
            await trio.sleep(60)
            assert self._sizes() == sizes, "values are sent to and fro"

    async def _step(self) -> None:
        random = self.random
        bucket = random.choice(["here", "there"] if self._both else ["here"])
        key = random.choice(KEYS)
        drawn = random.random()
        if drawn < 0.6:
            self._write(bucket, key, b"%d" % len(self.steps), ())
        elif drawn < 0.75:
            kind = random.choice([*OPERATIONS])
            self._write(bucket, key, b"", OPERATIONS[kind])
        elif drawn < 0.85:
            broker = random.choice([*self.brokers])
            self._note(f"cut {broker}")
            self.brokers[broker].cut()
        elif drawn < 0.9:
            broker, seconds = random.choice([*self.brokers]), random.choice([0.2, 3.0, 130.0])
            self._note(f"{broker} is down for {seconds} s")
            self.brokers[broker].down()
            await trio.sleep(seconds)
            self.brokers[broker].up()
        elif drawn < 0.95:
            broker = random.choice([*self.brokers])
            self._note(f"{broker} stalls")
            self.brokers[broker].stall(random.choice([0.5, 4.0]))
        else:
            denied = f"$KV.*.{key}"
            broker = random.choice([*self.brokers])
            self._note(f"{broker} denies {key}")
            self.brokers[broker].deny_publish(denied)
            await trio.sleep(random.choice([0.1, 3.0]))
            self.brokers[broker].allow_publish(denied)
        await trio.sleep(random.choice([0, 0, 0.001, 0.1, 2.0]))

    def _write(self, bucket: str, key: str, payload: bytes, headers: Sequence[tuple[str, str]]) -> None:
        self._note(f"{bucket}: {key} = {payload!r} {dict(headers)}")
        self.brokers[bucket].publish(f"$KV.{self._names[bucket]}.{key}", payload, headers)

    def _note(self, text: str) -> None:
        self.steps.append(f"{trio.current_time():.3f} {text}")

    # --- the end ---

    def newest(self, bucket: str) -> dict[str, bytes | None]:
        """Return the newest value of each key, without deleted ones."""
        found: dict[str, bytes | None] = {}
        for one in self.brokers[bucket].messages(f"KV_{self._names[bucket]}"):
            gone = "KV-Operation" in one.headers or "Nats-Marker-Reason" in one.headers
            found[one.subject.split(".", 2)[2]] = None if gone else one.payload
        return {key: value for key, value in found.items() if value is not None}

    def _sizes(self) -> list[int]:
        return [len(self.brokers[one].messages(f"KV_{self._names[one]}")) for one in self.brokers]

    def _is_quiet(self) -> bool:
        names = [*self.brokers] if self._both else ["here"]
        try:
            return not any(self.brokers[one].unacked(f"KV_{self._names[one]}", "copy") for one in names)
        except KeyError:
            return False  # no durable yet


def simulate(seed: int, *, both: bool) -> Outcome[Story]:
    """Execute the history of a seed."""
    history = History(seed, both=both)
    return run_history(seed, history.run, history.steps, f"buckets {seed} {both}")
