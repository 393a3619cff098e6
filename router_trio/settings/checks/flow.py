"""Check the limit, the breakers and the retries of a route, and divide limits among workers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from router_trio.errors import Problem
from router_trio.errors.reasons import HANDLER_ERROR, OF_LOOKUPS, TO_NAME
from router_trio.settings.checks.content import check_expression
from router_trio.settings.expressions import PER
from router_trio.settings.patterns import check_name, check_own_subject
from router_trio.settings.retry import RetrySettings
from router_trio.settings.routes import DestinationSettings, LimitSettings, RouteSettings, SourceSettings
from router_trio.settings.units import MOST_MESSAGES, Rate, format_duration

_REASON = re.compile(rf"[a-z][a-z0-9_]*|{HANDLER_ERROR}:[^\W\d]\w*(?:\.[^\W\d]\w*)*")

_UNITS = (1, 60, 3600)
"""Units of rates, in seconds."""


def check_flow(
    path: str, *, limit: LimitSettings | None, to: Sequence[DestinationSettings | None], from_stream: bool
) -> Iterator[Problem]:
    """Yield each problem of the limit and the breakers of a route. Values of None are unknown and not checked."""
    if limit is not None:
        yield from check_expression(f"{path}.limit.per", limit.per, PER, from_stream)
    for index, destination in enumerate(to):
        if destination is not None and destination.breaker is not None and destination.mirror is not None:
            text = "a mirror that fails delays nothing, so it needs no breaker; remove it"
            yield Problem(f"{path}.to[{index}].breaker", text)


def check_retry(path: str, retry: RetrySettings | None) -> Iterator[Problem]:
    """Yield each problem of a `[routes.retry]`."""
    if retry is None:
        return
    if retry.max < retry.initial:
        longest, first = format_duration(retry.max), format_duration(retry.initial)
        yield Problem(f"{path}.max", f"{longest} is less than initial, {first}; raise one of them")
    for index, reason in enumerate(retry.never):
        where = f"{path}.not[{index}]"
        if not _REASON.fullmatch(reason):
            yield Problem(
                where,
                f"{reason!r} is not a reason; use one of router_messages_failed_total, such as 'mapping', or "
                "'handler_error:ValueError' for what a handler raises",
            )
        elif ":" not in reason and reason not in TO_NAME and (near := _meant(reason)) is not None:
            yield Problem(where, f"no message fails with the reason {reason!r}; did you mean {near!r}?")


def may_schedule(retry: RetrySettings | None, route: RouteSettings) -> bool:
    """Return True if a route with this source could have the `schedule` of `retry`."""
    return not any(check_schedule("", retry, route.source))


def check_schedule(path: str, retry: RetrySettings | None, source: SourceSettings | None) -> Iterator[Problem]:
    """Yield each problem of the `schedule` of a `[routes.retry]`. Values of None are unknown and not checked."""
    if retry is None or (schedule := retry.schedule) is None:
        return
    yield from check_name(f"{path}.stream", schedule.stream)
    yield from check_own_subject(f"{path}.prefix", schedule.prefix)
    if source is None:
        return
    if not source.kind.redelivers:
        yield Problem(path, "only messages from a stream can wait in another one; read from a stream, or remove it")
    if source.partitions:
        yield Problem(path, "can't be combined with partitions; remove one of them")
    if source.kind.stream(source) == schedule.stream:
        text = "is the stream that the route reads, and would deliver schedules as well; use another stream"
        yield Problem(f"{path}.stream", text)


def _meant(reason: str) -> str | None:
    """Return the known reason that is meant, as one that is spelled alike; None if unknown: other reasons may exist."""
    from difflib import get_close_matches

    if reason in OF_LOOKUPS:
        return OF_LOOKUPS[reason]
    return next(iter(get_close_matches(reason, TO_NAME, n=1, cutoff=0.85)), None)


# --- workers ---


def check_shared_limit(path: str, limit: LimitSettings | None, workers: int) -> Iterator[Problem]:
    """Yield the problem of a limit that `workers` workers can't share. None is unknown and not checked."""
    if limit is None or workers == 1:
        return
    too_small = limit.most_at_once < workers
    if too_small or share_of(limit.rate, workers) is None:
        key, cure = ("burst", f"give at least {workers}") if too_small else ("rate", "raise it")
        text = f"can't be divided among {workers} workers, since each gets a part of it"
        yield Problem(f"{path}.limit.{key}", f"{text}; {cure}, or run fewer workers")


def share_of(rate: Rate, workers: int) -> Rate | None:
    """Return the share of a rate for each worker: together never more than the rate. None if the share is zero."""
    share: Rate | None = None
    for unit in _UNITS:
        messages, rest = divmod(rate.messages * unit, rate.seconds * workers)
        if 1 <= messages <= MOST_MESSAGES:
            share = Rate(messages, unit)  # the longer the unit, the smaller the loss by rounding
            if not rest:
                break
    return share


def limit_of_worker(limit: LimitSettings, workers: int) -> LimitSettings:
    """Return the limit for each of `workers` workers, so that together they keep this limit."""
    share = share_of(limit.rate, workers)
    assert share is not None  # `check_shared_limit` has refused it
    return limit.model_copy(update={"rate": share, "burst": limit.most_at_once // workers})
