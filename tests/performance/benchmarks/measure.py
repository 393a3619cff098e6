"""Turns: one measurement is one load generator and one contestant, both fresh, on a server that stays.

The figures of a contestant are the medians of its turns. A failed turn is reported, not left out silently.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from tests.performance.benchmarks.contestants import Contestant, Job
from tests.performance.benchmarks.environment import ROOT, process_environment

MEASURED_WITHIN = 120.0
ENDED_WITHIN = 15.0

Figures = dict[str, float]
Turn = Callable[[], Awaitable[Figures]]


class MeasurementError(Exception):
    """A process did not do its part; the message contains the end of its output."""


@dataclass
class Turns:
    """The measurements of one contestant, one per turn."""

    figures: list[Figures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median; not a number if there is none."""
        values = [one[name] for one in self.figures if name in one]
        return statistics.median(values) if values else float("nan")

    def spread(self, name: str) -> tuple[float, float]:
        """Return the least and the greatest."""
        values = [one[name] for one in self.figures if name in one] or [float("nan")]
        return min(values), max(values)


async def in_turns(rounds: int, turns: Mapping[str, Turn], *, say: Callable[[str], None]) -> dict[str, Turns]:
    """Take each turn once a round. A turn that fails twice is not repeated."""
    results = {name: Turns() for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            mine = results[name]
            if len(mine.failures) >= 2:
                continue
            try:
                figures = await turn()
            except MeasurementError as error:
                mine.failures.append(str(error))
                say(f"    {name}: {error}")
                continue
            mine.figures.append(figures)
            told = "  ".join(f"{key} {value:,.6g}" for key, value in figures.items())
            say(f"    {number + 1}/{rounds} {name}: {told}")
    return results


async def routed(spec: Mapping[str, Any], contestant: Contestant | None, job: Job) -> Figures:
    """Put `spec`'s load on a contestant, or on none. Raises `MeasurementError`."""
    async with _generator(spec, job.directory / "load.log") as generator:
        await generator.line()
        if contestant is None:
            return await generator.result(0)
        async with running(contestant.command(job), job.directory / f"{contestant.name}.log") as process:
            try:
                return await generator.result(process.pid)
            except MeasurementError as error:
                raise MeasurementError(f"{error}\n{_tail(job.directory / f'{contestant.name}.log')}") from error


async def program(command: Sequence[str], *, within: float = MEASURED_WITHIN) -> Figures:
    """Run a program that measures itself and prints JSON. Raises `MeasurementError`."""
    with trio.move_on_after(within):
        done = await trio.run_process(
            list(command), capture_stdout=True, capture_stderr=True, check=False, env=process_environment(), cwd=ROOT
        )
        if done.returncode:
            raise MeasurementError(f"{command[1]} ended with {done.returncode}: {done.stderr.decode()[-800:]}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures
    raise MeasurementError(f"{command[1]} did not end within {within:g} s")


@asynccontextmanager
async def running(command: Sequence[str], log: Path) -> AsyncIterator[trio.Process]:
    """Run a process while the context is open; terminate it at the end, and kill it if it does not exit."""
    async with restartable(command, log) as process:
        yield process.current


class Restartable:
    """A process that can be killed and started again."""

    def __init__(self, command: Sequence[str], log: Path, current: trio.Process) -> None:
        self._command = command
        self._log = log
        self.current = current

    @property
    def ended_with(self) -> int | None:
        """Return the exit code of a process that ended by itself."""
        return self.current.returncode

    async def restart(self) -> None:
        """Kill the process, and run the command again."""
        self.current.kill()
        await self.current.wait()
        self.current = await _run(self._command, self._log, "ab")

    def last_words(self) -> str:
        """Return the end of its output."""
        return _tail(self._log)


@asynccontextmanager
async def restartable(command: Sequence[str], log: Path) -> AsyncIterator[Restartable]:
    """Run a process while the context is open, as `running` does; it may be killed and restarted meanwhile."""
    process = Restartable(command, log, await _run(command, log, "wb"))
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            current = process.current
            current.terminate()
            with trio.move_on_after(ENDED_WITHIN):
                await current.wait()
            if current.returncode is None:
                current.kill()
                await current.wait()


async def _run(command: Sequence[str], log: Path, mode: str) -> trio.Process:
    with log.open(mode) as output:
        return await trio.lowlevel.open_process(
            list(command), stdout=output, stderr=output, env=process_environment(), cwd=ROOT
        )


class _Generator:
    """A load generator's process."""

    def __init__(self, process: trio.Process, errors: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._buffer = b""
        self._errors = errors

    async def line(self) -> str:
        """Return the next line of its output."""
        with trio.move_on_after(MEASURED_WITHIN):
            while b"\n" not in self._buffer:
                data = await self._stdout.receive_some()
                if not data:
                    raise MeasurementError(f"the load generator ended: {_tail(self._errors)}")
                self._buffer += data
            line, _, self._buffer = self._buffer.partition(b"\n")
            return line.decode()
        raise MeasurementError(f"the load generator did not answer within {MEASURED_WITHIN:g} s")

    async def result(self, pid: int) -> Figures:
        """Start the measurement of the contestant with this process id, and return the result."""
        await self._stdin.send_all(b"%d\n" % pid)
        figures: Figures = json.loads(await self.line())
        return figures


@asynccontextmanager
async def _generator(spec: Mapping[str, Any], errors: Path) -> AsyncIterator[_Generator]:
    command = [sys.executable, "-m", "tests.performance.benchmarks.load", json.dumps(spec)]
    with errors.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=process_environment(),
            cwd=ROOT,
        )
        try:
            yield _Generator(process, errors)
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()


def _tail(path: Path) -> str:
    return path.read_bytes()[-600:].decode("utf-8", "replace").strip()
