"""The process of a worker: `python -m router_trio _worker NUMBER CHANNEL BLOCK LOCK SUPERVISOR`, started only by `run`.

Guarantees: signals that a terminal or a process manager sends to all processes at once are handled by the supervisor
only. SIGTERM, which may be meant for this process, drains and ends it. It outlives its supervisor no longer than a
drain may take, even if its event loop hangs: a thread ensures that.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from functools import partial

import trio

from router_trio.cli.configuration import search_working_directory
from router_trio.cli.last_resort import run_without_threads
from router_trio.cli.signals import OTHERS, KeptSignals
from router_trio.forked import call_in_children, replace_by_null
from router_trio.router.workers.counts.block import Block
from router_trio.router.workers.worker import Worker, channel_of
from router_trio.telemetry.logs.writer import WholeLines

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the worker that the arguments describe, and return its exit code. Blocks until it has ended."""
    number, channel, block, lock, supervisor = map(int, sys.argv[2:])
    for descriptor in (channel, block, lock):
        os.set_inheritable(descriptor, False)
    for number_of_signal in (signal.SIGINT, *OTHERS):
        if signal.getsignal(number_of_signal) is not signal.SIG_IGN:
            signal.signal(number_of_signal, _ignore)
    search_working_directory()
    return run_without_threads(_run, number, channel, block, lock, supervisor)


def _ignore(number: int, frame: object) -> None:
    """Do nothing: the supervisor handles the signal."""


async def _run(number: int, channel: int, block: int, lock: int, supervisor: int) -> int:
    worker = Worker(number, channel_of(socket.socket(fileno=channel)), Block(block), WholeLines(lock).write)
    call_in_children(worker, partial(replace_by_null, block))
    _continue_when_orphaned()
    threading.Thread(target=_end_when_orphaned, args=(supervisor, worker), name="orphan watch", daemon=True).start()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        kept = KeptSignals((signal.SIGTERM, signal.SIGINT, *OTHERS), lambda: worker.emit)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain_on_signal, signals, worker)
            nursery.start_soon(kept.keep)
            code = await worker.run()
            nursery.cancel_scope.cancel()
    return code


def _continue_when_orphaned() -> None:
    """Have the kernel send SIGCONT when the supervisor ends, since a stopped worker could not end."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def _end_when_orphaned(supervisor: int, worker: Worker) -> None:
    """Wait for the end of the supervisor, and kill this process if its drain then takes longer than allowed."""
    try:
        descriptor = os.pidfd_open(supervisor)
    except (AttributeError, OSError):  # the system has no pidfd_open, or the supervisor has ended
        while os.getppid() == supervisor:
            time.sleep(1.0)
    else:
        if os.getppid() == supervisor:
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            ended.poll()
    time.sleep(worker.ends_within)
    os.kill(os.getpid(), signal.SIGKILL)


async def _drain_on_signal(signals: AsyncIterator[int], worker: Worker) -> None:
    async for _ in signals:
        worker.begin_drain()
