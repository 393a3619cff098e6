"""CEL's values in Python: the class of each type, their equality, and the budget of a message.

int, double, bool, string, bytes, list, map and null are Python's types. A uint is a `Uint`, which distinguishes it from
an int; both compare and hash equal if their values are, as in CEL. A key of a map is the value itself, except for a
bool, which Python would treat as a number: `key_of` and `value_of_key` convert it.
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
"""The budget of all expressions on one message, in tenths of a microsecond. Decoding, macros, comparisons and functions
whose time depends on their arguments are charged to it, so a message costs at most about 14 ms, whatever it contains;
see `FREE_STEPS` for patterns.
"""
MAX_SIZE = 1024**2
"""Maximum number of characters, bytes or elements of a result: the default maximum payload of a server."""
MAX_NESTING = 100
"""Maximum nesting of lists and maps in a comparison or a payload."""

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
    """A duration in nanoseconds, up to about 10,000 years."""

    ns: int


@dataclass(frozen=True, slots=True)
class TypeValue:
    """The value of `type(x)`."""

    name: str


@dataclass(frozen=True, slots=True)
class BoolKey:
    """A bool as the key of a map."""

    value: bool


FREE_STEPS = 2_000_000
"""Steps of searches for patterns that are free for each message.

They take up to 0.2 s if each text is made for its pattern, and a hundredth of that otherwise.
"""

STEPS_IN_TENTH = 9
"""Steps that take up to a tenth of a microsecond."""


class Budget:
    """The time that the expressions of a route may still spend on one message, in tenths of a microsecond."""

    __slots__ = ("left", "steps")

    def __init__(self, left: int = MAX_COST) -> None:
        self.left: int = left
        self.steps: int = FREE_STEPS

    def search(self, steps: int) -> None:
        """Charge steps of searches for patterns, beyond the free ones. Raises EvaluationError as `spend`."""
        self.steps -= steps
        if self.steps < 0:
            charged, self.steps = -self.steps, 0
            self.spend(charged // STEPS_IN_TENTH)

    def spend(self, cost: int) -> None:
        """Charge `cost`. Raises EvaluationError if it exceeds what is left."""
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
    """Return the name of a value's type, for errors."""
    name = NAMES.get(value.__class__, "value of no CEL type")
    return _SHORT.get(name, name)


def a_kind(value: Value) -> str:
    """Return the name of a value's type with its article, for errors."""
    name = kind_name(value)
    return f"an {name}" if name == "int" else f"a {name}"


def key_of(value: Value) -> Value:
    """Return the key that stands for a value in a map. Raises EvaluationError if a value of its type can't be a key."""
    kind = value.__class__
    if kind is bool:
        return _TRUE if value else _FALSE
    if kind in _KEY_CLASSES:
        return value
    raise EvaluationError(f"{a_kind(value)} can't be the key of a map")


def lookup_key(value: Value) -> Value:
    """Return the key for a lookup in a map. Unlike `key_of` it accepts a double, which finds an equal int."""
    return value if value.__class__ is float else key_of(value)


def value_of_key(key: Value) -> Value:
    """Return the value that a key of a map stands for."""
    return key.value if key.__class__ is BoolKey else key


LONG = 256
"""Number of characters, bytes or elements up to which reading a value costs no more than the operation on it."""


def equal(left: Value, right: Value, message: Any = None) -> bool:
    """Return True if two values of any types are equal. Raises EvaluationError if the budget is used up."""
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
        raise EvaluationError(f"lists and maps are nested more than {MAX_NESTING} levels deep")
    if message is not None:
        message.budget.spend(10 + 5 * len(left))
    if kind is list:
        return all(_deep_equal(one, other, message, depth + 1) for one, other in zip(left, right, strict=True))
    return all(key in right and _deep_equal(value, right[key], message, depth + 1) for key, value in left.items())


def is_element(element: Value, values: list[Value], message: Any) -> bool:
    """Return True if a list contains an equal element. Raises EvaluationError if the budget is used up."""
    if element.__class__ is str:
        if len(values) > LONG or len(element) > LONG:
            message.budget.spend((len(values) >> 1) * (1 + (len(element) >> 8)))
        return element in values
    if len(values) > LONG >> 6:
        message.budget.spend(4 * len(values))
    return any(equal(element, one, message) for one in values)


def sized(value: Value) -> Value:
    """Return a string, bytes or list unchanged. Raises EvaluationError if it is larger than MAX_SIZE."""
    if len(value) > MAX_SIZE:
        raise too_large()
    return value


def too_large() -> EvaluationError:
    """Return the error for a result that is larger than MAX_SIZE."""
    return EvaluationError(f"the result is larger than {MAX_SIZE} characters, bytes or elements")
