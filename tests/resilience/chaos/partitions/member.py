"""A member of the group: the command `router-trio run`, whose handler records its calls in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

import trio

from router_trio.embedded import HOST, reserve_port
from tests.resilience.chaos.partitions.trial import Trial
from tests.simulation.partitions.history import Call
from tests.support.command import COMMAND, environment

ANSWERS_WITHIN = 1.0
ENDS_WITHIN = 30.0
KILLED = -signal.SIGKILL

CONFIG = """
[router]
name = "member"
workers = {workers}
shutdown_timeout = "10s"

[connections.main]
servers = {urls}
connect_timeout = "2s"
liveness_interval = "1s"
reconnect_delay = "50ms"
max_reconnect_delay = "500ms"

[[routes]]
name = "route"
handler = "work:work"
concurrency = 64
[routes.from]
stream = "IN"
durable = "router"
filter = "in.*.*"
partitions = {partitions}
partition_by = [1]
[[routes.to]]
subject = "out.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}"
jetstream = true
"""

HANDLER = """
import os, time, trio
_calls = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
async def work(message):
    number = message.payload
    os.write(_calls, b"B %b %.6f\\n" % (number, time.time()))
    await trio.sleep({seconds})
    os.write(_calls, b"E %b %.6f\\n" % (number, time.time()))
    return message
"""


def write_configuration(folder: Path, trial: Trial, urls: list[str]) -> None:
    """Write the file that every member runs, and its handler."""
    text = CONFIG.format(urls=json.dumps(urls), partitions=trial.partitions, workers=max(trial.workers, 1))
    (folder / "router.toml").write_text(text)
    (folder / "work.py").write_text(HANDLER.format(seconds=trial.handler))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log: its code, its time in seconds since 1970, and its fields."""

    at: float
    code: str
    fields: dict[str, Any]


class Member:
    """A running process of the group. Times are seconds since 1970."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.is_suspended = False
        self.is_up = False
        """True once `/status` has answered: before that, SIGTERM ends it at once, and a kill means nothing."""
        self.killed_at = inf
        self._log = folder / f"member{number}.log"
        self._calls = folder / f"member{number}.calls"
        with reserve_port() as port:
            self._port = port
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "run", "router.toml"],
                cwd=folder,
                env=environment({"CALLS": str(self._calls), "ROUTER_TRIO_TELEMETRY__LISTEN": f"{HOST}:{port}"}),
                stderr=log,
                stdout=log,
                process_group=0,  # its workers are killed and suspended with it
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def suspend(self) -> None:
        """Send SIGSTOP; return when the process is stopped."""
        self.is_suspended = True
        os.killpg(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Send SIGCONT."""
        os.killpg(self.pid, signal.SIGCONT)
        self.is_suspended = False

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL; return when the process has ended."""
        os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self.killed_at = time.time()

    async def ended(self) -> int:
        """Wait for the end after SIGTERM; kill it if it takes longer than `ENDS_WITHIN`. Return the exit code."""
        with trio.move_on_after(ENDS_WITHIN):
            while self.code is None:
                await trio.sleep(0.02)
        if self.code is None:
            self.kill()
        assert self.code is not None
        return self.code

    async def led(self) -> frozenset[int] | None:
        """Return the partitions that it leads according to `/status`; None if it does not answer in time."""
        with suppress(OSError, trio.BrokenResourceError, ValueError, LookupError), trio.move_on_after(ANSWERS_WITHIN):
            async with await trio.open_tcp_stream(HOST, self._port) as stream:
                await stream.send_all(f"GET /status HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join([part async for part in stream])
            status = json.loads(answer.partition(b"\r\n\r\n")[2])
            self.is_up = True
            return frozenset(status["routes"]["route"]["partitions"]["led"])
        return None

    # --- what it leaves ---

    def calls(self, key_of: dict[int, str]) -> Iterator[Call]:
        """Yield the calls of its handler."""
        running: dict[int, Call] = {}
        for line in self._calls.read_text().splitlines() if self._calls.exists() else ():
            kind, number, at = line.split()
            if kind == "B":
                call = Call(self.number, key_of[int(number)], int(number), float(at), self.killed_at)
                running[int(number)] = call
                yield call
            else:
                running[int(number)].ended = float(at)

    def lines(self) -> list[Line]:
        """Return the lines of its log."""
        found = []
        for line in self._log.read_text().splitlines():
            with suppress(ValueError):
                fields = json.loads(line)
                at = datetime.fromisoformat(fields["timestamp"]).replace(tzinfo=UTC).timestamp()
                found.append(Line(at, fields["error_code"], fields))
        return found

    def joined_at(self) -> float | None:
        """Return when it was among the members for the first time; None if it never was."""
        return next((line.at for line in self.lines() if line.code == "ROUTE_MEMBERS_CHANGED"), None)

    def text(self) -> str:
        """Return its output."""
        return self._log.read_text()
