"""Write log lines from a thread, so that a stalled stderr never stalls the router.

A write to a full pipe blocks until its reader reads. So lines go into a bounded buffer and a daemon thread writes them;
lines that find the buffer full are dropped and counted. The thread writes to the file descriptor, not to `sys.stderr`:
a thread that hangs in a buffered stream holds a lock that the interpreter needs to exit.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

MAX_LINES = 4096
BATCH_LINES = 64
FLUSH_SECONDS = 1.0


class LineWriter:
    """A bounded buffer of lines. Lines that are put before `writing` is entered are written then."""

    def __init__(self, write: Callable[[bytes], object], *, max_lines: int = MAX_LINES) -> None:
        self._write = write
        self._max_lines = max_lines
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._writing = 0
        self._closed = False
        self.dropped: int = 0

    def put(self, line: str) -> None:
        """Queue a line, given without a line break. Never blocks on the output. Thread-safe."""
        encoded = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._closed or len(self._lines) >= self._max_lines:
                self.dropped += 1
            else:
                self._lines.append(encoded)
                self._changed.notify()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write lines while this is entered. Leaving flushes for at most `FLUSH_SECONDS`, even when cancelled."""
        thread = threading.Thread(target=self._run, name="router_trio log writer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify()
            with trio.CancelScope(shield=True):
                # A limiter of our own: threads of the program that never end may have used up Trio's default one.
                await trio.to_thread.run_sync(thread.join, FLUSH_SECONDS, limiter=trio.CapacityLimiter(1))
            with self._changed:
                self.dropped += len(self._lines) + self._writing
                self._lines.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._closed:
                    self._changed.wait()
                if not self._lines:
                    return
                batch = [self._lines.popleft() for _ in range(min(BATCH_LINES, len(self._lines)))]
                self._writing = len(batch)
            try:
                self._write(b"".join(batch))
                failed = 0
            except OSError:
                failed = len(batch)
            with self._changed:
                self._writing = 0
                self.dropped += failed


def write_to_stderr(data: bytes) -> None:
    """Write everything to the process's stderr. Blocks while stderr does; raises `OSError` if stderr is closed."""
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        # A notebook or a test has replaced stderr.
        if sys.stderr is not None:
            sys.stderr.write(data.decode())
        return
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


class WholeLines:
    """Writes batches of lines to the stderr of several processes without mixing them. Blocks while stderr does.

    Writes to a pipe are atomic only up to 4 KiB. So a process holds a record lock on the file of `descriptor` while it
    writes. The processes share that file, which has no other use. The system releases the lock when its holder ends, in
    whatever way.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Write everything. Raises `OSError` if stderr is closed."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            write_to_stderr(data)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
