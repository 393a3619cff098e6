"""The implementation of each overload by id, and the choice among overloads if types are known only at run time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.functions import conversions, digests, fields, patterns, strings, times
from router_trio.expressions.functions.conversions import checked_int, checked_uint, overflow
from router_trio.expressions.language.signatures import BY_ID, BY_NAME
from router_trio.expressions.values import (
    CLASSES,
    MAX_INT,
    MIN_INT,
    NUMBER_CLASSES,
    TYPE_VALUES,
    Duration,
    Timestamp,
    TypeValue,
    Uint,
    Value,
    a_kind,
    kind_name,
    lookup_key,
    sized,
)

Function = Callable[..., Value]

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "_<_": operator.lt,
    "_<=_": operator.le,
    "_>_": operator.gt,
    "_>=_": operator.ge,
}
ORDERED_CLASSES = frozenset({bool, str, bytes, Timestamp, Duration})
"""Types whose values compare only with values of the same type. Numbers of all types compare with each other."""


# --- arithmetic ---


def _add_ints(left: int, right: int) -> int:
    value = left + right
    if MIN_INT <= value <= MAX_INT:
        return value
    raise overflow("int")


def _divide_ints(left: int, right: int) -> int:
    if right == 0:
        raise EvaluationError("division by zero")
    value = abs(left) // abs(right)
    return checked_int(value if (left < 0) == (right < 0) else -value)


def _remainder(left: int, right: int) -> int:
    if right == 0:
        raise EvaluationError("remainder of a division by zero")
    if left == MIN_INT and right == -1:
        raise overflow("int")
    value = abs(left) % abs(right)
    return -value if left < 0 else value


def _divide_uints(left: int, right: int) -> Uint:
    if right == 0:
        raise EvaluationError("division by zero")
    return Uint(left // right)


def _uint_remainder(left: int, right: int) -> Uint:
    if right == 0:
        raise EvaluationError("remainder of a division by zero")
    return Uint(left % right)


def _divide_doubles(left: float, right: float) -> float:
    if right:
        return left / right
    if left != left or left == 0.0 or right != right:
        return float("nan")
    # As in IEEE 754, the sign of the infinity depends on both signs, including that of a negative zero.
    return float("inf") if (left > 0) == (str(right)[0] != "-") else float("-inf")


def _join(left: Any, right: Any) -> Any:
    return sized(left + right)


# --- lists and maps ---


def element(values: list[Value], index: Value) -> Value:
    """Return an element of a list. Raises EvaluationError if there is none, or `index` is not an integer."""
    kind = index.__class__
    if kind is not int:
        if kind is float and index.is_integer():
            index = int(index)
        elif kind is not Uint:
            raise EvaluationError(f"the index of a list must be an int, not {a_kind(index)}")
    if 0 <= index < len(values):
        return values[index]
    raise EvaluationError("the index is out of range: the list is shorter")


def entry(entries: dict[Value, Value], key: Value) -> Value:
    """Return the value of a key of a map. Raises EvaluationError if the map does not have the key."""
    try:
        return entries[lookup_key(key)]
    except KeyError:
        raise EvaluationError("the map has no such key") from None


def indexed(of: Value, index: Value) -> Value:
    """Return an element of a list, or the value of a map's key. Raises EvaluationError if there is none."""
    if of.__class__ is dict:
        return entry(of, index)
    if of.__class__ is list:
        return element(of, index)
    raise EvaluationError(f"{a_kind(of)} has no elements")


def has_key(entries: dict[Value, Value], key: Value) -> bool:
    """Return True if a map has this key. Raises EvaluationError if a value of this type can't be a key."""
    return lookup_key(key) in entries


def field(of: Value, name: str) -> Value:
    """Return the value of the key `name`. Raises EvaluationError if `of` is not a map or does not have it."""
    if of.__class__ is dict:
        try:
            return of[name]
        except KeyError:
            raise no_key(name) from None
    raise EvaluationError(f"{a_kind(of)} has no field {name!r}")


def has_field(of: Value, name: str) -> bool:
    """Return True if a map has the key `name`. Raises EvaluationError if `of` is not a map."""
    if of.__class__ is dict:
        return name in of
    raise EvaluationError(f"{a_kind(of)} has no field {name!r}")


def no_key(name: str) -> EvaluationError:
    """Return the error for a key named in the expression that a map does not have."""
    return EvaluationError(f"there is no key {name!r}")


# --- all of them ---

_ADD, _SUBTRACT, _TIMES = operator.add, operator.sub, operator.mul

FUNCTIONS: dict[str, Function] = {
    "!_:bool": operator.not_,
    "-_:int": lambda value: checked_int(-value),
    "-_:double": operator.neg,
    "_+_:int_int": _add_ints,
    "_+_:uint_uint": lambda left, right: checked_uint(int.__add__(left, right)),
    "_+_:double_double": _ADD,
    "_+_:string_string": _join,
    "_+_:bytes_bytes": _join,
    "_+_:list_list": _join,
    "_+_:duration_duration": lambda left, right: times.duration(left.ns + right.ns),
    "_+_:timestamp_duration": lambda left, right: times.timestamp(left.ns + right.ns),
    "_+_:duration_timestamp": lambda left, right: times.timestamp(left.ns + right.ns),
    "_-_:int_int": lambda left, right: checked_int(left - right),
    "_-_:uint_uint": lambda left, right: checked_uint(int.__sub__(left, right)),
    "_-_:double_double": _SUBTRACT,
    "_-_:duration_duration": lambda left, right: times.duration(left.ns - right.ns),
    "_-_:timestamp_duration": lambda left, right: times.timestamp(left.ns - right.ns),
    "_-_:timestamp_timestamp": lambda left, right: times.duration(left.ns - right.ns),
    "_*_:int_int": lambda left, right: checked_int(left * right),
    "_*_:uint_uint": lambda left, right: checked_uint(int.__mul__(left, right)),
    "_*_:double_double": _TIMES,
    "_/_:int_int": _divide_ints,
    "_/_:uint_uint": _divide_uints,
    "_/_:double_double": _divide_doubles,
    "_%_:int_int": _remainder,
    "_%_:uint_uint": _uint_remainder,
    "_[_]:list_int": element,
    "_[_]:map_a": entry,
    "size:string": len,
    "size:bytes": len,
    "size:list": len,
    "size:map": len,
    "matches:string_string": patterns.matches,
    "int:int": lambda value: value,
    "int:uint": lambda value: checked_int(int(value)),
    "int:double": conversions.int_of_double,
    "int:string": conversions.int_of_string,
    "int:timestamp": lambda value: value.ns // times.SECOND,
    "uint:int": checked_uint,
    "uint:uint": lambda value: value,
    "uint:double": conversions.uint_of_double,
    "uint:string": conversions.uint_of_string,
    "double:int": float,
    "double:uint": float,
    "double:double": lambda value: value,
    "double:string": conversions.double_of_string,
    "bool:bool": lambda value: value,
    "bool:string": conversions.bool_of_string,
    "string:bool": lambda value: "true" if value else "false",
    "string:int": str,
    "string:uint": str,
    "string:double": conversions.string_of_double,
    "string:string": lambda value: value,
    "string:bytes": conversions.string_of_bytes,
    "string:timestamp": times.format_timestamp,
    "string:duration": times.format_duration,
    "bytes:string": conversions.bytes_of_string,
    "bytes:bytes": lambda value: value,
    "timestamp:string": times.parse_timestamp,
    "timestamp:int": lambda value: times.timestamp(value * times.SECOND),
    "timestamp:timestamp": lambda value: value,
    "duration:string": times.parse_duration,
    "duration:duration": lambda value: value,
    "dyn:a": lambda value: value,
    "omit:map_string": fields.omit,
    "omit:list_string": fields.omit,
    "mask:map_string": fields.mask,
    "mask:list_string": fields.mask,
    "sha256:string": digests.sha256_of_string,
    "sha256:bytes": digests.sha256_of_bytes,
    "contains:string_string": operator.contains,
    "startsWith:string_string": str.startswith,
    "endsWith:string_string": str.endswith,
    "charAt:string_int": strings.char_at,
    "indexOf:string_string": strings.index_of,
    "indexOf:string_string_int": strings.index_of,
    "lastIndexOf:string_string": strings.last_index_of,
    "lastIndexOf:string_string_int": strings.last_index_of,
    "join:list": strings.join,
    "join:list_string": strings.join,
    "lowerAscii:string": strings.lower_ascii,
    "upperAscii:string": strings.upper_ascii,
    "replace:string_string_string": strings.replace,
    "replace:string_string_string_int": strings.replace,
    "split:string_string": strings.split,
    "split:string_string_int": strings.split,
    "substring:string_int": strings.substring,
    "substring:string_int_int": strings.substring,
    "trim:string": strings.trim,
}
for _name, _function in BY_NAME.items():
    if _name in COMPARISONS:
        FUNCTIONS.update({one.id: COMPARISONS[_name] for one in _function.overloads})
    if _name.startswith("get"):
        for _one in _function.overloads:
            _part = times.part_of_duration if _one.id.endswith(":duration") else times.part_of_time
            FUNCTIONS[_one.id] = partial(_part, _name)


def type_value(value: Value) -> TypeValue:
    """Return `type(value)`."""
    return TYPE_VALUES[value.__class__]


FUNCTIONS["type:a"] = type_value


def dispatch_table(overloads: tuple[str, ...]) -> dict[tuple[type, ...], tuple[str, Function]]:
    """Return the id and the implementation of each of these overloads, by the classes of its arguments."""
    table: dict[tuple[type, ...], tuple[str, Function]] = {}
    for one in overloads:
        table[tuple(CLASSES[kind.name] for kind in BY_ID[one].takes)] = one, FUNCTIONS[one]
    return table


def compare(function: Callable[[Any, Any], bool], left: Value, right: Value) -> bool:
    """Return the result of a comparison. Raises EvaluationError if values of these types can't be compared."""
    kind, other = left.__class__, right.__class__
    if kind in NUMBER_CLASSES and other in NUMBER_CLASSES:
        # CEL converts both numbers to double; Python would compare them exactly.
        return function(float(left), float(right)) if float in (kind, other) else function(left, right)
    if kind is other and kind in ORDERED_CLASSES:
        return function(left, right)
    raise EvaluationError(f"{a_kind(left)} can't be compared with {a_kind(right)}")


def no_overload(name: str, values: tuple[Value, ...]) -> EvaluationError:
    """Return the error for values that a function or an operator does not accept."""
    shown = " and ".join(map(kind_name, values))
    return EvaluationError(f"{name.strip('_@')} can't be applied to {shown}")
