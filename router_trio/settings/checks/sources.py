"""What must hold between the keys of a `[routes.from]`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from router_trio.errors import Problem, SubjectError
from router_trio.settings.checks.placeholders import placeholder_in
from router_trio.settings.checks.streams import NOT_IN_NAMES, check_patterns
from router_trio.settings.routes import SourceSettings
from router_trio.subjects.patterns import validate_pattern

_ONLY_FOR_STREAMS = (
    "durable",
    "standby",
    "filter",
    "deliver",
    "max_in_flight",
    "max_in_flight_bytes",
    "ack_wait",
    "max_deliver",
    "nak_delay",
)

_NOT_IN_QUEUES = re.compile(r"[\x00-\x20\x7f]")


def check_source(path: str, source: SourceSettings) -> Iterator[Problem]:
    """Give everything that is wrong with a source."""
    if source.subject is None and source.stream is None:
        yield Problem(path, "names no source; give a subject, or a stream and a durable")
    elif source.stream is None:
        # What nobody set is not compared: the defaults cost a validation of their own.
        given = [key for key in _ONLY_FOR_STREAMS if key in source.model_fields_set]
        defaults = SourceSettings() if given else source
        for key in given:
            if getattr(source, key) != getattr(defaults, key):
                yield Problem(f"{path}.{key}", "is only for a stream, and this source is a subject; remove it")
    else:
        for key in ("subject", "queue"):
            if getattr(source, key) is not None:
                cure = "remove it, or use 'filter'" if key == "subject" else "remove it"
                yield Problem(f"{path}.{key}", f"can't be combined with a stream; {cure}")
        if source.durable is None:
            yield Problem(f"{path}.durable", "missing; name the durable consumer, it is created if absent")
    if source.subject is not None:
        yield from _check_pattern(f"{path}.subject", source.subject, "subject")
    yield from _check_filters(f"{path}.filter", source)
    for key, refused in (("stream", NOT_IN_NAMES), ("durable", NOT_IN_NAMES), ("queue", _NOT_IN_QUEUES)):
        name: str | None = getattr(source, key)
        found = refused.search(name) if name else None
        if found:
            yield Problem(f"{path}.{key}", f"{name!r} holds {found[0]!r}, which NATS does not allow; remove it")


def check_shared_source(path: str, source: SourceSettings | None, workers: int) -> Iterator[Problem]:
    """Give what keeps so many workers from sharing a source. What is None is not judged."""
    if source is None or workers == 1:
        return
    if source.subject is not None and source.queue is None:
        yield Problem(
            f"{path}.queue",
            f"missing; each of {workers} workers would route every message of {source.subject!r}: name a queue group, "
            "which gives each message to one of them, such as queue = 'routers', or run one worker",
        )
    if source.standby:
        yield Problem(
            f"{path}.standby",
            f"gives all messages to one process, so {workers} workers can't share them; remove it, or run one worker",
        )


def _check_pattern(path: str, pattern: str, what: str) -> Iterator[Problem]:
    if (found := placeholder_in(pattern)) is not None:
        yield _misplaced(path, found)
        return
    try:
        validate_pattern(pattern, what=what)
    except SubjectError as error:
        yield Problem(path, str(error))


def _check_filters(path: str, source: SourceSettings) -> Iterator[Problem]:
    def where(number: int) -> str:
        return path if isinstance(source.filter, str) else f"{path}[{number}]"

    misplaced = [(where(number), found) for number, one in enumerate(source.filters) if (found := placeholder_in(one))]
    yield from (_misplaced(*one) for one in misplaced)
    if not misplaced:
        yield from check_patterns("filter", source.filters, where, "filter")


def _misplaced(path: str, placeholder: str) -> Problem:
    return Problem(
        path,
        f"{placeholder!r} is a placeholder for a token of the source, so it belongs in a destination; write '*' here, "
        "or exchange source and destination",
    )
