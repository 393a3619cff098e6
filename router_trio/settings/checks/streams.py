"""What must hold between the `[[streams]]` of a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from router_trio.errors import Problem, SubjectError
from router_trio.settings.problems import suggestion
from router_trio.settings.streams import StreamSettings
from router_trio.settings.units import format_duration
from router_trio.subjects.patterns import overlaps, validate_pattern

NOT_IN_NAMES = re.compile(r"[\x00-\x20\x7f.*>/\\]")
"""What nats-server refuses in the name of a stream or a consumer."""

API_SUBJECTS = "$JS.API.>"


def check_streams(streams: Sequence[StreamSettings | None], connections: Mapping[str, object] | None) -> list[Problem]:
    """Return everything that is wrong. None stands for a section that was refused already."""
    return [*_each(streams, connections), *_together(streams, connections or {})]


def _each(streams: Sequence[StreamSettings | None], connections: Mapping[str, object] | None) -> Iterator[Problem]:
    for index, stream in enumerate(streams):
        if stream is None:
            continue
        path = f"streams[{index}]"
        found = NOT_IN_NAMES.search(stream.name)
        if found:
            told = f"{stream.name!r} holds {found[0]!r}, which NATS does not allow; remove it"
            yield Problem(f"{path}.name", told)
        if connections:
            if not stream.connection and len(connections) > 1:
                known = ", ".join(map(repr, connections))
                told = f"missing; there are several connections, name one of {known}"
                yield Problem(f"{path}.connection", told)
            elif stream.connection and stream.connection not in connections:
                told = f"there is no connection {stream.connection!r}; {suggestion(stream.connection, connections)}"
                yield Problem(f"{path}.connection", told)
        yield from _subjects(path, stream.subjects)
        window = stream.duplicate_window
        if stream.max_age and window is not None and window > stream.max_age:
            told = (
                f"{format_duration(window)} is longer than max_age, {format_duration(stream.max_age)}, which "
                "nats-server refuses; use at most max_age"
            )
            yield Problem(f"{path}.duplicate_window", told)


def _subjects(path: str, subjects: Sequence[str]) -> Iterator[Problem]:
    valid: list[tuple[int, str]] = []
    for number, subject in enumerate(subjects):
        where = f"{path}.subjects[{number}]"
        try:
            validate_pattern(subject, what="subject")
        except SubjectError as error:
            yield Problem(where, str(error))
            continue
        if overlaps(subject, API_SUBJECTS):
            told = f"{subject!r} takes in requests to JetStream, which nats-server refuses; begin with a token"
            yield Problem(where, told)
        for other, earlier in valid:
            if overlaps(subject, earlier):
                told = f"{subject!r} overlaps with subjects[{other}], {earlier!r}, which nats-server refuses"
                yield Problem(where, f"{told}; keep one of them")
                break
        valid.append((number, subject))


def _together(streams: Sequence[StreamSettings | None], connections: Mapping[str, object]) -> Iterator[Problem]:
    only = next(iter(connections)) if len(connections) == 1 else ""
    before: list[tuple[int, str, StreamSettings]] = []
    for index, stream in enumerate(streams):
        if stream is None:
            continue
        connection = stream.connection or only
        for first, other_connection, other in before:
            if connection != other_connection:
                continue
            if other.name == stream.name:
                told = f"{stream.name!r} is the name of streams[{first}] already, on the same connection"
                told += "; remove one of them, or choose another name"
                yield Problem(f"streams[{index}].name", told, other=f"streams[{first}]")
                break
            shared = _shared(stream, other)
            if shared is not None:
                number, theirs = shared
                told = f"{stream.subjects[number]!r} overlaps with {theirs!r} of streams[{first}] ({other.name})"
                told += ", and a subject can be in one stream; narrow one"
                yield Problem(f"streams[{index}].subjects[{number}]", told, other=f"streams[{first}]")
                break
        before.append((index, connection, stream))


def _shared(stream: StreamSettings, other: StreamSettings) -> tuple[int, str] | None:
    for number, subject in enumerate(stream.subjects):
        for theirs in other.subjects:
            try:
                validate_pattern(subject)
                validate_pattern(theirs)
            except SubjectError:
                continue
            if overlaps(subject, theirs):
                return number, theirs
    return None
