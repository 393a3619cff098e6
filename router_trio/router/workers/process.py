"""A worker as a process: starts it, with its settings, and makes sure that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import site
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from router_trio.router.workers.channel import Channel
from router_trio.router.workers.counts.block import new_block
from router_trio.router.workers.messages import ToSupervisor, ToWorker
from router_trio.settings import Settings
from router_trio.settings.checks.flow import limit_of_worker

WORKER = "_worker"
"""The first argument of a worker. The others are its number, its descriptors, and the process id of its supervisor."""

EXITS_WITHIN = 5.0
"""Seconds that a worker has to exit after its final report, or after its drain should be over."""

_NOT_FOR_WORKERS = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""Variables of systemd, which communicates with the supervisor alone."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A running worker. `block` is the descriptor of its counts."""

    process: subprocess.Popen[bytes]
    channel: Channel[ToWorker, ToSupervisor]
    block: int

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    async def ended(self) -> int:
        """Wait until the process has ended, and reap it. Returns its exit code."""
        if self.process.poll() is not None:
            await trio.lowlevel.checkpoint()
            return self.process.returncode
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # the system has no pidfd_open, or no descriptor left
            return await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        return self.process.wait()  # at once, since it has ended


@asynccontextmanager
async def open_worker(number: int, lock: int) -> AsyncIterator[WorkerProcess]:
    """Start a worker, which waits for its settings. When the context is left, it is killed unless it has ended.

    `lock` is the descriptor of the lock under which log lines are written. Raises `OSError` if the system lacks
    resources.
    """
    block = new_block()
    try:
        ours, theirs = socket.socketpair()
        try:
            passed = (theirs.fileno(), block, lock)
            # Not by Trio, which forks in a thread: the kernel signals a child when the thread that forked it ends, and
            # the worker has to be signalled when our process ends.
            process = subprocess.Popen(  # noqa: ASYNC220 - it takes a few milliseconds
                [*_interpreter(), "-m", "router_trio", WORKER, str(number), *map(str, passed), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                env=environment(os.environ),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        worker = WorkerProcess(process, Channel(stream), block)
        try:
            yield worker
        finally:
            with trio.CancelScope(shield=True):
                process.kill()  # does nothing if it has already ended
                await worker.ended()
                await stream.aclose()
    finally:
        os.close(block)


def of_worker(settings: Settings) -> Settings:
    """Return the settings of each worker: its part of the limits, and no HTTP side of its own."""
    workers = settings.router.workers
    routes = [
        route if route.limit is None else route.model_copy(update={"limit": limit_of_worker(route.limit, workers)})
        for route in settings.routes
    ]
    telemetry = settings.telemetry.model_copy(update={"listen": "", "allowed_hosts": []})
    return settings.adapted(routes=routes, telemetry=telemetry)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker, in which it imports this same package."""
    kept = {name: value for name, value in environ.items() if name not in _NOT_FOR_WORKERS}
    here = str(Path(__file__).parents[3])
    paths = [path for path in kept.get("PYTHONPATH", "").split(os.pathsep) if path]
    if here not in (*paths, *site.getsitepackages(), site.getusersitepackages()):
        kept["PYTHONPATH"] = os.pathsep.join([*paths, here])
    return kept


def _interpreter() -> list[str]:
    """Return the command line of this interpreter, but without the working directory in the import path (see above)."""
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *options, *([] if "-P" in options or "-I" in options else ["-P"])]


def describe_exit(code: int) -> str:
    """Return a description of how a process ended, from its exit code."""
    if code >= 0:
        return f"has exited with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
