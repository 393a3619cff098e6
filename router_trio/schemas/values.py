"""The equality of JSON values: numbers are equal if their values are, of whatever type; true is not 1.

A value is represented by a `token`, which is equal and hashes equal if the value is. A list or an object is represented
by canonical bytes, so that Python's keyed hash applies: no sender can find many values with one hash.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router_trio.expressions.values import MAX_NESTING, BoolKey, Budget

_encode = msgspec.json.Encoder(order="deterministic").encode
_TRUE, _FALSE = BoolKey(True), BoolKey(False)
_EXACT = 2.0**63


class TooDeepError(Exception):
    """A value is nested too deeply to be compared, or too many references are nested."""


def token(value: Any, budget: Budget) -> Any:
    """Return the token of a value. Raises EvaluationError if the budget is used up, or TooDeepError."""
    kind = value.__class__
    if kind is bool:
        return _TRUE if value else _FALSE
    if kind is list or kind is dict:
        encoded = _encode(_plain(value, budget, 0))
        budget.spend(len(encoded) >> 6)
        return encoded
    return value


def _plain(value: Any, budget: Budget, depth: int) -> Any:
    """Return a value with each double that is an integer as an int, charged to the budget."""
    kind = value.__class__
    if kind is float:
        # Larger ones are doubles in bodies and schemas alike. The encoder would write null for an infinity.
        if -_EXACT <= value < _EXACT and value.is_integer():
            return int(value)
        return value if value - value == 0.0 else msgspec.Raw(b"%d1e999" % (1 if value > 0 else -1))
    if kind is list or kind is dict:
        if depth >= MAX_NESTING:
            raise TooDeepError
        budget.spend(6 + len(value) * (3 if kind is list else 5))
        if kind is list:
            return [_plain(one, budget, depth + 1) for one in value]
        return {name: _plain(one, budget, depth + 1) for name, one in value.items()}
    return value
