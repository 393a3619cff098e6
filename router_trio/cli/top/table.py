"""The lines that `top` prints, for a terminal of any width from 40 columns on. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from router_trio.cli.colours import Colours
from router_trio.cli.top.rates import DEAD, LOSSES, ConnectionRow, Overview, RouteRow, duration, number
from router_trio.errors.quotes import LONGEST_TEXT, excerpt

LEAST_WIDTH = 40
_GAP = 2
_INDENT = "  "
_LEAST_NAME, _NAME = 12, 20
_LEAST_LAST, _MOST_LAST = 15, 28

Paint = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    paint: Paint | None = None


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers. It is left out in a terminal of less than `from_width` columns."""

    heading: str
    width: int
    cell: Callable[[Any, Colours], _Cell]
    from_width: int = 0


def lines(found: Overview, width: int, height: int | None, colours: Colours) -> list[str]:
    """Return the table, in at most `height` lines of at most `width` characters."""
    width = max(width, LEAST_WIDTH)
    shown = [_head(found, width, colours)]
    for why in found.reasons:
        shown += _reason(why, width, colours.bad)
    shown.append("")
    shown += _connections(found.connections, width, colours)
    shown.append("")
    shown.append(_heading("ROUTE", _ROUTE_COLUMNS, "LAST FAILURE", width, colours))
    room = None if height is None else max(1, height - len(shown))
    rows = 0
    body: list[str] = []
    for route in found.routes:
        more = [_row(route.name, route, _ROUTE_COLUMNS, _last(route), width, colours), *_why(route, width, colours)]
        rest = len(found.routes) - rows
        if room is not None and len(body) + len(more) + (rest > 1) > room:
            break
        body += more
        rows += 1
    shown += body
    if rows < len(found.routes):
        left = found.routes[rows:]
        unwell = sum(1 for route in left if route.severity)
        shown.append(colours.faint(_cut(f"and {len(left):,} more, {unwell:,} of them not well", width)))
    return shown


def _head(found: Overview, width: int, colours: Colours) -> str:
    count = len(found.routes)
    parts = [*([] if found.is_ready else ["not ready"]), *([f"{found.unwell:,} not well"] if found.unwell else [])]
    unwell = "all well" if found.is_well else ", ".join(parts) or "not well"
    paint = colours.good if found.is_well else colours.bad
    left = f"{excerpt(found.name, 30)} {found.version}  up {duration(found.uptime)}"
    if found.workers:
        running = sum(1 for one in found.workers.values() if one["state"] == "running")
        left += f"  {running} of {len(found.workers)} workers"
    right = f"{count:,} route{'s' if count != 1 else ''}, "
    if len(left) + len(right) + len(unwell) + _GAP > width:
        left = _cut(left, width - len(right) - len(unwell) - _GAP)
    space = " " * (width - len(left) - len(right) - len(unwell))
    return f"{colours.bold(left)}{space}{right}{paint(unwell)}"


# --- connections ---


def _state(one: ConnectionRow | RouteRow, colours: Colours) -> _Cell:
    paint = (colours.good, colours.doubtful, colours.bad)[one.severity]
    return _Cell(one.state, paint)


_CONNECTION_COLUMNS = (
    _Column("STATE", 12, _state),
    _Column("ACCEPT/s", 8, lambda one, _: _Cell(number(one.accepted_rate)), 50),
    _Column("SETTLE/s", 8, lambda one, _: _Cell(number(one.settled_rate)), 60),
    _Column("PENDING", 7, lambda one, colours: _count(one.pending, colours.doubtful), 66),
    _Column("FLIGHT", 6, lambda one, _: _Cell(number(one.in_flight)), 74),
    _Column("ACCEPTED", 8, lambda one, _: _Cell(number(one.ledger["accepted"])), 110),
    _Column("DROPPED", 7, lambda one, colours: _count(one.ledger["settled"].get("dropped", 0), colours.bad), 120),
    _Column("FAILED", 7, lambda one, colours: _count(one.ledger["settled"].get("failed", 0), colours.bad), 120),
)


def _connections(rows: Sequence[ConnectionRow], width: int, colours: Colours) -> list[str]:
    found = [_heading("CONNECTION", _CONNECTION_COLUMNS, "SERVER", width, colours)]
    for one in rows:
        server = (one.server or "").rpartition("://")[2]
        found.append(_row(one.name, one, _CONNECTION_COLUMNS, _Cell(server), width, colours))
        if one.trouble is not None:
            found += _reason(one.trouble, width, colours.bad)
    return found


# --- routes ---


def _lag(one: RouteRow, colours: Colours) -> _Cell:
    if one.lag is None:
        return _Cell("-")
    messages, seconds = one.lag
    if not messages:
        return _Cell("0")
    return _Cell(f"{number(messages)} {duration(seconds)}", colours.doubtful if seconds >= 10 else None)


def _count(count: int, paint: Paint) -> _Cell:
    return _Cell(number(count), paint if count else None)


def _lost(one: RouteRow, colours: Colours) -> _Cell:
    return _count(sum(one.ledger["settled"].get(fate, 0) for fate in LOSSES), colours.bad)


def _dead(one: RouteRow, colours: Colours) -> _Cell:
    return _count(sum(one.ledger["settled"].get(fate, 0) for fate in DEAD), colours.doubtful)


def _fate(name: str) -> Callable[[RouteRow, Colours], _Cell]:
    return lambda one, _: _Cell(number(one.ledger["settled"].get(name, 0)))


_ROUTE_COLUMNS = (
    _Column("STATE", 8, _state),
    _Column("IN/s", 5, lambda one, _: _Cell(number(one.received_rate))),
    _Column("OUT/s", 5, lambda one, _: _Cell(number(one.settled_rate))),
    _Column("HAND", 5, lambda one, _: _Cell(number(one.in_hand)), 56),
    _Column("LAG", 9, _lag, 66),
    _Column("LOST", 5, _lost, 74),
    _Column("DEAD", 5, _dead, 84),
    _Column("RECEIVED", 8, lambda one, _: _Cell(number(one.ledger["received"])), 100),
    _Column("ROUTED", 8, _fate("routed"), 100),
    _Column("FILTERED", 8, _fate("filtered"), 130),
    _Column("RETURNED", 8, _fate("returned"), 140),
    _Column("RETRIED", 7, lambda one, colours: _count(one.retrying, colours.doubtful), 150),
)


def _last(one: RouteRow) -> _Cell:
    if one.last_failure is None or one.failed_ago is None:
        return _Cell("")
    return _Cell(f"{duration(one.failed_ago)} {one.last_failure['reason']}")


def _why(one: RouteRow, width: int, colours: Colours) -> list[str]:
    """Return the lines that say why a route is not well."""
    why = one.trouble or one.worry
    if why is None:
        return []
    failure = one.last_failure
    if one.trouble is None and failure is not None:
        on = f" on {failure['subject']}" if failure["subject"] else ""
        detail = f": {failure['detail']}" if failure["detail"] else ""
        why = f"{why}; last: {failure['reason']}{on}{detail}"
    paint = colours.bad if one.trouble is not None else colours.doubtful
    return _reason(why, width, paint)


# --- lines ---


def _reason(text: str, width: int, paint: Paint) -> list[str]:
    """Return a reason in at most two lines, each indented."""
    parts = textwrap.wrap(excerpt(text, LONGEST_TEXT), width - len(_INDENT), max_lines=2, placeholder="…")
    return [paint(_INDENT + part) for part in parts]


def _columns(columns: Sequence[_Column], width: int) -> list[_Column]:
    return [one for one in columns if one.from_width <= width]


def _widths(columns: Sequence[_Column], width: int) -> tuple[int, int]:
    """Return the widths of the name and of the last column, which share what the columns of numbers leave."""
    left = width - sum(one.width + _GAP for one in columns)
    last = min(max(_LEAST_LAST, left - _GAP - _NAME), _MOST_LAST)
    return (left, 0) if left - _GAP - last < _LEAST_NAME else (left - _GAP - last, last)


def _heading(name: str, columns: Sequence[_Column], last: str, width: int, colours: Colours) -> str:
    columns = _columns(columns, width)
    first, rest = _widths(columns, width)
    parts = [name.ljust(first), *(_aligned(one.heading, one) for one in columns)]
    return colours.faint((" " * _GAP).join([*parts, last[:rest]] if rest else parts).rstrip())


def _row(name: str, one: Any, columns: Sequence[_Column], last: _Cell, width: int, colours: Colours) -> str:
    columns = _columns(columns, width)
    first, rest = _widths(columns, width)
    cells = [_Cell(_cut(excerpt(name), first).ljust(first))]
    for column in columns:
        cell = column.cell(one, colours)
        cells.append(_Cell(_aligned(_cut(cell.text, column.width), column), cell.paint))
    if rest and last.text:
        cells.append(_Cell(_cut(excerpt(last.text), rest)))
    cells[-1] = _Cell(cells[-1].text.rstrip(), cells[-1].paint)
    return (" " * _GAP).join(cell.text if cell.paint is None else cell.paint(cell.text) for cell in cells)


def _aligned(text: str, column: _Column) -> str:
    return text.ljust(column.width) if column.heading == "STATE" else text.rjust(column.width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
