"""The values of CEL in Python: which class holds which type, and when two are equal.

int, double, bool, string, bytes, list, map and null are those of Python. A uint is a `Uint`, so that an int and a uint
are told apart; they equal and hash alike, as CEL has it. The key of a map is as it is, but for a bool, which Python
takes for a number: `key_of` and `of_key` exchange it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Any, Final

from router_trio.errors import EvaluationError

MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**63 - 1
MAX_UINT: Final = 2**64 - 1

MAX_COST = 140_000
"""The budget of the expressions on one message, in tenths of a microsecond: for decoding, macros, comparisons and
each function whose time depends on what it is given. So a message costs some 14 ms at most, whatever it holds."""
MAX_SIZE = 1024**2
"""Characters, bytes or elements of what an expression makes: as much as most servers take for a payload."""
MAX_NESTING = 100
"""Lists and maps within each other, in a comparison or a payload."""

Value = Any


class Uint(int):
    """An unsigned integer of 64 bits."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """A point in time: nanoseconds since 1970, from year 1 to year 9999."""

    ns: int


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A time that passes: nanoseconds, up to some 10,000 years."""

    ns: int


@dataclass(frozen=True, slots=True)
class TypeValue:
    """The value of `type(x)`."""

    name: str


@dataclass(frozen=True, slots=True)
class BoolKey:
    """A bool as the key of a map."""

    value: bool


class Budget:
    """Count down what the expressions of a route may spend on one message, in tenths of a microsecond."""

    __slots__ = ("left",)

    def __init__(self, left: int = MAX_COST) -> None:
        self.left: int = left

    def spend(self, cost: int) -> None:
        """Spend some of it. Raises EvaluationError if nothing is left."""
        self.left -= cost
        if self.left < 0:
            raise EvaluationError("the expression takes too long on this message: MAX_COST is used up")


NAMES: Final[dict[type, str]] = {
    int: "int",
    Uint: "uint",
    float: "double",
    bool: "bool",
    str: "string",
    bytes: "bytes",
    list: "list",
    dict: "map",
    NoneType: "null_type",
    Timestamp: "google.protobuf.Timestamp",
    Duration: "google.protobuf.Duration",
    TypeValue: "type",
}
_SHORT = {"google.protobuf.Timestamp": "timestamp", "google.protobuf.Duration": "duration", "null_type": "null"}
CLASSES: Final = {name: kind for kind, name in NAMES.items()}
TYPE_VALUES: Final = {kind: TypeValue(name) for kind, name in NAMES.items()}
NUMBER_CLASSES: Final = frozenset({int, Uint, float})

_TRUE, _FALSE = BoolKey(True), BoolKey(False)
_KEY_CLASSES = frozenset({int, Uint, str})


def kind_name(value: Value) -> str:
    """Return the name of the type of a value, as errors have it."""
    name = NAMES.get(value.__class__, "value that is none of CEL's")
    return _SHORT.get(name, name)


def key_of(value: Value) -> Value:
    """Return what a value is as the key of a map that is made. Raises EvaluationError if it can't be one."""
    kind = value.__class__
    if kind is bool:
        return _TRUE if value else _FALSE
    if kind in _KEY_CLASSES:
        return value
    raise EvaluationError(f"a {kind_name(value)} can't be the key of a map")


def wanted_key(value: Value) -> Value:
    """Return what is looked for in a map: also a double, which finds an int of its value."""
    return value if value.__class__ is float else key_of(value)


def of_key(key: Value) -> Value:
    """Return the value that a key of a map is."""
    return key.value if key.__class__ is BoolKey else key


LONG = 256
"""Characters, bytes or elements up to which a look at all of a value costs no more than the part of an expression that
looks at it."""


def equal(left: Value, right: Value, message: Any = None) -> bool:
    """Return True if two values are equal, whatever their types. Raises EvaluationError if `message` can't pay."""
    one, other = left.__class__, right.__class__
    if one is list or one is dict:
        return other is one and _deep_equal(left, right, message, 0)
    if one is not other and (one is bool or other is bool):
        return False
    if one is not other and (one is float or other is float) and one in NUMBER_CLASSES and other in NUMBER_CLASSES:
        return float(left) == float(right)
    if (one is str or one is bytes) and len(left) > LONG and message is not None:
        message.budget.spend(len(left) >> 7)
    return bool(left == right)


def _deep_equal(left: Value, right: Value, message: Any, depth: int) -> bool:
    kind = left.__class__
    if kind is not right.__class__ or (kind is not list and kind is not dict):
        return equal(left, right, message)
    if len(left) != len(right):
        return False
    if depth > MAX_NESTING:
        raise EvaluationError(f"lists and maps are nested more than {MAX_NESTING} deep")
    if message is not None:
        message.budget.spend(10 + 5 * len(left))
    if kind is list:
        return all(_deep_equal(one, other, message, depth + 1) for one, other in zip(left, right, strict=True))
    return all(key in right and _deep_equal(value, right[key], message, depth + 1) for key, value in left.items())


def within(element: Value, values: list[Value], message: Any) -> bool:
    """Return True if a list has an element that equals this one. Raises EvaluationError if `message` can't pay."""
    if element.__class__ is str:
        if len(values) > LONG or len(element) > LONG:
            message.budget.spend((len(values) >> 1) * (1 + (len(element) >> 8)))
        return element in values
    if len(values) > LONG >> 6:
        message.budget.spend(4 * len(values))
    return any(equal(element, one, message) for one in values)


def sized(value: Value) -> Value:
    """Return a string, bytes or list. Raises EvaluationError if it is larger than MAX_SIZE."""
    if len(value) > MAX_SIZE:
        raise too_large()
    return value


def too_large() -> EvaluationError:
    """Return the error of a result that is larger than MAX_SIZE."""
    return EvaluationError(f"the result is larger than {MAX_SIZE} characters, bytes or elements")
