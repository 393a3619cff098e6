"""The trace of a run: every event, message and ledger with its time, in order, and the hash over all of it."""

from __future__ import annotations

from collections import deque
from hashlib import blake2b

import trio


class Trace:
    """Recorded lines. Only the last ones are kept, unless `keep` is set."""

    def __init__(self, *, keep: bool = False, last: int = 40) -> None:
        self._hash = blake2b(digest_size=16)
        self.lines: deque[str] = deque(maxlen=None if keep else last)

    def add(self, what: str) -> None:
        """Record an event with the current time."""
        line = f"{trio.current_time():11.6f} {what}"
        self._hash.update(line.encode() + b"\n")
        self.lines.append(line)

    @property
    def digest(self) -> str:
        """Return the hash over all lines so far."""
        return self._hash.hexdigest()
