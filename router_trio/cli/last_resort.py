"""Ends the process when the signals that ask for that are not heeded, because the event loop or a thread hangs.

The loop heeds a signal when it turns, and a handler that never returns keeps it from that; a thread that hangs in a
system call, as of a file system that is gone, keeps the process from ending. So a thread counts the signals as well: it
hears of each as the interpreter's own C code does. It can do nothing while code holds the interpreter's lock for ever.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from math import inf

import trio

from router_trio.errors.quotes import LONGEST_TEXT, excerpt
from router_trio.events import Event, RouterDraining

HEEDED_WITHIN = 0.5
"""Seconds that the loop has to heed the second signal."""

CUT_WITHIN = 5.0
"""Seconds for the end that the second signal has cut short: open requests, spans and log lines have theirs."""

AFTER_THE_DRAIN = 10.0
"""Seconds for the end after `shutdown_timeout`, before the process is ended."""

THREADS_WITHIN = 5.0
"""Seconds for threads of handlers, when everything else has ended."""

ENDED = 1
"""The exit code."""

_OVER = b"\0"


def end_process(why: str) -> None:
    """End the process at once. Nothing is flushed, closed or settled: a stream redelivers what was not acked."""
    with suppress(OSError):
        os.write(
            2, f"router-trio: {why}; the process ends at once, and streams redeliver what was not acked\n".encode()
        )
    os._exit(ENDED)


def end_without_threads(code: int) -> int:
    """Let the process end with this code within `THREADS_WITHIN`, whatever threads of handlers are at. Return the code.

    To be called when all else is over: the interpreter waits for threads that are not daemons, as those of a pool.
    """
    threading.Thread(target=_end_with, args=(code,), name="router_trio end", daemon=True).start()
    return code


def _end_with(code: int) -> None:
    time.sleep(THREADS_WITHIN)
    threads = [one.name for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    with suppress(OSError):
        names = excerpt(", ".join(sorted(threads)), LONGEST_TEXT)
        os.write(2, f"router-trio: the process ends though threads of handlers have not: {names}\n".encode())
    os._exit(code)


class LastResort:
    """The thread of one process. `watching` is its life."""

    def __init__(self, drain_within: float, cut_within: float = CUT_WITHIN) -> None:
        """`drain_within`: seconds for the drain, until `hear` knows better."""
        self._drain_within = drain_within
        self._cut_within = cut_within
        self._count = 0
        self._heeded = 0
        self._deadline = inf

    def hear(self, event: Event) -> None:
        """Hear how long the drain may last, as an observer of a router."""
        if isinstance(event, RouterDraining) and self._count == 1:
            self._deadline = time.monotonic() + event.timeout_seconds + AFTER_THE_DRAIN

    def heed(self, count: int) -> None:
        """Note that the loop has heeded so many signals."""
        self._heeded = count

    @contextmanager
    def watching(self, signals: Collection[int]) -> Iterator[None]:
        """Watch for these signals while this is entered, in the main thread and inside of Trio."""
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
            # Looked at again and again once a deadline is set, since `hear` may move it.
            ready, _, _ = select.select([reads], [], [], min(left, 0.2) if left < inf else None)
            if not ready:
                if time.monotonic() >= self._deadline:
                    self._too_late()
                continue
            told = os.read(reads, 64)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(_nothing)  # the loop would sleep on: its own descriptor is not told any more
            if _OVER in told:
                return
            for number in told:
                if number in signals:
                    self._signalled()

    def _signalled(self) -> None:
        self._count += 1
        now = time.monotonic()
        if self._count == 1:
            self._deadline = now + self._drain_within + AFTER_THE_DRAIN
        elif self._count == 2:
            self._deadline = min(self._deadline, now + HEEDED_WITHIN)
        else:
            end_process(f"signal number {self._count} asks for the end")

    def _too_late(self) -> None:
        if self._count == 1:
            end_process("the drain did not end within shutdown_timeout, because a handler or a thread hangs")
        if self._heeded < 2:
            end_process("a second signal came while the event loop was blocked")
        if self._cut_within:
            self._deadline, self._cut_within = time.monotonic() + self._cut_within - HEEDED_WITHIN, 0.0
        else:
            end_process("a second signal came, and a thread hangs")


def _nothing() -> None:
    pass
