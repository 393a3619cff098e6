"""Check the reasons for which a message is given up at once."""

from __future__ import annotations

import re
from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.errors.reasons import HANDLER_ERROR, TO_NAME
from router_trio.settings.retry import RetrySettings
from router_trio.settings.units import format_duration

_REASON = re.compile(rf"[a-z][a-z0-9_]*|{HANDLER_ERROR}:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def check_reasons(path: str, retry: RetrySettings | None) -> Iterator[Problem]:
    """Give everything that is wrong with a `[routes.retry]`."""
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
                f"{reason!r} is no reason; take one of router_messages_failed_total, such as 'mapping', or "
                "'handler_error:ValueError' for what a handler raises",
            )
        elif ":" not in reason and reason not in TO_NAME and (near := _misspelt(reason)) is not None:
            yield Problem(where, f"no message fails with the reason {reason!r}; did you mean {near!r}?")


def _misspelt(reason: str) -> str | None:
    """Return the reason that is meant, if it is nearly written like that: others may be right, and not be known."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(reason, TO_NAME, n=1, cutoff=0.85)), None)
