"""The result of an audit: each message or copy in one class, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CLASSES = {
    "there": "the copy is stored once, with the payload that the route makes of the message today",
    "missing": "the copy is not stored, and nothing explains that",
    "twice": "the copy is stored several times",
    "different": "the copy is stored with another payload",
    "extra": "the copy of a bucket has a key that the bucket of the route no longer has",
    "expired": "the copy is not stored, and limits of its stream can have removed it",
    "overruled": "the later value of another writer is stored instead (last_writer)",
    "unknown": "no copy is found, and it is not known whether there should be one",
    "filtered": "the route sends the message nowhere",
    "dead_lettered": "the message has no copy, but a dead letter",
    "given_up": "the message fails in the route, and has no dead letter",
    "pending": "the message is above the ack floor of the route's durable, or waits for its next attempt",
}
"""The classes of messages and copies."""

WRONG = ("missing", "twice", "different", "extra")
"""The classes of findings."""

MAX_FINDINGS = 10_000
"""Findings that a report lists. All are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A copy that is wrong. `stored_class` is one of `WRONG`.

    `subject` is that of the message, but for an `extra` key, whose message is gone, that of the copy.
    """

    sequence: int
    subject: str
    stored_class: str
    destination: str
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Return the finding as data."""
        return {
            "sequence": self.sequence,
            "subject": self.subject,
            "class": self.stored_class,
            "destination": self.destination,
            "detail": self.detail,
        }


@dataclass(slots=True)
class Report:
    """The result for the messages `first` to `last` of the source of a route.

    `gone` of these sequences are no longer in the stream, `messages` of the others belong to the route. `counts` has
    every class; without `extra`, they add up to `messages` if the route has one destination, else to its copies and the
    messages without copies.
    """

    route: str
    first: int
    last: int
    gone: int = 0
    messages: int = 0
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CLASSES, 0)))
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Notes on destinations that were not judged, and why."""

    @property
    def clean(self) -> bool:
        """True if nothing is wrong."""
        return not any(self.counts[one] for one in WRONG)

    @property
    def unlisted(self) -> int:
        """The number of findings that are not listed."""
        return sum(self.counts[one] for one in WRONG) - len(self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the report as data."""
        return {
            "route": self.route,
            "from": self.first,
            "to": self.last,
            "gone": self.gone,
            "messages": self.messages,
            "counts": dict(self.counts),
            "findings": [finding.as_json() for finding in self.findings],
        }

    def lines(self) -> Iterable[str]:
        """Yield the report as text."""
        if self.first > self.last:
            yield f"route {self.route}: the range has no messages (from {self.first:,} to {self.last:,})"
        else:
            span = f"messages {self.first:,} to {self.last:,}"
            yield f"route {self.route}, {span}: {self.messages:,} of the route, {self.gone:,} gone"
        for name, count in self.counts.items():
            if count:
                yield f"{count:>12,}  {name:<13}  {CLASSES[name]}"
        yield from self.notes
        for one in self.findings:
            detail = f" ({one.detail})" if one.detail else ""
            yield f"{one.stored_class} {one.sequence} {one.subject} -> {one.destination}{detail}"
        if self.unlisted > 0:
            yield f"and {self.unlisted:,} more; a shorter range (--from, --to) lists them"
