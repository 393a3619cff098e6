"""Determine the outcome of one message of a stream in each route that reads it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from router_trio.errors.quotes import LONGEST_TEXT, excerpt

OUTCOMES = {
    "routed": "routed",
    "different": "routed, and a copy has another payload than the route makes today",
    "overruled": "overruled by another writer",
    "twice": "routed, and a copy is stored twice",
    "missing": "a copy is missing",
    "expired": "a copy is not stored, and limits of its stream can have removed it",
    "dead_lettered": "dead letter",
    "given_up": "given up, without a dead letter",
    "filtered": "filtered",
    "waiting": "waiting",
    "not_of_its_filter": "not of its filter",
    "not_delivered": "never delivered",
    "unknown": "unknown",
}
"""The outcomes of a message in a route, and how each is printed."""

COPIES = {
    "there": "there",
    "different": "other payload",
    "overruled": "later value",
    "missing": "missing",
    "expired": "expired",
    "not_found": "not found",
    "not_stored": "not stored",
    "no_share": "no copy",
    "unknown": "unknown",
}
"""The classes of copies, and how they are printed.

`not_found`: nothing is known to be wrong. `not_stored`: a core publish, which no stream keeps. `no_share`: a mirror,
which gets only a share of the messages. `unknown`: its stream is missing or can't be read. `overruled`: with the later
value of another writer (`last_writer`).
"""

STORED = frozenset({"there", "different", "overruled"})


def shown_time(time_ns: int) -> str:
    """Return a time in nanoseconds since 1970 as text, to the millisecond."""
    time = datetime.fromtimestamp(time_ns // 10**6 / 1000, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a message is stored. `time_ns` is in nanoseconds since 1970."""

    connection: str
    stream: str
    sequence: int
    subject: str
    time_ns: int

    def as_json(self) -> dict[str, Any]:
        """Return the place as data."""
        return {
            "connection": self.connection,
            "stream": self.stream,
            "sequence": self.sequence,
            "subject": self.subject,
            "time": shown_time(self.time_ns),
        }

    def __str__(self) -> str:
        """Return the place as text."""
        place = f"message {self.sequence:,} of stream {self.stream} on {self.connection}"
        return f"{excerpt(self.subject, LONGEST_TEXT)}, {place}, stored {shown_time(self.time_ns)}"


@dataclass(frozen=True, slots=True)
class CopyFound:
    """A copy at a destination, of a class of `COPIES`. `stored` is empty if no stream is known to have it."""

    destination: str
    stored_class: str
    stored: Sequence[Stored] = ()
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the copy as data."""
        return {
            "destination": self.destination,
            "class": self.stored_class,
            "stored": [one.as_json() for one in self.stored],
            "detail": self.detail,
        }

    def lines(self) -> Iterator[str]:
        """Yield the copy as text."""
        for one in self.stored:
            yield f"    {COPIES[self.stored_class]:<13}  {self.destination}: {one}"
        if not self.stored:
            detail = f" ({excerpt(self.detail, LONGEST_TEXT)})" if self.detail else ""
            yield f"    {COPIES[self.stored_class]:<13}  {self.destination}{detail}"


@dataclass(frozen=True, slots=True)
class LetterFound:
    """The dead letter of a message, with the headers that describe why it was given up."""

    stored: Stored
    reason: str
    detail: str
    attempts: str

    def as_json(self) -> dict[str, Any]:
        """Return the dead letter as data."""
        fields = {"reason": self.reason, "detail": self.detail, "attempts": self.attempts}
        return self.stored.as_json() | fields


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the durable of a route has come. All messages up to `floor` are settled."""

    durable: str
    floor: int
    delivered: int
    paused: bool = False
    starts_at: int = 0
    """The first message that it was to deliver; 0 for all."""


@dataclass(slots=True)
class Outcome:
    """The outcome of a message in a route: one of `OUTCOMES`, and why."""

    route: str
    outcome: str
    detail: str = ""
    copies: Sequence[CopyFound] = ()
    letter: LetterFound | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as data."""
        return {
            "name": self.route,
            "outcome": self.outcome,
            "detail": self.detail,
            "copies": [one.as_json() for one in self.copies],
            "dead_letter": None if self.letter is None else self.letter.as_json(),
        }

    def lines(self) -> Iterator[str]:
        """Yield the outcome as text."""
        # The detail of a dead letter is what its headers contain.
        detail = f" ({excerpt(self.detail, LONGEST_TEXT)})" if self.detail else ""
        yield f"route {self.route}: {OUTCOMES[self.outcome]}{detail}"
        if self.letter is not None:
            yield f"    dead letter    {self.letter.stored}"
        for one in self.copies:
            yield from one.lines()


@dataclass(slots=True)
class Whereabouts:
    """A message of a stream, and what became of it in each route that reads the stream.

    `is_gone`: the stream no longer has the message, and copies or dead letters show that it had it.
    """

    stored: Stored
    size: int
    is_gone: bool
    routes: list[Outcome] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return all as data."""
        return {
            **self.stored.as_json(),
            "gone": self.is_gone,
            "routes": [one.as_json() for one in self.routes],
        }

    def lines(self) -> Iterator[str]:
        """Yield all as text."""
        state = "which the stream no longer has" if self.is_gone else f"{self.size:,} bytes"
        yield f"{self.stored}, {state}"
        for one in self.routes:
            yield from one.lines()


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search: one entry for each stream that has the message.

    `notes` are the reasons why other streams have no such message, and `unread` is what could not be read, and why.
    `lacks_permission` is True if a permission to read is missing.
    """

    subject: str
    messages: Sequence[Whereabouts]
    notes: Sequence[str]
    unread: Sequence[str]
    lacks_permission: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return all as data."""
        messages = [one.as_json() for one in self.messages]
        return {"subject": self.subject, "messages": messages, "unread": list(self.unread)}

    def lines(self) -> Iterator[str]:
        """Yield the messages as text."""
        for one in self.messages:
            yield from one.lines()


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about a message in a route that reads it.

    `made_today` is what the route makes of it by its settings of today: `routed`, `filtered` or `given_up`, for this
    `reason`; empty if only a handler knows, or if the message is gone. `progress` may be why it is not known.
    `others` are copies at destinations that are not judged. `unread_letters` is why dead letters could not be read.
    `one_of`: a copy at one of the destinations is enough. `waits` is where the message waits for its next attempt,
    empty if it does not; `unread_retries` is why that could not be read.
    """

    sequence: int
    time_ns: int
    made_today: str
    reason: str
    progress: Progress | str
    copies: Sequence[CopyFound]
    others: Sequence[CopyFound]
    letter: LetterFound | None
    unread_letters: str = ""
    is_gone: bool = False
    one_of: bool = False
    waits: str = ""
    unread_retries: str = ""


def outcome_of(route: str, facts: Facts) -> Outcome:
    """Decide what became of a message in a route that reads it."""
    copies = facts.copies
    stored = [one for one in copies if one.stored_class in STORED]
    if facts.one_of and stored:
        copies = stored
    lacking = [one for one in copies if one.stored_class in ("missing", "expired")]
    name, detail = _decided(facts, copies, stored, lacking)
    if name in ("waiting", "dead_lettered", "unknown", "not_delivered"):
        # Nothing is wrong with a copy that is not made yet, or replaced by a dead letter.
        copies = [CopyFound(one.destination, "not_found") if one in lacking else one for one in copies]
    return Outcome(route, name, detail, [*copies, *facts.others], facts.letter)


def _decided(
    facts: Facts, copies: Sequence[CopyFound], stored: Sequence[CopyFound], lacking: Sequence[CopyFound]
) -> tuple[str, str]:
    if facts.letter is not None:
        why = ": ".join(part for part in (facts.letter.reason, facts.letter.detail) if part)
        return "dead_lettered", why
    unread = [one for one in copies if one.stored_class == "unknown"]
    if stored and not lacking and not unread:
        return _routed([*stored, *facts.others]), ""
    if facts.waits:
        return "waiting", facts.waits
    if facts.is_gone:
        return "unknown", "the message is gone, so what the route makes of it is not known"
    if isinstance(facts.progress, str):
        return "unknown", facts.progress
    if facts.sequence < facts.progress.starts_at:
        return "not_delivered", f"durable {facts.progress.durable} starts at message {facts.progress.starts_at:,}"
    if facts.sequence > facts.progress.floor:
        return "waiting", _why_waiting(facts, facts.progress)
    if facts.made_today == "filtered":
        return "filtered", facts.reason
    if facts.unread_retries:
        return "unknown", f"settled, and the stream of retries can't be read: {facts.unread_retries}"
    if facts.unread_letters and (lacking or facts.made_today == "given_up"):
        return "unknown", f"settled, and dead letters can't be read: {facts.unread_letters}"
    if facts.made_today == "given_up":
        return "given_up", facts.reason
    if any(one.stored_class == "missing" for one in lacking) and not (facts.one_of and unread):
        return "missing", ""
    if unread:
        return "unknown", "settled, and the stream of a copy can't be read"
    if lacking:
        return "expired", ""
    if not facts.made_today:
        return "unknown", "settled; a handler decides whether there are copies, and none is found"
    if any(one.stored_class == "not_found" for one in facts.copies):
        return "unknown", "settled, and no copy is found"
    return _routed(facts.others), ""


def _routed(copies: Sequence[CopyFound]) -> str:
    if any(len(one.stored) > 1 for one in copies):
        return "twice"
    classes = {one.stored_class for one in copies}
    return next((one for one in ("different", "overruled") if one in classes), "routed")


def _why_waiting(facts: Facts, progress: Progress) -> str:
    place = "not delivered yet" if facts.sequence > progress.delivered else "delivered and not known to be acked"
    then = {"filtered": "will be filtered", "given_up": "fails"}.get(facts.made_today)
    parts = [place, *(["the durable is paused"] if progress.paused else [])]
    return ", ".join(parts + ([f"{then}: {facts.reason}"] if then else []))
