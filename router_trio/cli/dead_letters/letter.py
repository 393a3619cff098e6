"""A dead letter: what its headers say, whatever they hold, and the message that it is made into again. Pure.

Anyone who may publish to the stream of the dead letters chooses these headers. So each is read within bounds here, and
nowhere else.
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
"""How often a message was published on its old subject again as a dead letter."""

MAX_FIELD = 4096
"""Characters of a header that are read: as many as a subject may have."""

_CONTROL = ControlHeaders()
_NUMBER = re.compile(r"[0-9]{1,20}")
_LETTER_ID = re.compile(rb"(.+)" + ID_PART + rb":[A-Za-z0-9_-]{16}", re.DOTALL)
_REDRIVEN_ID = re.compile(rb"redriven:.+:[0-9]{1,20}:([0-9]{1,20}):[A-Za-z0-9_-]{32}(?::[A-Za-z0-9_-]{16})?", re.DOTALL)
_COPY_ID = re.compile(rb"(.+):([0-9]{1,20}):([0-9]{1,20}):[A-Za-z0-9_-]{16}", re.DOTALL)
_BREAK = re.compile(rb"[\r\n]")
_DIGEST_BYTES = 24


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter of a route, as its stream holds it. What is missing or can't be read is `""` or None."""

    message: StoredMessage
    reason: str
    detail: str
    attempts: int | None
    origin: str
    """The subject on which the message came to the route."""
    stream: str
    """The stream that it came from; empty for a core subscription."""
    source_sequence: int | None
    """Its sequence there."""
    time: str
    """When it was given up."""
    wrong: str | None
    """Why no router wrote these headers, as far as can be seen; None if one may have."""

    @property
    def sequence(self) -> int:
        """Its sequence among the dead letters."""
        return self.message.sequence

    @property
    def from_stream(self) -> bool:
        """True if the message came from a stream, False from a core subscription."""
        return bool(self.stream)

    @property
    def first_id(self) -> bytes | None:
        """Return what the ids of copies of the message begin with; None if the letter's own id does not say.

        The letter was stored under an id that begins with the same: see `DeadLetters.store`.
        """
        found = _LETTER_ID.fullmatch(message_ids.find(self.message.headers))
        if found is None or (self.from_stream and self.source_time is None):
            return None
        return found[1]

    @property
    def source_time(self) -> int | None:
        """When the message was stored in its stream, in nanoseconds since 1970, if the letter's own id says so."""
        found = _LETTER_ID.fullmatch(message_ids.find(self.message.headers))
        place = framing.wire(f"{self.stream}:{self.source_sequence}:")
        if found is None or not self.from_stream or not found[1].startswith(place):
            return None
        time = found[1][len(place) :]
        return int(time) if time.isdigit() and len(time) <= 20 else None

    @property
    def digest(self) -> bytes:
        """Thirty-two characters that no other letter has."""
        message = self.message
        digest = blake2b(digest_size=_DIGEST_BYTES)
        for part in (framing.wire(message.subject), message.headers, message.payload):
            digest.update(b"%d:" % len(part))
            digest.update(part)
        return urlsafe_b64encode(digest.digest())

    def own_id(self, stream: str) -> bytes:
        """Return an id that no other letter gives, whatever streams had that name and that sequence before."""
        return b"redriven:%b:%d:%d:%b" % (framing.wire(stream), self.sequence, self.message.time_ns, self.digest)

    def fields(self) -> dict[str, Any]:
        """Return what a list says of it."""
        return {
            "sequence": self.sequence,
            "time": self.time,
            "reason": _plain(self.reason, LONGEST_TEXT),
            "detail": _plain(self.detail, LONGEST_TEXT),
            "attempts": self.attempts,
            "subject": _plain(self.origin, MAX_FIELD),
            "size": len(self.message.payload),
        }


def read_letter(message: StoredMessage, route: str) -> Letter | None:
    """Return a message as the dead letter of a route; None if it is none of this route. Does not raise."""
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
        time if nanoseconds(time) else written(message.time_ns),
        wrong,
    )


def foreign(letter: Letter, stream: str | None) -> str | None:
    """Return why a route that reads this stream, or none, can't have written a dead letter; None if it may have."""
    if letter.wrong is not None:
        return letter.wrong
    if stream is None:
        return f"it came from the stream {quoted(letter.stream)}, and the route reads none" if letter.stream else None
    if letter.stream != stream:
        came = f"from the stream {quoted(letter.stream)}" if letter.stream else "from no stream"
        return f"it came {came}, and the route reads {stream}"
    if not letter.source_sequence:
        return f"its {PREFIX}Sequence is not a number"
    if letter.source_time is None and _LETTER_ID.fullmatch(message_ids.find(letter.message.headers)):
        return f"its Nats-Msg-Id is not that of message {letter.source_sequence} of {stream}"
    return None


def written(time_ns: int) -> str:
    """Return a time in nanoseconds since 1970 as it is written, in UTC."""
    at = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).replace(microsecond=time_ns // 1_000_000 % 1000 * 1000)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def why_not(letter: Letter, sources: Sequence[str], taken: Sequence[str] | None, *reserved: str) -> str | None:
    """Return why the message of a dead letter can't be one that the route received, or None.

    Anyone who may publish to the stream of the dead letters chooses its subject, and what it becomes is published with
    the rights of the router. So it must be a subject that the route reads: one of the patterns `sources`, and one that
    its stream takes. `taken` are the subjects of that stream, None if there is none or it has messages of others.
    """
    if not letter.origin:
        return f"it has no header {PREFIX}Subject"
    try:
        validate_subject(letter.origin)
    except SubjectError as error:
        return str(error)
    named = quoted(letter.origin)
    source = next((one for one in sources if matches(one, letter.origin)), None)
    if source is None:
        return f"its subject {named} is none that the route reads ({', '.join(sources)})"
    if taken is not None and not any(matches(one, letter.origin) for one in taken):
        return f"its subject {named} is none that the stream takes which the route reads ({excerpt(', '.join(taken))})"
    tokens = source.split(".")
    literal = next((index for index, token in enumerate(tokens) if token in WILDCARDS), len(tokens))
    namespace = reserved_namespace(letter.origin, tokens[:literal], *reserved)
    return None if namespace is None else f"its subject {named} is below {namespace}, reserved for NATS itself"


def as_received(letter: Letter, route_stream: str | None, stream: str) -> Arrived:
    """Return the message of a dead letter as its route received it: the copies get the ids that they had or would have.

    `stream` has the dead letters. Control headers are missing, which no dead letter carries.
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
    """Return what is published on the old subject of a dead letter.

    It has the headers that the message came with, what the dead letter says of its failure, a count, and an id that is
    the same each time: so a stream stores it once, however often it is sent. `stream` has the dead letters.
    """
    block = letter.message.headers
    before = headers.find_number(block, REDRIVEN.encode()) or 0
    block = _CONTROL.removed(block)
    block = headers.replace(block, REDRIVEN.encode(), b"%d" % (before + 1))
    block = message_ids.replace(block, letter.own_id(stream))
    return Copy(connection, letter.origin, block, letter.message.payload, jetstream)


def is_newer(last: StoredMessage, letter: Letter, message_id: bytes | None, *, at_source: bool) -> bool:
    """Return True if the last message on a subject is newer than the message of this letter.

    `message_id` is the id of what would replace it, `at_source` says that it is of the stream that the letter names.
    Where its own id tells which message it was made of, that one counts.
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
        if ours is not None:
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


def _plain(text: str, most: int) -> str:
    """Return the beginning of a text without what is no UTF-8."""
    return text[:most].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
