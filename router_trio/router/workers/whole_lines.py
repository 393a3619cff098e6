"""Log lines of several processes in one stream: each batch is written as a whole.

A pipe takes 4 KiB in one piece, and no more. So whoever writes holds a lock: a record lock on a file that the processes
share and that has no other use. The system releases it when its holder ends, however it ends.
"""

from __future__ import annotations

import fcntl

from router_trio.telemetry.logs.writer import write_to_stderr


class WholeLines:
    """Writes to stderr, under the lock of this descriptor. Blocks as long as stderr does, or who holds the lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Write everything. Raises `OSError` if stderr is gone."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            write_to_stderr(data)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
