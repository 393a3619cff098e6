"""State in one sentence what a route guarantees for each message: for `check` and `explain`."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.settings.routes import RouteSettings


def guarantee(route: RouteSettings, workers: int = 1) -> str:
    """Return the sentence, or nothing for a route without settings of order, handlers and failed messages.

    With several workers or partitions the sentence includes the order that all processes keep.
    """
    fails = route.retry is not None or route.dead_letter is not None
    handled = route.handler is not None
    by_key = route.goes_by_key(handled)
    kept = route.source.kind.kept_order(route.source)
    if not (fails or by_key or route.thread or workers > 1 or kept or route.schema_file is not None):
        return ""
    parts = [route.source.kind.promise]
    if kept:
        parts.append(_order_of_all(route, kept, by_key=by_key))
    elif workers > 1:
        parts.append(_order_among(route, workers, by_key=by_key))
    elif by_key:
        parts.append(_order(route))
    if handled and (route.thread or route.concurrency > 1):
        parts.append(_calls(route))
    if route.schema_file is not None:
        parts.append(f"given up at once if the body does not fit {route.schema_file.name}")
    if any(to.delay is not None for to in route.to):
        parts.append("delayed copies in the order of their times")
    if fails:
        parts += _failures(route)
    return "; ".join(parts)


def _order(route: RouteSettings) -> str:
    key = "subject" if route.key is None else " ".join(route.key.split())
    shared = route.source.kind.is_shared(route.source)
    return f"in order for each {key}" + (" within one process" if shared else "")


def _order_of_all(route: RouteSettings, kept: str, *, by_key: bool) -> str:
    key = kept if route.key is None or not by_key else f"{' '.join(route.key.split())} within a partition"
    return f"in order for each {key}, over all processes"


def _order_among(route: RouteSettings, workers: int, *, by_key: bool) -> str:
    key = "" if route.key is None or not by_key else f" or {' '.join(route.key.split())}"
    shared = route.source.kind.shared_by
    return f"in no order among {workers} workers, which share the {shared}, not even for one subject{key}"


def _calls(route: RouteSettings) -> str:
    where = " in threads" if route.thread else ""
    if route.concurrency == 1:
        return "one handler call at a time, in a thread"
    return f"up to {route.concurrency} concurrent handler calls{where}"


def _failures(route: RouteSettings) -> Iterator[str]:
    kind, retry = route.source.kind, route.retry_or_default
    if retry.attempts == 1:
        yield "not retried"
    else:
        memory = kind.retried_from
        yield f"at most {retry.attempts} attempts{memory}" if retry.attempts else f"retried{memory} without end"
        if retry.never:
            yield f"not retried after {', '.join(retry.never)}"
    if route.dead_letter is not None:
        where = f"dead letters in {route.source.mapping(route.dead_letter.subject).pattern}"
        if not route.retries_without_end:
            yield where
        elif route.handler is not None:
            yield f"{where} only of what the handler rejects"
        else:
            yield "nothing is given up, so there are no dead letters"
    elif retry.attempts or retry.never:
        yield kind.given_up
