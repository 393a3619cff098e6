"""Compare two readings of a router's `/status`, for `top`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

LOSSES = ("lost", "given_up")
"""The fates of messages that no destination and no dead letter has."""

DEAD = ("dead_lettered",)

_UNITS = "kMGTP"

UNBALANCED = "its ledger does not add up; please report it"


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """A connection. Rates are in operations a second; None for a first reading."""

    name: str
    state: str
    server: str | None
    pending: int
    in_flight: int
    accepted_rate: float | None
    settled_rate: float | None
    ledger: Mapping[str, Any]
    trouble: str | None

    @property
    def severity(self) -> int:
        """How unwell it is: 0 if well, 2 if it is not connected or its ledger does not add up."""
        return 0 if self.trouble is None else 2


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route. Rates are in messages a second; None for a first reading.

    `lag` is the number of messages that it is behind and the age of the oldest in seconds, None if not known.
    `trouble` is why it does not deliver, `worry` what else may need attention.
    """

    name: str
    state: str
    received_rate: float | None
    settled_rate: float | None
    failed_rate: float | None
    lost_rate: float | None
    dead_rate: float | None
    in_hand: int
    lag: tuple[int, float] | None
    retrying: int
    ledger: Mapping[str, Any]
    last_failure: Mapping[str, Any] | None
    failed_ago: float | None
    trouble: str | None
    worry: str | None

    @property
    def severity(self) -> int:
        """How unwell it is: 2 if it does not deliver, 1 if messages fail or are retried, 0 if it is well."""
        if self.trouble is not None:
            return 2
        return 0 if self.worry is None else 1


@dataclass(frozen=True, slots=True)
class Overview:
    """A router, with its connections and routes: first what is not well, then by rate."""

    name: str
    version: str
    uptime: float
    workers: Mapping[str, Any]
    connections: list[ConnectionRow]
    routes: list[RouteRow]
    is_ready: bool
    """True if `/readyz` answers 200."""
    reasons: list[str]
    """The reasons of `/readyz` that are not those of a connection or a route here, such as a worker's."""

    @property
    def unwell(self) -> int:
        """The number of routes that do not deliver, or whose messages fail."""
        return sum(1 for route in self.routes if route.severity)

    @property
    def is_well(self) -> bool:
        """True if it is ready, and nothing is wrong with a connection or a route."""
        severities = [one.severity for one in self.connections] + [one.severity for one in self.routes]
        return self.is_ready and not self.reasons and not any(severities)


def overview(
    status: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    seconds: float,
    now: datetime,
    unready: Iterable[Mapping[str, str]] = (),
) -> Overview:
    """Return what to show of a reading, `seconds` after the reading `before`. `now` is the time of the reading.

    `unready` are the reasons of `/readyz`. Some are not in `/status`, such as that of a handler that does not return.
    """
    reasons: dict[tuple[str, str], str] = {}
    others: list[str] = []
    is_ready = True
    for one in unready:
        is_ready = False
        kind, name = next(((kind, name) for kind, name in one.items() if kind != "reason"), ("router", status["name"]))
        if name in status.get(f"{kind}s", ()) and kind != "worker":
            before_that = reasons.get((kind, name))
            reasons[kind, name] = one["reason"] if before_that is None else f"{before_that}; {one['reason']}"
        else:
            others.append(f"{kind} {name}: {one['reason']}")
    then = {} if before is None or before["uptime_seconds"] > status["uptime_seconds"] else before
    connections = [
        _connection(
            name,
            one,
            status["ledger"][name],
            then.get("ledger", {}).get(name),
            seconds,
            reasons.get(("connection", name)),
        )
        for name, one in status["connections"].items()
    ]
    routes = [
        _route(name, one, then.get("routes", {}).get(name), seconds, now, reasons.get(("route", name)))
        for name, one in status["routes"].items()
    ]
    connections.sort(key=lambda one: (-one.severity, one.name))
    routes.sort(key=lambda one: (-one.severity, -(one.received_rate or 0.0), -one.ledger["received"], one.name))
    return Overview(
        status["name"],
        status["version"],
        status["uptime_seconds"],
        status.get("workers", {}),
        connections,
        routes,
        is_ready,
        others,
    )


def _connection(
    name: str,
    one: Mapping[str, Any],
    ledger: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    seconds: float,
    unready: str | None,
) -> ConnectionRow:
    settled = sum(ledger["settled"].values())
    trouble = unready
    if one["state"] != "connected":
        trouble = one["last_error"] or one["state"]
    elif ledger["accepted"] != ledger["pending"] + ledger["in_flight"] + settled:
        trouble = UNBALANCED
    return ConnectionRow(
        name,
        one["state"],
        one["server"],
        one["pending"],
        one["in_flight"],
        _rate(ledger["accepted"], None if before is None else before["accepted"], seconds),
        _rate(settled, None if before is None else sum(before["settled"].values()), seconds),
        ledger,
        trouble,
    )


def _route(
    name: str,
    one: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    seconds: float,
    now: datetime,
    unready: str | None,
) -> RouteRow:
    ledger = one["ledger"]
    settled = ledger["settled"]
    earlier = None if before is None else before["ledger"]

    def rate_of(fates: tuple[str, ...]) -> float | None:
        was = None if earlier is None else sum(earlier["settled"].get(fate, 0) for fate in fates)
        return _rate(sum(settled.get(fate, 0) for fate in fates), was, seconds)

    received = _rate(ledger["received"], None if earlier is None else earlier["received"], seconds)
    failed = _rate(one["failed"], None if before is None else before["failed"], seconds)
    lost, dead = rate_of(LOSSES), rate_of(DEAD)
    behind, last = one.get("behind"), one.get("last_failure")
    retrying = one.get("retrying", {"count": 0})["count"]
    trouble = one.get("reason") or unready
    if trouble is None and ledger["received"] != ledger["in_hand"] + sum(settled.values()):
        trouble = UNBALANCED
    if trouble is None and one["state"] != "running" and not one.get("standby"):
        trouble = one["state"]
    worry = None
    if lost:
        worry = f"lost or given up: {number(lost)}/s"
    elif dead:
        worry = f"dead-lettered: {number(dead)}/s"
    elif failed:
        worry = f"failing: {number(failed)}/s"
    elif retrying:
        worry = f"being retried: {retrying:,}"
    return RouteRow(
        name,
        "standby" if one.get("standby") else one["state"],
        received,
        rate_of(tuple(settled)),
        failed,
        lost,
        dead,
        ledger["in_hand"],
        None if behind is None else (behind["messages"], behind["seconds"]),
        retrying,
        ledger,
        last,
        None if last is None else max(0.0, (now - datetime.fromisoformat(last["at"])).total_seconds()),
        trouble,
        worry,
    )


def _rate(count: int, before: int | None, seconds: float) -> float | None:
    """Return the rate of a counter; None without an earlier value, or if it began again."""
    if before is None or seconds <= 0 or count < before:
        return None
    return (count - before) / seconds


def number(value: float | None) -> str:
    """Return a number or a rate in five characters at most: `0`, `0.4`, `12`, `9,999`, `12.3k`; `-` if unknown."""
    if value is None:
        return "-"
    if 0 < value < 9.95:
        text = f"{value:.1f}"
        return text.removesuffix(".0") if value == int(value) else text
    if value < 9_999.5:
        return f"{value:,.0f}"
    unit = 0
    while value >= 999.5 and unit < len(_UNITS):
        value /= 1000
        unit += 1
    return f"{value:.1f}{_UNITS[unit - 1]}" if value < 99.95 else f"{value:.0f}{_UNITS[unit - 1]}"


def duration(seconds: float) -> str:
    """Return a duration in up to four characters: `0s`, `59s`, `3m`, `5h`, `12d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
