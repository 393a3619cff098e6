"""The `router-trio` command as a process: its output, its log and its exit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import trio

from router_trio.cli import main, over_links

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "router_trio"]
ENDS_WITHIN = 20.0


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of this process without ROUTER_TRIO_ variables, with this source tree to import from."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("ROUTER_TRIO_", "OTEL_"))}
    return kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | dict(changes or {})


def command(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    python: Sequence[str] = COMMAND,
    within: float = ENDS_WITHIN,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. `python` replaces `python -m router_trio`."""
    return subprocess.run(
        [*python, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=within,
        cwd=cwd,
        env=environment(env),
    )


def in_process(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in this process. It must not depend on how it is started.

    A process would take half a second of a processor for its imports.
    """
    output, errors = (TextIOWrapper(BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    command_line = list(map(str, arguments))
    modules = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.chdir(cwd)
        there = environment(env)
        for name in os.environ.keys() - there.keys():
            patch.delenv(name)
        for name, value in there.items():
            patch.setenv(name, value)
        patch.setattr(sys, "meta_path", [*sys.meta_path])  # which handlers are found by
        code = main(command_line)
    for name in sys.modules.keys() - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(cwd):
            del sys.modules[name]
    for stream in (output, errors):
        stream.seek(0)
    return subprocess.CompletedProcess(command_line, code, output.read(), errors.read())


async def dead_letters(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `dead-letters router.toml ARGUMENTS` as `over_its_links` does."""
    return await over_its_links("dead-letters", "router.toml", *arguments, cwd=cwd)


async def over_its_links(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that opens links to its end, one at a time, in a thread of this process.

    This runs all of the command except its start and its signals, which need a process; a process would spend half a
    second of processor time on imports.
    """

    async def without_signals(job: Callable[[], Awaitable[int]], on_signal: Callable[[int], None]) -> int:
        return await job()

    run = partial(in_process, *arguments, cwd=cwd)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(over_links, "run_with_signals", without_signals)
        return await trio.to_thread.run_sync(run)


class RunningCommand:
    """A running command."""

    def __init__(self, process: trio.Process, *, group: bool = False) -> None:
        self._process = process
        self._group = group
        self._text = {"stdout": bytearray(), "stderr": bytearray()}
        self._reading = 2
        self._more = trio.Event()

    @property
    def output(self) -> str:
        """The output on stdout so far."""
        return self._text["stdout"].decode("utf-8", "replace")

    @property
    def errors(self) -> str:
        """The output on stderr so far."""
        return self._text["stderr"].decode("utf-8", "replace")

    def logged(self, code: str) -> list[dict[str, Any]]:
        """Return the log lines with this code so far. Lines of stderr that are no JSON objects are left out."""
        whole = self.errors.rpartition("\n")[0].splitlines()
        lines = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in lines if line["error_code"] == code]

    async def has_logged(self, code: str, **fields: Any) -> dict[str, Any]:
        """Wait for a log line with this code and these fields. Raises `trio.TooSlowError`."""
        with trio.fail_after(ENDS_WITHIN):
            while True:
                for line in self.logged(code):
                    if fields.items() <= line.items():
                        return line
                await self._more_text()

    async def has_printed(self, pattern: str, within: float = ENDS_WITHIN) -> re.Match[str]:
        """Wait for text on stdout. Raises `trio.TooSlowError`."""
        with trio.fail_after(within):
            while (found := re.search(pattern, self.output)) is None:
                await self._more_text()
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal, to the process group if it has one of its own, as a terminal does."""
        if self._group:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end of the process and of its output; return the exit code. Raises `trio.TooSlowError`."""
        with trio.fail_after(ENDS_WITHIN):
            code = await self._process.wait()
            while self._reading:
                await self._more.wait()
        return code

    async def read(self, stream: trio.abc.ReceiveStream, name: str) -> None:
        """Collect the output of a stream, and close it; for `running`."""
        async with stream:
            async for part in stream:
                self._text[name] += part
                self._tell()
        self._reading -= 1
        self._tell()

    def _tell(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def _more_text(self) -> None:
        if not self._reading:
            raise AssertionError(f"it ended without that: {self.output}\n{self.errors}")
        await self._more.wait()


@asynccontextmanager
async def running(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    python: Sequence[str] = COMMAND,
    group: bool = False,
) -> AsyncIterator[RunningCommand]:
    """Run a command in the background; kill it at the end if it still runs. `group`: with its children."""
    process = await trio.lowlevel.open_process(
        [*python, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(env),
        process_group=0 if group else None,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    one = RunningCommand(process, group=group)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.read, process.stdout, "stdout")
        nursery.start_soon(one.read, process.stderr, "stderr")
        try:
            yield one
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None or group:
                    one.send(signal.SIGKILL)
                await process.wait()
