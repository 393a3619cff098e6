"""Detect filters of a route that match no subject of its stream.

A route with such a filter is not ready, which is logged. Messages that the stream still has, because it once had other
subjects, are routed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from router_trio.errors import SourceError
from router_trio.errors.quotes import LONGEST_TEXT, excerpt
from router_trio.events import Emit, FilterOutside
from router_trio.link import ConsumerSpec, Link
from router_trio.subjects.patterns import overlaps

LOOK_EVERY = 5.0
"""Seconds between two lookups of a stream that a filter does not match."""


class Filters:
    """Compares the filters of one route with the subjects of its stream."""

    def __init__(self, route: str, spec: ConsumerSpec, emit: Emit) -> None:
        self.outside: str | None = None
        """Why the route is not ready; None if each filter matches a subject."""
        self._route = route
        self._spec = spec
        self._emit = emit
        self._reported: tuple[str, str] | None = None

    def compare(self, subjects: Sequence[str]) -> None:
        """Compare the filters with all subjects of the stream (none if unknown). Log filters outside of them once."""
        outside = [one for one in self._spec.patterns if not any(overlaps(one, subject) for subject in subjects)]
        if not subjects or not outside:
            self.outside = self._reported = None
            return
        described = ", ".join(outside), excerpt(", ".join(subjects), LONGEST_TEXT // 2)
        filters, taken = described
        stream = self._spec.stream
        self.outside = (
            f"the filter {filters} matches none of the subjects of the stream {stream!r}, which are {taken}; correct "
            "the filter or the stream"
        )
        if described != self._reported:
            self._emit(
                FilterOutside(at=trio.current_time(), route=self._route, stream=stream, filter=filters, subjects=taken)
            )
        self._reported = described

    async def watch(self, link: Link, changed: Callable[[], None]) -> None:
        """Return when the stream was changed so that no filter is outside. Can be cancelled."""
        while self.outside is not None:
            await trio.sleep(LOOK_EVERY)
            try:
                state = await link.stream_state(self._spec.stream)
            except SourceError:
                continue
            if state is not None:
                self.compare(state.subjects)
                changed()
