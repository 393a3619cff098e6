"""The demo's verdict: compare what was published with what arrived, and check that the ledgers agree. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_trio.message import FATES

_ROUTES = {
    "ARCHIVE": ("orders", "stream to stream"),
    "READINGS": ("readings", "core to core"),
    "AUDIT": ("payments", "core to core, by a handler"),
}
_CONFIRMED = ("fenced", "acked")


@dataclass(frozen=True, slots=True)
class Tally:
    """The result of comparing numbered messages. `strange` arrived but were never sent, or on another subject."""

    sent: int
    stored: int
    missing: int
    repeated: int
    disordered: int
    strange: int

    @property
    def exact(self) -> bool:
        """Return True if each message arrived once and in the order of its subject."""
        return not (self.missing or self.repeated or self.disordered or self.strange)

    @property
    def complete(self) -> bool:
        """Return True if each message arrived, be it more than once, and in order."""
        return not (self.missing or self.disordered or self.strange)

    def __str__(self) -> str:
        if self.exact:
            return f"{self.stored} of {self.sent} arrived, each once and in order"
        wrong = {
            "missing": self.missing,
            "twice or more": self.repeated,
            "out of order": self.disordered,
            "never sent": self.strange,
        }
        return f"{self.stored} arrived of {self.sent}: " + ", ".join(f"{n} {what}" for what, n in wrong.items() if n)


def tally(sent: Mapping[str, Sequence[int]], stored: Iterable[tuple[str, int]]) -> Tally:
    """Compare numbers by subject. `sent` has the numbers of each subject in order, `stored` what came, in order.

    A number that came again is counted as repeated, and its first time alone says whether it came in order.
    """
    expected = {(subject, number) for subject, numbers in sent.items() for number in numbers}
    came: Counter[tuple[str, int]] = Counter()
    latest: dict[str, int] = {}
    disordered = 0
    for subject, number in stored:
        came[subject, number] += 1
        if came[subject, number] > 1:
            continue
        if number < latest.get(subject, number):
            disordered += 1
        latest[subject] = max(number, latest.get(subject, number))
    return Tally(
        sent=len(expected),
        stored=came.total(),
        missing=len(expected - came.keys()),
        repeated=came.total() - len(came),
        disordered=disordered,
        strange=len(came.keys() - expected),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The lines to print, and whether nothing was lost."""

    lines: tuple[str, ...]
    good: bool


def judge(
    published: Mapping[str, int],
    fates: Mapping[str, int],
    refused: Mapping[str, int],
    tallies: Mapping[str, Tally],
    ledger: Mapping[str, Mapping[str, Any]],
    route_ledgers: Mapping[str, Mapping[str, Any]],
) -> Verdict:
    """Weigh what publishers were told (`fates`, `refused`), what streams hold (`tallies`) and the ledgers.

    From stream to stream each message must have arrived exactly once and in order. A core message must have arrived;
    what was unconfirmed when the server died is sent again and may arrive twice.
    """
    faults = [f"{count} publishes were refused: {reason}" for reason, count in refused.items()]
    faults += [f"{count} publishes ended as {fate}" for fate, count in fates.items() if fate not in _CONFIRMED]
    without_fate = sum(published.values()) - sum(fates.values()) - sum(refused.values())
    if without_fate:
        faults.append(f"{without_fate} publishes have no fate")
    lines = ["", f"published: {sum(published.values())}, confirmed: {sum(fates.get(fate, 0) for fate in _CONFIRMED)}"]
    for stream, found in tallies.items():
        route, kind = _ROUTES[stream]
        lines.append(f"  {route + ' (' + kind + ')':40} {found}")
        exactly_once = stream == "ARCHIVE"
        if not (found.exact if exactly_once else found.complete):
            faults.append(f"route {route}: {found}")
    lines += ["", *ledger_lines(ledger), "", *route_ledger_lines(route_ledgers), ""]
    for connection, book in ledger.items():
        rest = book["accepted"] - book["pending"] - book["in_flight"] - sum(book["settled"].values())
        if rest:
            faults.append(f"the ledger of {connection} is off by {rest}")
        if book["pending"] or book["in_flight"]:
            faults.append(f"{connection} has {book['pending']} pending and {book['in_flight']} in flight")
    for route, book in route_ledgers.items():
        if rest := book["received"] - book["in_hand"] - sum(book["settled"].values()):
            faults.append(f"the ledger of the route {route} is off by {rest}")
        if book["in_hand"]:
            faults.append(f"the route {route} has {book['in_hand']} in hand")
    if faults:
        return Verdict((*lines, *(f"LOST: {fault}" for fault in faults)), False)
    return Verdict((*lines, "Nothing was lost."), True)


def ledger_lines(ledger: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The ledger as a table."""
    heads = ["accepted", "pending", "in_flight", *FATES]
    width = max(len("connection"), *map(len, ledger))
    lines = ["  ".join(["connection".ljust(width), *heads])]
    for connection, book in ledger.items():
        numbers = [book["accepted"], book["pending"], book["in_flight"]]
        numbers += [book["settled"].get(fate, 0) for fate in FATES]
        cells = [f"{number:>{len(head)}}" for number, head in zip(numbers, heads, strict=True)]
        lines.append("  ".join([connection.ljust(width), *cells]))
    return lines


def route_ledger_lines(ledgers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each route: its sum, with the fates that were met."""
    width = max(map(len, ledgers), default=0)
    lines = []
    for route, book in ledgers.items():
        fates = [f"{count} {fate.replace('_', ' ')}" for fate, count in book["settled"].items() if count]
        parts = " + ".join([f"{book['in_hand']} in hand", *fates])
        lines.append(f"{route.ljust(width)}  {book['received']} received = {parts}")
    return lines
