"""The headers of a message that waits in the stream of retries: its origin, its attempts, and its own headers.

All headers of servers are renamed meanwhile, so that none of them steers that stream, and restored byte for byte. So is
what only begins like one of them, behind any LF: a server would cut it together with the start of the next header. Pure
and synchronous.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from router_trio.protocol import headers, message_ids, schedules
from router_trio.protocol.framing import LAST_SEQUENCE, text, wire
from router_trio.routing.policy.failed_messages import Failed, Numbering
from router_trio.routing.route_plans import copy_id
from router_trio.settings.retry import RetryNames
from router_trio.subjects.patterns import is_valid_subject

PREFIX = "Router-Origin-"
"""The prefix of the headers that are added."""

FIELDS = ("Subject", "Stream", "Sequence", "Time", "Deliveries", "Attempts", "State")
"""The names of those headers, without the prefix. `Header-` is in front of the names of renamed headers."""

MOST_ATTEMPTS = 2**31

MOST_ANSWERS = 2**31
"""Answers of a handler to one message whose copies are recorded."""

_RENAMED = re.compile(rb"\n((?i:Nats-|Router-Message-Id|Router-Origin-))")
_ANY_SUBJECT = re.compile(rb"\nRouter-Origin-Subject: ?([^ \t\r\n]+)")
_NAME = f"{PREFIX}Header-".encode()
_SUBJECT = re.compile(rb"[^ \t\r\n]+")
_OURS = re.compile(
    rb"\n(?:(?i:Nats-|Router-Message-Id)|Router-Origin-(?:%b):)[^\n]*" % "|".join(FIELDS).encode()
    + rb"(?:\n[ \t][^\n]*)*"
)


class Origin(NamedTuple):
    """Where a message came from, and what is known of its attempts. `time_ns` is in nanoseconds since 1970.

    `failed` has the number of its failures, its delivered copies and its choices.
    """

    subject: bytes
    stream: str
    sequence: int
    time_ns: int
    deliveries: int
    failed: Failed

    @property
    def message_id(self) -> bytes:
        """The first part of the ids of its copies."""
        return message_ids.of_position(wire(self.stream), self.sequence, self.time_ns)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a `Message` about the stream that it came from."""
        about = {"stream": self.stream, "sequence": self.sequence, "deliveries": self.deliveries}
        return about | {"timestamp": self.time_ns / 1e9}


class Place(NamedTuple):
    """The place of a message in its stream. `time_ns` is when it was stored there, in nanoseconds since 1970."""

    subject: bytes
    stream: bytes
    sequence: int
    time_ns: int


def place_of(block: bytes, subject: str, names: RetryNames, route: str) -> Place | None:
    """Return where a message that waits for its next attempt, or is due, came from; None if `route` did not store it.

    Its subject is that of its schedule, whose token is made of its origin and its attempts, or that of due messages.
    """
    values = (headers.find(block, f"{PREFIX}{name}".encode()) or b"" for name in FIELDS)
    from_subject, stream, sequence, time, _, attempts, _ = values
    try:
        place = Place(from_subject, stream, int(sequence[:20]), int(time[:20]))
    except ValueError:
        return None
    if not (0 < place.sequence <= LAST_SEQUENCE and 0 <= place.time_ns <= LAST_SEQUENCE):
        return None
    target = wire(names.target)
    first = message_ids.of_position(place.stream, place.sequence, place.time_ns)
    retry_id = retry_id_of(first, attempts) + copy_id(route, names.target, target)
    if subject == names.target:
        return place if headers.find(block, schedules.COPY_ID) == retry_id else None
    waits = schedules.is_stored_as(subject, names.schedules, retry_id)
    return place if waits and schedules.wanted(block) == (target, retry_id) else None


def retry_id_of(first: bytes, attempts: bytes) -> bytes:
    """Return the first part of the id of a scheduled retry, given that of the copies of its message."""
    return b"%b:retry%b" % (first, attempts)


def with_origin(block: bytes, origin: Origin, numbering: Numbering) -> bytes:
    """Return the header block of a message that is to wait, given its own block."""
    block = _RENAMED.sub(rb"\n%b\1" % _NAME, headers.without_status(block))
    values = (
        text(origin.subject),
        origin.stream,
        str(origin.sequence),
        str(origin.time_ns),
        str(origin.deliveries),
        str(origin.failed.attempts),
        json.dumps(_state(origin.failed, numbering), separators=(",", ":")),
    )
    lines = [(block.rstrip(b"\r\n") if block else headers.VERSION) + b"\r\n"]
    lines += [headers.line(PREFIX + name, value) for name, value in zip(FIELDS, values, strict=True)]
    return b"%b\r\n" % b"".join(lines)


def without_origin(block: bytes, numbering: Numbering) -> tuple[Origin, bytes] | None:
    """Return the origin of a message that has waited, and its own header block; None if the headers are not valid."""
    found = [headers.find(block, f"{PREFIX}{name}".encode()) for name in FIELDS]
    if None in found:
        return None
    subject, stream, *numbers, state = (value or b"" for value in found)
    try:
        sequence, time_ns, deliveries, attempts = (int(one[:20]) for one in numbers)
    except ValueError:
        return None
    if not (0 < sequence <= LAST_SEQUENCE and 0 <= time_ns <= LAST_SEQUENCE and subject and stream):
        return None
    if not (0 <= deliveries <= LAST_SEQUENCE and 0 <= attempts <= MOST_ATTEMPTS):
        return None
    if not _SUBJECT.fullmatch(subject):
        return None
    failed = Failed(attempts, tried=True, numbering=numbering)
    _restore(failed, state, numbering)
    own = headers.removed(block, _OURS).replace(b"\n" + _NAME, b"\n")
    return Origin(subject, text(stream), sequence, time_ns, deliveries, failed), own


def subject_left(block: bytes) -> bytes:
    """Return the subject that a message without a valid origin seems to have had, `b""` if that is lost as well."""
    found = _ANY_SUBJECT.search(block)
    return found[1] if found is not None and is_valid_subject(text(found[1])) else b""


def _state(failed: Failed, numbering: Numbering) -> Mapping[str, Any]:
    """Return the delivered copies and the choices, by names of destinations that stay the same over reloads."""
    names = [None if name is None else schedules.token(name) for name in numbering.names]
    copies: list[list[Any]] = []
    for copy in sorted(failed.delivered):
        answer, place = divmod(copy, len(names)) if copy >= 0 else (copy, 0)
        copies.append([answer, names[place] if copy >= 0 else ""])
    choices = {str(number): [names[place] for place in chosen] for number, chosen in failed.choices.items()}
    return {"strategy": numbering.strategy, "copies": copies, "choices": choices}


def _restore(failed: Failed, state: bytes, numbering: Numbering) -> None:
    """Add the copies and the choices of `_state` as far as the route still has these destinations."""
    places = {schedules.token(name): place for place, name in enumerate(numbering.names) if name is not None}
    try:
        given = json.loads(state)
        for answer, name in given["copies"]:
            copy = _answer(answer)
            if copy < 0:
                failed.delivered.add(copy)
            elif name in places:
                failed.delivered.add(copy * len(numbering.names) + places[name])
        if given["strategy"] == numbering.strategy:
            for number, chosen in given["choices"].items():
                real = [name for name in chosen if name is not None]  # mirrors got their copy at the first attempt
                if all(name in places for name in real):
                    failed.choices[_answer(int(number))] = [places[name] for name in real]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # written by another client: the route chooses and sends again


def _answer(number: Any) -> int:
    """Return the number of an answer. Raises ValueError for anything else, such as an infinity."""
    if type(number) is not int or abs(number) > MOST_ANSWERS:
        raise ValueError("not the number of an answer")
    return number
