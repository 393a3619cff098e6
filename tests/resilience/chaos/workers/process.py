"""A router with workers as a process, started again whenever it is left or killed."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from tests.integration.pages import get
from tests.integration.workers import address_of, gone
from tests.resilience.chaos.routers import Kept
from tests.support.command import RunningCommand, running
from tests.support.proxy import TcpProxy

HANDLER = """
_failed = set()

def work(message):
    number = message.payload[1:].partition(b";")[0]
    if number.isdigit() and int(number) % {every} == 0 and number not in _failed:
        _failed.add(number)
        raise ValueError("the first attempt fails")
    return message
"""

FAILS_EVERY = 37
"""Every message with a multiple of this number fails at its first attempt in each process."""

ENDS_WITHIN = 30.0
LOOKS_EVERY = 0.1

LEFT_UNSETTLED = 1
"""Exit code of a router that could not settle everything before its end."""


def as_toml(value: object) -> str:
    """Return a value as TOML: mappings as inline tables, seconds as durations."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(f"{value}s" if isinstance(value, float) else value)


def write_configuration(folder: Path, sections: Mapping[str, Any]) -> None:
    """Write a configuration and the handler that it names."""
    (folder / "router.toml").write_text("".join(f"{name} = {as_toml(one)}\n" for name, one in sections.items()))
    (folder / "work.py").write_text(HANDLER.format(every=FAILS_EVERY))


class KeptProcess(Kept):
    """A `router-trio run` of the configuration in a folder."""

    def __init__(self, folder: Path, proxies: Sequence[TcpProxy]) -> None:
        super().__init__(proxies)
        self._folder = folder
        self.logs: list[str] = []
        """Logs of each process that has ended."""
        self.broken: list[str] = []
        """Promises that were broken while a process ran, or by its end."""
        self.reported: Counter[str] = Counter()
        """Messages of ended processes by what the pages showed of them last: received, lost, failed, in hand."""
        self.killed: set[int] = set()
        """Ids of the workers that were killed."""
        self._run: RunningCommand | None = None
        self._address: tuple[str, int] | None = None
        self._status: dict[str, Any] = {}

    @property
    def output(self) -> str:
        """Logs of the process that runs, or ran last."""
        return "" if self._run is None else self._run.errors

    async def keep(self) -> None:
        while not self._over:
            self._leave = trio.Event()
            async with running("run", "router.toml", cwd=self._folder) as run:
                self._run = run
                self._address = await address_of(run)
                if not self.logs:
                    await run.has_logged("ROUTER_READY")  # a restarted one may have no server yet
                self._opened.set()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch)
                    await self._leave.wait()
                    nursery.cancel_scope.cancel()
                await self.look()
                run.send(signal.SIGTERM)
                self._judge(await run.ended(), run)
            self._left.set()

    async def _watch(self) -> None:
        """Look at the sums regularly: they add up at every moment."""
        while True:
            await self.look()
            await trio.sleep(LOOKS_EVERY)

    async def look(self) -> dict[str, Any]:
        """Ask for `/status`, and check that every sum in it adds up."""
        assert self._address is not None
        code, _, body = await get(self._address, "/status")
        assert code == 200, body
        self._status = json.loads(body)
        for name, ledger in self._status["ledger"].items():
            if ledger["accepted"] != ledger["pending"] + ledger["in_flight"] + sum(ledger["settled"].values()):
                self.broken.append(f"the ledger of {name} does not add up: {ledger}")
        for name, route in self._status["routes"].items():
            ledger = route["ledger"]
            if ledger["received"] != ledger["in_hand"] + sum(ledger["settled"].values()):
                self.broken.append(f"the ledger of route {name} does not add up: {ledger}")
        return self._status

    async def all_settled(self) -> None:
        """Wait until no route has a message in hand, and no connection a publish that is not settled."""
        while True:
            status = await self.look()
            unsettled = [one["ledger"]["in_hand"] for one in status["routes"].values()]
            unsettled += [one["pending"] + one["in_flight"] for one in status["ledger"].values()]
            if not any(unsettled):
                return
            await trio.sleep(LOOKS_EVERY)

    async def kill_worker(self, place: int) -> None:
        """Send SIGKILL to one of the workers that run."""
        pids = [one["pid"] for one in (await self.look())["workers"].values()]
        alive = [pid for pid in pids if pid is not None and not gone(pid)]
        if alive:
            self.killed.add(alive[place % len(alive)])
            os.kill(alive[place % len(alive)], signal.SIGKILL)

    def _judge(self, code: int, run: RunningCommand) -> None:
        """Judge an ended process by its exit code and its log, and add up what it reported."""
        self.logs.append(run.errors)
        stopped = [line for line in run.logged("ROUTER_STOPPED") if "worker" not in line]
        if not stopped:
            self.broken.append(f"a supervisor ended with {code} and without ROUTER_STOPPED")
        unsettled = sum(line["unsettled"] for line in stopped)
        if code != (LEFT_UNSETTLED if unsettled else 0):
            self.broken.append(f"exit code {code} with {unsettled} left unsettled")
        for line in run.logged("ROUTER_WORKER_LOST"):
            if line["pid"] not in self.killed:
                self.broken.append(f"a worker ended by itself: {line}")
        for text in run.errors.splitlines():
            if not text.startswith("{"):
                self.broken.append(f"a line of stderr that is no log line: {text}")
        for route in self._status["routes"].values():
            ledger = route["ledger"]
            self.reported["received"] += ledger["received"]
            self.reported["in hand"] += ledger["in_hand"]
            self.reported["lost"] += sum(
                count for fate, count in ledger["settled"].items() if fate not in ("routed", "returned", "duplicate")
            )
