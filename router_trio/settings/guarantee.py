"""What a route promises of each message, in one sentence: for `check` and `explain`."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.settings.retry import RetrySettings
from router_trio.settings.routes import RouteSettings


def guarantee(route: RouteSettings) -> str:
    """Return the sentence, or nothing for a route that says nothing of messages that fail."""
    if route.retry is None and route.dead_letter is None:
        return ""
    return "; ".join(_parts(route))


def _parts(route: RouteSettings) -> Iterator[str]:
    from_stream = route.source.stream is not None
    yield "at least once" if from_stream else "at most once"
    retry = route.retry or RetrySettings(attempts=0 if from_stream else 1)
    if retry.attempts == 1:
        yield "tried once"
    else:
        memory = "" if from_stream else " from memory"
        yield f"tried {retry.attempts} times{memory}" if retry.attempts else f"tried{memory} without end"
        if retry.never:
            yield f"not again after {', '.join(retry.never)}"
    if route.dead_letter is not None:
        yield f"dead letters in {route.source.mapping(route.dead_letter.subject).pattern}"
    elif retry.attempts or retry.never:
        yield "then given up" if from_stream else "then lost"
