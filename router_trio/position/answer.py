"""The position of a consumer in a copy, as data and as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from router_trio.position.decision import Position
from router_trio.position.standing import Standing

MAX_LISTED = 20
"""Messages without a copy that are listed. All are counted."""


@dataclass(slots=True)
class Answer:
    """Where a consumer continues in a stream of a destination, with these filters.

    Of the messages above the ack floor that have no copy, `waiting` are not copied yet, `filtered` get none, and
    `missing` should have one; the first of these are listed in `lost`.
    """

    route: str
    standing: Standing
    connection: str
    stream: str
    filters: Sequence[str]
    position: Position
    others: int = 0
    """Messages from the position on that are not copies of this route, and are delivered as well."""
    waiting: int = 0
    filtered: int = 0
    missing: int = 0
    lost: list[int] = field(default_factory=list)
    from_checkpoint: bool = False
    applied: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """True if every unacked message that should have a copy has one, as far as that is known."""
        return not self.missing

    def as_json(self) -> dict[str, Any]:
        """Return the answer as data."""
        standing, position = self.standing, self.position
        return {
            "route": self.route,
            "consumer": standing.consumer,
            "at": standing.at,
            "checkpoint": self.from_checkpoint,
            "source": {
                "stream": standing.stream,
                "ack_floor": standing.floor,
                "delivered": standing.delivered,
                "unacked": standing.unacked,
            },
            "connection": self.connection,
            "stream": self.stream,
            "filters": list(self.filters),
            "sequence": position.sequence,
            "copies": position.copies,
            "repeats": {
                "least": position.least_acked + position.further,
                "most": position.most_acked + position.further,
                "further_copies": position.further,
            },
            "others": self.others,
            "without_copy": {"waiting": self.waiting, "filtered": self.filtered, "missing": self.missing},
            "missing": self.lost,
            "applied": self.applied,
            "notes": self.notes,
        }

    def lines(self) -> Iterable[str]:
        """Yield the answer as text."""
        standing, position = self.standing, self.position
        origin = f"checkpoint of {standing.at}" if self.from_checkpoint else f"stream {standing.stream}"
        yield (
            f"consumer {standing.consumer}, {origin}: ack floor {standing.floor:,}, delivered up to"
            f" {standing.delivered:,}, {standing.unacked:,} unacked"
        )
        only = f", only {', '.join(self.filters)}" if self.filters else ""
        done = "continues" if self.applied else "would continue"
        yield f"{done} at sequence {position.sequence:,} of stream {self.stream} on {self.connection}{only}"
        yield f"{_counted(position.copies, 'copy', 'copies')} from there on{_acked(position)}"
        if position.further:
            further = _counted(
                position.further, "of these repeats an earlier copy of its", "of these repeat an earlier copy of their"
            )
            yield f"{further} message"
        if self.others:
            others = _counted(
                self.others, "message from there on is not a copy", "messages from there on are not copies"
            )
            yield f"{others} of route {self.route}"
        above = "messages above the ack floor"
        one = "message above the ack floor"
        if self.waiting:
            waiting = _counted(self.waiting, f"{one} is", f"{above} are")
            yield f"{waiting} not copied yet, and will be stored behind the position"
        if self.filtered:
            yield f"{_counted(self.filtered, f'{one} gets', f'{above} get')} no copy from the route"
        if self.missing:
            some = ", ".join(f"{one:,}" for one in self.lost) + (", ..." if self.missing > len(self.lost) else "")
            missing = _counted(self.missing, f"{one} has", f"{above} have")
            yield f"{missing} no copy, and should have one: {some}"
        yield from self.notes


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _acked(position: Position) -> str:
    """Return how many of the copies repeat an acked message, as the end of a sentence; nothing without copies."""
    least, most = position.least_acked, position.most_acked
    if not position.copies:
        return ""
    if not most:
        return "; it repeats no acked message" if position.copies == 1 else "; none of them repeats an acked message"
    if position.copies == 1:
        return f"; it {'repeats' if least else 'may repeat'} an acked message"
    number = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return f"; {number} of them {'repeats' if least == most == 1 else 'repeat'} an acked message"
