"""Check the settings of routes that need a handler."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from router_trio.errors import Problem, SubjectError
from router_trio.settings.routes import RouteSettings, SourceSettings
from router_trio.subjects.patterns import validate_pattern

ASYNC_IN_A_THREAD = "is for a plain def that blocks, and the handler is async: it waits without a thread; remove it"
"""Why `thread` is refused, for the modules that import handlers."""


def without_handler(routes: Sequence[RouteSettings], handled: Collection[str]) -> list[Problem]:
    """Return a problem for each handler setting of a route without handler. `handled`: routes with one from code."""
    return [
        problem
        for index, route in enumerate(routes)
        if route.handler is None and route.name not in handled
        for problem in _problems(f"routes[{index}]", route)
    ]


def _problems(path: str, route: RouteSettings) -> Iterator[Problem]:
    if route.respond:
        yield Problem(f"{path}.respond", "answers with what a handler returns; name a handler, or remove it")
    if route.thread:
        yield Problem(f"{path}.thread", "calls a handler, and the route has none; name a handler, or remove it")


def check_respond(path: str, *, respond: bool, has_to: bool, source: SourceSettings | None) -> Iterator[Problem]:
    """Check `respond` of one route, which may have no destinations."""
    if not has_to and not respond:
        yield Problem(f"{path}.to", "missing; add [[routes.to]], or set respond = true for a handler that only answers")
    if respond and source is not None and not source.kind.may_be_answered:
        text = f"a message of {source.kind.noun} has no reply subject, so nothing can be answered; remove it"
        yield Problem(f"{path}.respond", text)


def check_reply_to(path: str, *, respond: bool, reply_to: Sequence[str]) -> Iterator[Problem]:
    """Check the subjects that one route may answer to."""
    if reply_to and not respond:
        yield Problem(f"{path}.reply_to", "says where respond may answer; set respond = true, or remove it")
    for index, pattern in enumerate(reply_to):
        where = f"{path}.reply_to[{index}]"
        try:
            validate_pattern(pattern, what="reply_to")
        except SubjectError as error:
            yield Problem(where, str(error))
            continue
        if pattern.startswith("$"):
            yield Problem(where, "begins with '$', where servers listen: nothing is ever answered there; remove it")
