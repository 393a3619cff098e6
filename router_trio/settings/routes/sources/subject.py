"""A subject: a core subscription, whose messages are not stored."""

from __future__ import annotations

import re
from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.patterns import check_name, check_source_pattern
from router_trio.settings.routes.sources.keys import SourceKeys
from router_trio.settings.routes.sources.kind import SourceKind

_NOT_IN_QUEUES = re.compile(r"[\x00-\x20\x7f]")


class _Subject(SourceKind):
    key = "subject"
    noun = "a subject"
    needed = "a subject"
    keys = ("queue",)
    shown = ("subject", "queue")
    redelivers = False
    is_stored = False
    may_be_answered = True
    default_attempts = 1
    promise = "at most once"
    retried_from = " from memory"
    given_up = "then lost"
    shared_by = "queue group"

    def subjects(self, source: SourceKeys) -> tuple[str, ...]:
        return (source.subject,) if source.subject else ()

    def described(self, source: SourceKeys) -> str:
        return f"{source.subject}" + (f", queue group {source.queue}" if source.queue else "")

    def subscription(self, source: SourceKeys) -> tuple[str, str | None] | None:
        return None if source.subject is None else (source.subject, source.queue)

    def is_shared(self, source: SourceKeys) -> bool:
        return source.queue is not None

    def check(self, path: str, source: SourceKeys) -> Iterator[Problem]:
        if source.subject is not None:
            yield from check_source_pattern(f"{path}.subject", source.subject, "subject")
        yield from check_name(f"{path}.queue", source.queue, _NOT_IN_QUEUES)

    def refuse(self, key: str, owner: SourceKind) -> str:
        return f"is only for {owner.noun}, and this source is a subject; remove it"

    def check_shared(self, path: str, source: SourceKeys, workers: int) -> Iterator[Problem]:
        if source.subject is not None and source.queue is None:
            yield Problem(
                f"{path}.queue",
                f"missing; each of {workers} workers would route every message of {source.subject!r}: name a queue "
                "group, which gives each message to one of them, such as queue = 'routers', or run one worker",
            )


SUBJECT: SourceKind = _Subject()
"""The kind of a source that names a subject."""
