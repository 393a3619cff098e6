"""End the process if it does not respond to signals because the event loop or a thread hangs.

The event loop handles a signal on its next turn, which never begins while a handler does not return. A thread that
hangs in a system call, such as one on a lost file system, keeps the process from ending. So another thread also counts
the signals: it receives them from the interpreter's C signal handler. It can do nothing while code holds the
interpreter lock for ever.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from math import inf

import trio

from router_trio.errors.quotes import LONGEST_TEXT, excerpt
from router_trio.events import Event, RouterDraining

HANDLED_WITHIN = 0.5
"""Seconds within which the event loop must handle the second signal."""

CUT_WITHIN = 5.0
"""Seconds for the shutdown after a second signal. Requests, spans and log lines have shorter limits."""

AFTER_THE_DRAIN = 10.0
"""Seconds that the shutdown may take after `shutdown_timeout`, before the process is ended."""

THREADS_WITHIN = 5.0
"""Seconds that threads of handlers may still run when everything else has ended."""

ENDED = 1
"""The exit code of a process that this module ends."""

_OVER = b"\0"


def end_process(why: str) -> None:
    """End the process at once. Nothing is flushed, closed or settled; streams redeliver unacked messages."""
    with suppress(OSError):
        os.write(2, f"router-trio: {why}; the process ends at once, and streams redeliver unacked messages\n".encode())
    os._exit(ENDED)


def run_without_threads(main: Callable[..., Awaitable[int]], *arguments: object) -> int:
    """Run `main` on Trio and return its exit code, or raise its error.

    If threads of handlers are still running `THREADS_WITHIN` after that, end the process. The interpreter waits for
    threads that are not daemons, such as those of a pool.
    """
    code = ENDED
    try:
        code = trio.run(main, *arguments)
    finally:
        threading.Thread(target=_end_with, args=(code,), name="router_trio end", daemon=True).start()
    return code


def _end_with(code: int) -> None:
    time.sleep(THREADS_WITHIN)
    # The interpreter also waits for the threads of pools, although those of the asyncio loop's pool are daemons.
    pools: Collection[threading.Thread] = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ())
    threads = [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and (thread in pools or not thread.daemon)
    ]
    with suppress(OSError):
        names = excerpt(", ".join(sorted(threads)), LONGEST_TEXT)
        os.write(2, f"router-trio: the process ends although threads of handlers are still running: {names}\n".encode())
    os._exit(code)


class LastResort:
    """Ends this process if it does not respond to signals, from a thread that runs inside `watching`."""

    def __init__(self, drain_within: float, cut_within: float = CUT_WITHIN) -> None:
        """`drain_within` is the limit of the drain in seconds, until `observe` receives the actual one."""
        self._drain_within = drain_within
        self._cut_within = cut_within
        self._count = 0
        self._handled = 0
        self._deadline = inf

    def observe(self, event: Event) -> None:
        """Read from an event of the router how long the drain may take."""
        if isinstance(event, RouterDraining) and self._count == 1:
            self._deadline = time.monotonic() + event.timeout_seconds + AFTER_THE_DRAIN

    def handled(self, count: int) -> None:
        """Record that the event loop has handled `count` signals in total."""
        self._handled = count

    @contextmanager
    def watching(self, signals: Collection[int]) -> Iterator[None]:
        """Count these signals inside the context. Enter it in the main thread, inside a Trio run."""
        reads, writes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        token = trio.lowlevel.current_trio_token()
        thread = threading.Thread(
            target=self._run, args=(reads, token, frozenset(signals)), name="router_trio last resort", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.write(writes, _OVER)
            thread.join()
            os.close(reads)
            os.close(writes)

    def _run(self, reads: int, token: trio.lowlevel.TrioToken, signals: Collection[int]) -> None:
        while True:
            left = max(0.0, self._deadline - time.monotonic())
            # With a deadline this polls, since `observe` may move the deadline.
            ready, _, _ = select.select([reads], [], [], min(left, 0.2) if left < inf else None)
            if not ready:
                if time.monotonic() >= self._deadline:
                    self._too_late()
                continue
            received = os.read(reads, 64)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(_nothing)  # wakes the event loop, whose own wakeup descriptor was replaced
            if _OVER in received:
                return
            for number in received:
                if number in signals:
                    self._signalled()

    def _signalled(self) -> None:
        self._count += 1
        now = time.monotonic()
        if self._count == 1:
            self._deadline = now + self._drain_within + AFTER_THE_DRAIN
        elif self._count == 2:
            self._deadline = min(self._deadline, now + HANDLED_WITHIN)
        else:
            end_process(f"received {self._count} signals to stop")

    def _too_late(self) -> None:
        if self._count == 1:
            end_process("the drain did not end within shutdown_timeout because a handler or a thread hangs")
        if self._handled < 2:
            end_process("received a second signal while the event loop was blocked")
        if self._cut_within:
            self._deadline, self._cut_within = time.monotonic() + self._cut_within - HANDLED_WITHIN, 0.0
        else:
            end_process("received a second signal, and a thread hangs")


def _nothing() -> None:
    pass
