"""Compare the published messages of the demo with the stored ones, and check the ledgers. Pure."""

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
    """The result of a comparison of numbered messages.

    `unexpected` counts stored messages that were never published, or on another subject.
    """

    sent: int
    stored: int
    missing: int
    repeated: int
    out_of_order: int
    unexpected: int

    @property
    def exact(self) -> bool:
        """True if each message arrived exactly once, and in the order of its subject."""
        return not (self.missing or self.repeated or self.out_of_order or self.unexpected)

    @property
    def complete(self) -> bool:
        """True if each message arrived at least once, and in the order of its subject."""
        return not (self.missing or self.out_of_order or self.unexpected)

    def __str__(self) -> str:
        if self.exact:
            return f"{self.stored} of {self.sent} arrived, each once and in order"
        faults = {
            "missing": self.missing,
            "twice or more": self.repeated,
            "out of order": self.out_of_order,
            "never published": self.unexpected,
        }
        return f"{self.stored} arrived of {self.sent}: " + ", ".join(
            f"{count} {fault}" for fault, count in faults.items() if count
        )


def tally(sent: Mapping[str, Sequence[int]], stored: Iterable[tuple[str, int]]) -> Tally:
    """Compare the numbers of messages. `sent` has those of each subject in order, `stored` the stored ones in order.

    A number that was stored more than once is counted as repeated; only its first position is checked for order.
    """
    expected = {(subject, number) for subject, numbers in sent.items() for number in numbers}
    arrived: Counter[tuple[str, int]] = Counter()
    latest: dict[str, int] = {}
    out_of_order = 0
    for subject, number in stored:
        arrived[subject, number] += 1
        if arrived[subject, number] > 1:
            continue
        if number < latest.get(subject, number):
            out_of_order += 1
        latest[subject] = max(number, latest.get(subject, number))
    return Tally(
        sent=len(expected),
        stored=arrived.total(),
        missing=len(expected - arrived.keys()),
        repeated=arrived.total() - len(arrived),
        out_of_order=out_of_order,
        unexpected=len(arrived.keys() - expected),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The lines to print, and whether the demo `passed`: no message was lost."""

    lines: tuple[str, ...]
    passed: bool


def judge(
    published: Mapping[str, int],
    fates: Mapping[str, int],
    refused: Mapping[str, int],
    tallies: Mapping[str, Tally],
    ledger: Mapping[str, Mapping[str, Any]],
    route_ledgers: Mapping[str, Mapping[str, Any]],
) -> Verdict:
    """Check the results of the publishes (`fates`, `refused`), the stored messages (`tallies`) and the ledgers.

    From stream to stream, each message must arrive exactly once and in order. A core message must arrive at least once:
    one that was unconfirmed when the server died is sent again, and may arrive twice.
    """
    faults = [f"{count} publishes were refused: {reason}" for reason, count in refused.items()]
    faults += [f"{count} publishes were settled as {fate}" for fate, count in fates.items() if fate not in _CONFIRMED]
    unsettled = sum(published.values()) - sum(fates.values()) - sum(refused.values())
    if unsettled:
        faults.append(f"{unsettled} publishes were not settled")
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
    """Return the ledger of the connections as a table."""
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
    """Return a line for each route: the messages that it received, by their fates."""
    width = max(map(len, ledgers), default=0)
    lines = []
    for route, book in ledgers.items():
        fates = [f"{count} {fate.replace('_', ' ')}" for fate, count in book["settled"].items() if count]
        parts = " + ".join([f"{book['in_hand']} in hand", *fates])
        lines.append(f"{route.ljust(width)}  {book['received']} received = {parts}")
    return lines
