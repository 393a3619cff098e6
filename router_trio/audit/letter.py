"""Read the headers of a dead letter, and make the original message of it again. Pure.

Anyone who may publish to the stream of the dead letters can choose these headers. So each is read with bounds, and only
in this module.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from router_trio.errors import SubjectError
from router_trio.errors.quotes import LONGEST_TEXT, excerpt, quoted
from router_trio.nats.jetstream.api import StoredMessage, nanoseconds
from router_trio.protocol import framing, headers, message_ids
from router_trio.protocol.control_headers import ControlHeaders
from router_trio.protocol.framing import LAST_SEQUENCE
from router_trio.routing.dead_letters import FIELDS, ID_PART, OWN_LINES, PREFIX
from router_trio.routing.rehearsal import Arrived, Copy, Place
from router_trio.subjects.patterns import WILDCARDS, matches, reserved_namespace, validate_subject

REDRIVEN = "Router-Redriven"
"""The header that counts how often a message was published on its original subject again."""

MAX_FIELD = 4096
"""Characters that are read of a header, the maximum length of a subject."""

_CONTROL = ControlHeaders()
_NUMBER = re.compile(r"[0-9]{1,20}")
_LETTER_ID = re.compile(rb"(.+)" + ID_PART + rb":[A-Za-z0-9_-]{16}", re.DOTALL)
_REDRIVEN_ID = re.compile(rb"redriven:.+:[0-9]{1,20}:([0-9]{1,20}):[A-Za-z0-9_-]{32}(?::[A-Za-z0-9_-]{16})?", re.DOTALL)
_IDENTITY = re.compile(rb"[0-9]{1,20}|c[0-9a-f]{8}")
"""The end of the identity of a message: when it was stored, or its content (see `protocol.copies`)."""
_COPY_ID = re.compile(rb"(.+):([0-9]{1,20}):(" + _IDENTITY.pattern + rb"):[A-Za-z0-9_-]{16}", re.DOTALL)
_BREAK = re.compile(rb"[\r\n]")
_DIGEST_BYTES = 24


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter of a route, as stored in its stream. A missing or unreadable field is `""` or None."""

    message: StoredMessage
    reason: str
    detail: str
    attempts: int | None
    origin: str
    """The subject on which the route received the message."""
    stream: str
    """The source stream of the message; empty for a core subscription."""
    source_sequence: int | None
    """The sequence of the message in its source stream."""
    time: str
    """The time at which the message was given up."""
    wrong: str | None
    """Why these headers can't have been written by a router; None if they may have been."""

    @property
    def sequence(self) -> int:
        """The sequence in the stream of the dead letters."""
        return self.message.sequence

    @property
    def from_stream(self) -> bool:
        """True if the source is a stream, False if it is a core subscription."""
        return bool(self.stream)

    @property
    def first_id(self) -> bytes | None:
        """The common prefix of the ids of all copies of the message; None if the id of the dead letter lacks it.

        The id of the dead letter begins with the same prefix: see `DeadLetters.store`.
        """
        found = _LETTER_ID.fullmatch(message_ids.find(self.message.headers))
        if found is None or (self.from_stream and not _IDENTITY.fullmatch(self._behind_place(found[1]))):
            return None
        return found[1]

    @property
    def source_time(self) -> int | None:
        """The time at which the source stream stored the message, in nanoseconds since 1970.

        It is part of the id of the dead letter; None if it is not, as of a message that a server had copied.
        """
        time = self._behind_place(self.first_id or b"")
        return int(time) if time.isdigit() else None

    def _behind_place(self, first: bytes) -> bytes:
        """Return what follows the place of the message in the first part of an id; `b""` if another place is there."""
        place = framing.wire(f"{self.stream}:{self.source_sequence}:")
        return first[len(place) :] if self.from_stream and first.startswith(place) else b""

    @property
    def digest(self) -> bytes:
        """A digest of subject, headers and payload, 32 characters long."""
        message = self.message
        digest = blake2b(digest_size=_DIGEST_BYTES)
        for part in (framing.wire(message.subject), message.headers, message.payload):
            digest.update(b"%d:" % len(part))
            digest.update(part)
        return urlsafe_b64encode(digest.digest())

    def own_id(self, stream: str) -> bytes:
        """Return an id that is unique to this dead letter, even if the stream was deleted and created again."""
        return b"redriven:%b:%d:%d:%b" % (framing.wire(stream), self.sequence, self.message.time_ns, self.digest)

    def fields(self) -> dict[str, Any]:
        """Return the fields that `list --json` prints."""
        return {
            "sequence": self.sequence,
            "time": self.time,
            "reason": _excerpt(self.reason, LONGEST_TEXT),
            "detail": _excerpt(self.detail, LONGEST_TEXT),
            "attempts": self.attempts,
            "subject": _excerpt(self.origin, MAX_FIELD),
            "size": len(self.message.payload),
        }


def read_letter(message: StoredMessage, route: str) -> Letter | None:
    """Return a message as a dead letter of `route`; None if it is not one. Does not raise."""
    found: dict[str, str] = {}
    twice: str | None = None
    known = {PREFIX + field: field for field in FIELDS}
    for name, value in headers.decode(message.headers).pairs():
        field = known.get(name)
        if field is None:
            continue
        if field in found:
            twice = field
        else:
            found[field] = value[:MAX_FIELD]
    if found.get("Route") != route:
        return None
    time = found.get("Time", "")
    attempts = _number(found.get("Attempts", ""))
    wrong = None
    if twice is not None:
        wrong = f"it has {PREFIX}{twice} twice"
    elif not found.get("Reason"):
        wrong = f"it has no {PREFIX}Reason"
    elif not attempts:
        wrong = f"its {PREFIX}Attempts is not a number"
    elif not nanoseconds(time):
        wrong = f"its {PREFIX}Time is not a time"
    return Letter(
        message,
        found.get("Reason", ""),
        found.get("Detail", ""),
        attempts,
        found.get("Subject", ""),
        found.get("Stream", ""),
        _number(found.get("Sequence", "")),
        time if nanoseconds(time) else format_time(message.time_ns),
        wrong,
    )


def foreign(letter: Letter, stream: str | None) -> str | None:
    """Return why a route with this source stream, if any, can't have written a dead letter; None if it may have."""
    if letter.wrong is not None:
        return letter.wrong
    if stream is None:
        source = f"its source is stream {quoted(letter.stream)}, but the route reads no stream"
        return source if letter.stream else None
    if letter.stream != stream:
        source = f"stream {quoted(letter.stream)}" if letter.stream else "not a stream"
        return f"its source is {source}, but the route reads stream {stream}"
    if not letter.source_sequence:
        return f"its {PREFIX}Sequence is not a number"
    if letter.first_id is None and _LETTER_ID.fullmatch(message_ids.find(letter.message.headers)):
        return f"its Nats-Msg-Id does not belong to message {letter.source_sequence} of stream {stream}"
    return None


def is_letter_of(stored: StoredMessage, route: str, stream: str, message: StoredMessage, *, is_gone: bool) -> bool:
    """Return True if a stored message is the dead letter of a `message` of the source stream of a route.

    Asks what `redrive` asks, and that it has the subject and the payload of the message: anyone who may publish to the
    stream of the dead letters can write one, and only one with the payload keeps the message. Of one that is gone,
    the payload is not known.
    """
    letter = read_letter(stored, route)
    if letter is None or foreign(letter, stream) is not None:
        return False
    if letter.first_id != message_ids.of_position(framing.wire(stream), message.sequence, message.time_ns):
        return False
    subject = headers.find(stored.headers, f"{PREFIX}Subject".encode())
    return subject == framing.wire(message.subject) and (is_gone or stored.payload == message.payload)


def format_time(time_ns: int) -> str:
    """Return a time in nanoseconds since 1970 as an ISO 8601 time in UTC."""
    at = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).replace(microsecond=time_ns // 1_000_000 % 1000 * 1000)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def why_not(letter: Letter, sources: Sequence[str], taken: Sequence[str] | None, *reserved: str) -> str | None:
    """Return why the route can't have received the message of a dead letter; None if it may have.

    Anyone who may publish to the stream of the dead letters can choose this subject, and the message is published with
    the permissions of the router. So the route must read the subject: it must match one of the patterns `sources`, and
    one of the subjects of the source stream. `taken` has those; None if the source is not a stream, or if the stream
    also contains messages of other streams.
    """
    if not letter.origin:
        return f"it has no header {PREFIX}Subject"
    try:
        validate_subject(letter.origin)
    except SubjectError as error:
        return str(error)
    named = quoted(letter.origin)
    source = next((pattern for pattern in sources if matches(pattern, letter.origin)), None)
    if source is None:
        return f"the route does not read its subject {named} (it reads {', '.join(sources)})"
    if taken is not None and not any(matches(subject, letter.origin) for subject in taken):
        return f"the source stream does not take its subject {named} (it takes {excerpt(', '.join(taken) or 'none')})"
    tokens = source.split(".")
    literal = next((index for index, token in enumerate(tokens) if token in WILDCARDS), len(tokens))
    namespace = reserved_namespace(letter.origin, tokens[:literal], *reserved)
    return None if namespace is None else f"its subject {named} is below {namespace}, reserved for NATS itself"


def as_received(letter: Letter, route_stream: str | None, stream: str) -> Arrived:
    """Return the message of a dead letter as its route received it, so that its copies get the same ids again.

    `stream` has the dead letters. Control headers are missing, since no dead letter has them.
    """
    message = letter.message
    sender = _BREAK.split(headers.find(message.headers, f"{PREFIX}Message-Id".encode()) or b"")[0]
    block = headers.removed(message.headers, OWN_LINES)
    if sender:
        block = message_ids.replace(block, sender)
    elif block:
        block = message_ids.remove(block)
        block = b"" if block == headers.VERSION + headers.END else block
    place = None
    if route_stream is not None:
        place = Place(route_stream, letter.source_sequence or 0, letter.source_time or message.time_ns)
    return Arrived(letter.origin, block, message.payload, letter.first_id or letter.own_id(stream), place)


def for_source(letter: Letter, stream: str, connection: str, *, jetstream: bool) -> Copy:
    """Return the message to publish on the original subject of a dead letter.

    It has the original headers, the headers of the dead letter about the failure, a count, and an id that is the same
    each time, so that a stream stores it only once. `stream` has the dead letters.
    """
    block = letter.message.headers
    before = headers.find_number(block, REDRIVEN.encode()) or 0
    block = _CONTROL.removed(block)
    block = headers.replace(block, REDRIVEN.encode(), b"%d" % (before + 1))
    block = message_ids.replace(block, letter.own_id(stream))
    return Copy(connection, letter.origin, block, letter.message.payload, jetstream)


def is_newer(last: StoredMessage, letter: Letter, message_id: bytes | None, *, at_source: bool) -> bool:
    """Return True if the last message on a subject is newer than the message of this dead letter.

    `message_id` is the id of the message that would replace `last`. `at_source` is True if `last` is in the source
    stream of the dead letter. If the id of `last` identifies the message that it was made of, that message is compared.
    """
    its_id = message_ids.find(last.headers)
    if its_id == message_id:
        return False
    redriven = _REDRIVEN_ID.fullmatch(its_id)
    if redriven is not None:
        return int(redriven[1]) > letter.message.time_ns
    copied = _COPY_ID.fullmatch(its_id)
    ours = letter.source_time
    if copied is not None and letter.from_stream and copied[1] == framing.wire(letter.stream):
        if ours is not None and copied[3].isdigit():
            return int(copied[3]) > ours
        return int(copied[2]) > (letter.source_sequence or 0)
    if ours is None and at_source and letter.source_sequence is not None and last.sequence > letter.source_sequence:
        return True
    return last.time_ns > (letter.message.time_ns if ours is None else ours)


def _number(text: str) -> int | None:
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if number <= LAST_SEQUENCE else None


def _excerpt(text: str, limit: int) -> str:
    """Return the first `limit` characters of a text, with invalid UTF-8 replaced."""
    return text[:limit].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
