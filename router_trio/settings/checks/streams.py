"""Check the `[[streams]]` of a configuration against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from router_trio.errors import Problem, SubjectError
from router_trio.settings.patterns import check_name, check_patterns, find_overlap
from router_trio.settings.problems import suggestion
from router_trio.settings.streams import StreamSettings
from router_trio.settings.units import format_duration
from router_trio.subjects.patterns import overlaps, validate_pattern
from router_trio.subjects.shapes import Patterns

API_SUBJECTS = "$JS.API.>"


def check_streams(streams: Sequence[StreamSettings | None], connections: Mapping[str, object] | None) -> list[Problem]:
    """Return every problem. None stands for a section that was refused already."""
    return [*_each(streams, connections), *_together(streams, connections or {})]


def _each(streams: Sequence[StreamSettings | None], connections: Mapping[str, object] | None) -> Iterator[Problem]:
    for index, stream in enumerate(streams):
        if stream is None:
            continue
        path = f"streams[{index}]"
        yield from check_name(f"{path}.name", stream.name)
        if connections:
            if not stream.connection and len(connections) > 1:
                known = ", ".join(map(repr, connections))
                text = f"missing; there are several connections, name one of {known}"
                yield Problem(f"{path}.connection", text)
            elif stream.connection and stream.connection not in connections:
                text = f"there is no connection {stream.connection!r}; {suggestion(stream.connection, connections)}"
                yield Problem(f"{path}.connection", text)
        yield from _subjects(path, stream.subjects)
        if stream.allow_message_schedules and (loses := stream.config.loses_schedules) is not None:
            yield Problem(f"{path}.allow_message_schedules", loses)
        window = stream.duplicate_window
        if stream.max_age and window is not None and window > stream.max_age:
            text = (
                f"{format_duration(window)} is longer than max_age, {format_duration(stream.max_age)}, which "
                "nats-server refuses; use at most max_age"
            )
            yield Problem(f"{path}.duplicate_window", text)


def _subjects(path: str, subjects: Sequence[str]) -> Iterator[Problem]:
    yield from check_patterns("subjects", subjects, lambda number: f"{path}.subjects[{number}]", "subject")
    for number, subject in valid_patterns(subjects):
        if overlaps(subject, API_SUBJECTS):
            text = f"{subject!r} takes in requests to JetStream, which nats-server refuses; begin with a token"
            yield Problem(f"{path}.subjects[{number}]", text)


def valid_patterns(patterns: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each valid pattern, with its number."""
    for number, pattern in enumerate(patterns):
        try:
            validate_pattern(pattern)
        except SubjectError:
            continue
        yield number, pattern


def _together(streams: Sequence[StreamSettings | None], connections: Mapping[str, object]) -> Iterator[Problem]:
    only = next(iter(connections)) if len(connections) == 1 else ""
    taken: dict[str, Patterns] = {}
    names: dict[tuple[str, str], int] = {}
    for index, stream in enumerate(streams):
        if stream is None:
            continue
        connection = stream.connection or only
        before = taken.setdefault(connection, Patterns())
        shapes = [tuple(subject.split(".")) for _, subject in valid_patterns(stream.subjects)]
        same = names.setdefault((connection, stream.name), index)
        overlapping = min((one for shape in shapes for one in before.meeting(shape)), default=index)
        for shape in shapes:
            before.add(shape, index)
        if same != index and same <= overlapping:
            text = f"{stream.name!r} is the name of streams[{same}] already, on the same connection"
            text += "; remove one of them, or choose another name"
            yield Problem(f"streams[{index}].name", text, other=f"streams[{same}]")
        elif overlapping != index:
            yield _overlap(index, stream, overlapping, streams[overlapping])


def _overlap(index: int, stream: StreamSettings, first: int, other: StreamSettings | None) -> Problem:
    shared = None if other is None else _shared(stream, other)
    assert other is not None
    assert shared is not None
    number, theirs = shared
    text = f"{stream.subjects[number]!r} overlaps with {theirs!r} of streams[{first}] ({other.name})"
    text += ", and a subject can be in one stream; narrow one"
    return Problem(f"streams[{index}].subjects[{number}]", text, other=f"streams[{first}]")


def _shared(stream: StreamSettings, other: StreamSettings) -> tuple[int, str] | None:
    """Return the number of the first subject that overlaps with one of another stream, and the other subject."""
    theirs = list(valid_patterns(other.subjects))
    for number, subject in valid_patterns(stream.subjects):
        found = find_overlap(subject, theirs)
        if found is not None:
            return number, other.subjects[found]
    return None
