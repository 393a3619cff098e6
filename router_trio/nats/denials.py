"""Requests that the server may refuse: whoever waits for an answer gets an error instead, at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import quoted
from router_trio.protocol import framing


class _Waiting:
    __slots__ = ("scope", "told")

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.told = ""


class Denials:
    """The requests of one link that wait for an answer, by subject."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[_Waiting]] = {}

    @contextmanager
    def raised(self, subject: bytes) -> Iterator[None]:
        """Cancel the block if the server refuses a publish to `subject`, and raise `SourceError` in its place."""
        scope = trio.CancelScope()
        one = _Waiting(scope)
        with scope:
            self._waiting.setdefault(subject, []).append(one)
            try:
                yield
            finally:
                waiting = self._waiting[subject]
                waiting.remove(one)
                if not waiting:
                    del self._waiting[subject]
        if scope.cancelled_caught:
            name = quoted(framing.text(subject))
            raise SourceError(
                f"this user may not publish to {name}: {one.told}; give this user the permission",
                reason=reasons.PERMISSION_DENIED,
            )

    def denied(self, subject: bytes, told: str) -> bool:
        """End the requests to `subject`, which the server refused. Return False if there is none."""
        waiting = self._waiting.get(subject, ())
        for one in waiting:
            one.told = told
            one.scope.cancel()
        return bool(waiting)
