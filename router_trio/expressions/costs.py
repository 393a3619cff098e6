"""The cost of each function, charged to the budget of a message so that no input of a sender takes long for free.

Costs are in tenths of a microsecond, as `Budget` counts them. The caller of a function charges the budget, before the
call by the arguments and after it by the result. An overload that is not in this table can't be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from router_trio.expressions.functions import times
from router_trio.expressions.functions.strings import MAX_PARTS, is_encodable
from router_trio.expressions.language.signatures import BY_NAME
from router_trio.expressions.values import Budget

Before = Callable[..., None]
"""Charges a budget, its first argument, with the cost of a call with the other arguments."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a call of one overload."""

    flat: int = 4
    """Charged for each call in a macro, whatever the arguments. Outside of macros a call happens once and is free."""
    before: Before | None = None
    """Charges by the arguments, before the call. Used if the first argument is long."""
    after: int | None = None
    """Charges the length of the result, shifted right by this many bits, if the result is long."""
    always: bool = False
    """True to use `before` even if the first argument is short or has no length."""


def _looked_at(shift: int) -> Before:
    """Return a charge for reading the first argument: one unit per 2^`shift` characters."""

    def cost(budget: Budget, value: Any, *others: Any) -> None:
        budget.spend(len(value) >> shift)

    return cost


def _searched(budget: Budget, text: str, part: str, *others: Any) -> None:
    """Charge for searching a text for a part. CPython's search takes linear time only for long texts."""
    size, width = len(text), len(part)
    if size >= 30_000 or (size >= 2_500 and width > 100):
        budget.spend(size >> 4)
    else:
        budget.spend((size * (min(width, size) + 16)) >> 8)


def _cased(budget: Budget, text: str) -> None:
    if text.isascii():
        budget.spend(len(text) >> 6)
        return
    budget.spend(len(text) >> 1)
    if not is_encodable(text):
        budget.spend(len(text))


def _start(budget: Budget, text: str, part: str) -> None:
    budget.spend(min(len(text), len(part)) >> 7)


def _split(budget: Budget, text: str, separator: str, limit: int = -1) -> None:
    _searched(budget, text, separator)
    parts = len(text) if separator == "" else text.count(separator)
    budget.spend(min(parts, MAX_PARTS) >> 1)


def _replaced(budget: Budget, text: str, old: str, new: str, limit: int = -1) -> None:
    _searched(budget, text, old)
    _searched(budget, text, old)
    budget.spend((text.count(old) >> 2) + (len(text) >> 8))


def _compared(budget: Budget, left: Any, right: Any) -> None:
    budget.spend(min(len(left), len(right)) >> 6)


def _read(most: int, shift: int) -> Before:
    """Return a charge for parsing a text of at most `most` characters; longer texts are refused unread."""

    def cost(budget: Budget, text: str) -> None:
        budget.spend(min(len(text), most) << shift)

    return cost


def _hashed(budget: Budget, text: str) -> None:
    """Charge for hashing a text; a character takes up to four bytes."""
    budget.spend(len(text) >> (5 if text.isascii() else 3))


def _zone(budget: Budget, value: Any, zone: str) -> None:
    budget.spend(times.zone_cost(zone))


FREE = Cost(4)
_JOINED = Cost(2, after=6)
_SEARCHED = Cost(5, _searched)
_NUMBER = Cost(6)

COSTS: dict[str, Cost] = {
    "_?_:_": FREE,
    "!_": FREE,
    "-_": FREE,
    "_==_": Cost(2),  # `values.equal` charges the rest
    "_!=_": Cost(2),
    "@in": Cost(14),  # `values.is_element` charges the rest
    "_+_": Cost(3),
    "_+_:string_string": _JOINED,
    "_+_:bytes_bytes": _JOINED,
    "_+_:list_list": Cost(3, after=3),
    "_-_": Cost(3),
    "_*_": Cost(3),
    "_/_": Cost(5),
    "_%_": Cost(5),
    "_[_]": Cost(6),
    "size": FREE,
    "matches": Cost(24),  # `patterns.matches` charges the rest
    "int": _NUMBER,
    "int:string": Cost(8, _read(400, 0)),
    "uint": _NUMBER,
    "uint:string": Cost(8, _read(400, 0)),
    "double": _NUMBER,
    "double:string": Cost(8, _read(400, 0)),
    "bool": FREE,
    "string": Cost(4),
    "string:double": Cost(25),
    "string:bytes": Cost(2, _looked_at(5)),
    "string:timestamp": Cost(35),
    "string:duration": Cost(15),
    "bytes": FREE,
    "bytes:string": Cost(2, _looked_at(5)),
    "timestamp": Cost(8),
    "timestamp:string": Cost(50),
    "duration": FREE,
    "duration:string": Cost(10, _read(times.MAX_TIME_TEXT, 3), always=True),
    "type": FREE,
    "dyn": FREE,
    "omit": Cost(20),  # `fields` charges the rest
    "mask": Cost(20),
    "sha256": Cost(12, _hashed),
    "sha256:bytes": Cost(12, _looked_at(5)),
    "contains": _SEARCHED,
    "startsWith": Cost(5, _start),
    "endsWith": Cost(5, _start),
    "charAt": Cost(6),
    "indexOf": _SEARCHED,
    "lastIndexOf": Cost(8, _searched),
    "join": Cost(12, _looked_at(0), after=5),
    "lowerAscii": Cost(6, _cased),
    "upperAscii": Cost(6, _cased),
    "replace": Cost(14, _replaced, after=6),
    "split": Cost(12, _split, after=1),
    "substring": Cost(12, after=6),
    "trim": Cost(18, _looked_at(5)),
    **dict.fromkeys(("_<_", "_<=_", "_>_", "_>=_"), Cost(3)),
    **{
        f"{name}:{kind}_{kind}": Cost(2, _compared)
        for name in ("_<_", "_<=_", "_>_", "_>=_")
        for kind in ("string", "bytes")
    },
}
"""The cost of each overload, by its id or by the name of its function."""
for _name in BY_NAME:
    if _name.startswith("get"):
        COSTS[_name] = Cost(30)
        COSTS[f"{_name}:timestamp_string"] = Cost(50, _zone, always=True)


def cost_of(overload: str) -> Cost:
    """Return the cost of an overload. Raises KeyError if it is not in the table."""
    return COSTS.get(overload) or COSTS[overload.rpartition(":")[0]]
