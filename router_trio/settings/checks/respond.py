"""What must hold for a route that answers."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.routes import SourceSettings


def check_respond(path: str, *, respond: bool, has_to: bool, source: SourceSettings | None) -> Iterator[Problem]:
    """Check one route, which has a list of destinations or none."""
    if not has_to and not respond:
        yield Problem(f"{path}.to", "missing; add [[routes.to]], or set respond = true for a handler that only answers")
    if respond and source is not None and source.stream is not None:
        yield Problem(
            f"{path}.respond", "a message of a stream has no reply subject, so there is nobody to answer; remove it"
        )
