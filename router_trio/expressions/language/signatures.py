"""The table of all operators and functions of the language, with their types.

The checker chooses overloads from it, the compiler finds their implementations by id, and the reference documentation
is generated from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from router_trio.expressions.language.types import (
    BOOL,
    BYTES,
    DOUBLE,
    DURATION,
    DYN,
    INT,
    STRING,
    TIMESTAMP,
    UINT,
    Type,
    list_of,
    map_of,
    parameter,
    type_of,
)

A, B = parameter("A"), parameter("B")
_LIST, _MAP = list_of(A), map_of(A, B)
_ORDERED = (BOOL, INT, UINT, DOUBLE, STRING, BYTES, TIMESTAMP, DURATION)


@dataclass(frozen=True, slots=True)
class Overload:
    """A signature of a function: the types of its arguments and of its result. A method's first is its receiver.

    `repeats`: the last argument may be given any number of times.
    """

    id: str
    takes: tuple[Type, ...]
    gives: Type
    method: bool = False
    repeats: bool = False

    def takes_for(self, count: int) -> tuple[Type, ...]:
        """Return the types of the arguments of a call with `count` arguments."""
        more = count - len(self.takes) if self.repeats else 0
        return self.takes + self.takes[-1:] * more


@dataclass(frozen=True, slots=True)
class Function:
    """An operator or a function. `shown` is the spelling of an operator, such as `a + b`; empty for a function."""

    name: str
    about: str
    overloads: tuple[Overload, ...]
    shown: str = ""


def _overloads(name: str, *rows: tuple[Type, ...], method: bool = False) -> Iterator[Overload]:
    """Yield an overload per row: argument types, with the result type last. Its id consists of name and arguments."""
    for *takes, gives in rows:
        kinds = "_".join(one.name.rpartition(".")[2].lower() for one in takes)
        yield Overload(f"{name}:{kinds}", tuple(takes), gives, method)


def _operator(shown: str, name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    return Function(name, about, tuple(_overloads(name, *rows)), shown)


def _function(name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    return Function(name, about, tuple(_overloads(name, *rows)))


def _repeating(name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    """Return a function whose last argument may be repeated."""
    return Function(name, about, tuple(replace(one, repeats=True) for one in _overloads(name, *rows)))


def _method(name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    return Function(name, about, tuple(_overloads(name, *rows, method=True)))


def _both(name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    """Return a function that may also be called as a method. Both forms have the same ids."""
    ways = (*_overloads(name, *rows), *_overloads(name, *rows, method=True))
    return Function(name, about, ways)


def _same(*kinds: Type) -> tuple[tuple[Type, ...], ...]:
    return tuple((one, one, one) for one in kinds)


_COMPARED = (
    *((one, one, BOOL) for one in _ORDERED),
    *((one, other, BOOL) for one in (INT, UINT, DOUBLE) for other in (INT, UINT, DOUBLE) if one != other),
)

OPERATORS = (
    _operator("a ? b : c", "_?_:_", "b if a is true, else c. The other one is not evaluated.", (BOOL, A, A, A)),
    _operator("!a", "!_", "True if a is false.", (BOOL, BOOL)),
    _operator("-a", "-_", "The negated number.", (INT, INT), (DOUBLE, DOUBLE)),
    _operator("a == b", "_==_", "True if both are equal. Values of incomparable types are not equal.", (A, A, BOOL)),
    _operator("a != b", "_!=_", "True if they are not equal.", (A, A, BOOL)),
    _operator("a < b", "_<_", "Less. Numbers of different types compare by value, strings by code points.", *_COMPARED),
    _operator("a <= b", "_<=_", "Less or equal.", *_COMPARED),
    _operator("a > b", "_>_", "Greater.", *_COMPARED),
    _operator("a >= b", "_>=_", "Greater or equal.", *_COMPARED),
    _operator(
        "a in b",
        "@in",
        "True if the list contains the element, or the map contains the key.",
        (A, _LIST, BOOL),
        (A, _MAP, BOOL),
    ),
    _operator(
        "a + b",
        "_+_",
        "The sum, or the concatenation. An integer result beyond 64 bits is an error.",
        *_same(INT, UINT, DOUBLE, STRING, BYTES, _LIST, DURATION),
        (TIMESTAMP, DURATION, TIMESTAMP),
        (DURATION, TIMESTAMP, TIMESTAMP),
    ),
    _operator(
        "a - b",
        "_-_",
        "The difference.",
        *_same(INT, UINT, DOUBLE, DURATION),
        (TIMESTAMP, DURATION, TIMESTAMP),
        (TIMESTAMP, TIMESTAMP, DURATION),
    ),
    _operator("a * b", "_*_", "The product.", *_same(INT, UINT, DOUBLE)),
    _operator(
        "a / b",
        "_/_",
        "The quotient. Integer division rounds towards zero and fails if b is 0.",
        *_same(INT, UINT, DOUBLE),
    ),
    _operator("a % b", "_%_", "The remainder, with the sign of a. Fails if b is 0.", *_same(INT, UINT)),
    _operator(
        "a[b]",
        "_[_]",
        "The element of a list at an index from 0, or the value of a map's key.",
        (_LIST, INT, A),
        (_MAP, A, B),
    ),
)

_GETTERS = {
    "getFullYear": "The year.",
    "getMonth": "The month, from 0.",
    "getDate": "The day of the month, from 1.",
    "getDayOfMonth": "The day of the month, from 0.",
    "getDayOfWeek": "The day of the week, from 0 for Sunday.",
    "getDayOfYear": "The day of the year, from 0.",
    "getHours": "The hour; of a duration, its total hours.",
    "getMinutes": "The minute; of a duration, its total minutes.",
    "getSeconds": "The second; of a duration, its total seconds.",
    "getMilliseconds": "The milliseconds within the second.",
}
_OF_DURATIONS = ("getHours", "getMinutes", "getSeconds", "getMilliseconds")

FUNCTIONS = (
    _both(
        "size",
        "The number of characters of a string, of bytes, of elements of a list or of entries of a map.",
        *((one, INT) for one in (STRING, BYTES, _LIST, _MAP)),
    ),
    _both(
        "matches",
        "True if the string contains a match of the RE2 regular expression. Needs the extra.",
        (STRING, STRING, BOOL),
    ),
    _function(
        "int",
        "Converts to int: a double loses its fraction, a timestamp becomes Unix seconds.",
        *((one, INT) for one in (INT, UINT, DOUBLE, STRING, TIMESTAMP)),
    ),
    _function(
        "uint",
        "Converts to uint: a double loses its fraction.",
        *((one, UINT) for one in (INT, UINT, DOUBLE, STRING)),
    ),
    _function("double", "Converts to the nearest double.", *((one, DOUBLE) for one in (INT, UINT, DOUBLE, STRING))),
    _function(
        "bool",
        "Converts to bool: true, True, TRUE, t, 1, or false, False, FALSE, f, 0.",
        (BOOL, BOOL),
        (STRING, BOOL),
    ),
    _function(
        "string",
        "Converts to string: timestamps as RFC 3339, durations in seconds, bytes as UTF-8.",
        *((one, STRING) for one in (BOOL, INT, UINT, DOUBLE, STRING, BYTES, TIMESTAMP, DURATION)),
    ),
    _function("bytes", "The UTF-8 bytes of a string.", (STRING, BYTES), (BYTES, BYTES)),
    _function(
        "timestamp",
        "Converts RFC 3339 or Unix seconds to a timestamp.",
        (STRING, TIMESTAMP),
        (INT, TIMESTAMP),
        (TIMESTAMP, TIMESTAMP),
    ),
    _function(
        "duration",
        "Converts numbers with units (h, m, s, ms, us, ns), such as 1h30m, to a duration.",
        (STRING, DURATION),
        (DURATION, DURATION),
    ),
    _function("type", "The type of a value, for comparisons such as type(x) == int.", (A, type_of(A))),
    _function("dyn", "The value itself, with its type hidden from the type checker.", (A, DYN)),
    _repeating(
        "omit",
        "The value without the fields at these paths, such as 'card.number', also in each element of a list.",
        (_MAP, STRING, DYN),
        (_LIST, STRING, DYN),
    ),
    _repeating(
        "mask",
        "The value with '****' in place of the fields at these paths, whatever they contain.",
        (_MAP, STRING, DYN),
        (_LIST, STRING, DYN),
    ),
    _function(
        "sha256",
        "The SHA-256 of a string in UTF-8, or of bytes, as 64 lower-case hexadecimal digits.",
        (STRING, STRING),
        (BYTES, STRING),
    ),
    _method("contains", "True if the string contains the other string.", (STRING, STRING, BOOL)),
    _method("startsWith", "True if the string starts with the other string.", (STRING, STRING, BOOL)),
    _method("endsWith", "True if the string ends with the other string.", (STRING, STRING, BOOL)),
    *(
        _method(
            name,
            about + " In UTC, or in a time zone such as 'Europe/Berlin' or '+01:00'.",
            (TIMESTAMP, INT),
            (TIMESTAMP, STRING, INT),
            *(((DURATION, INT),) if name in _OF_DURATIONS else ()),
        )
        for name, about in _GETTERS.items()
    ),
    _method("charAt", "The character at a position from 0, or '' at the end.", (STRING, INT, STRING)),
    _method(
        "indexOf",
        "The position of the first occurrence of the other string, at or after a given position; else -1.",
        (STRING, STRING, INT),
        (STRING, STRING, INT, INT),
    ),
    _method(
        "lastIndexOf",
        "The position of the last occurrence of the other string, at or before a given position; else -1.",
        (STRING, STRING, INT),
        (STRING, STRING, INT, INT),
    ),
    _method(
        "join",
        "The strings of a list, concatenated with an optional separator.",
        (list_of(STRING), STRING),
        (list_of(STRING), STRING, STRING),
    ),
    _method("lowerAscii", "The string with A to Z in lower case.", (STRING, STRING)),
    _method("upperAscii", "The string with a to z in upper case.", (STRING, STRING)),
    _method(
        "replace",
        "The string with all occurrences of a string, or the first n, replaced by another.",
        (STRING, STRING, STRING, STRING),
        (STRING, STRING, STRING, INT, STRING),
    ),
    _method(
        "split",
        "The parts of the string between separators, at most n.",
        (STRING, STRING, list_of(STRING)),
        (STRING, STRING, INT, list_of(STRING)),
    ),
    _method(
        "substring",
        "The part of the string from a position to its end, or to before another position.",
        (STRING, INT, STRING),
        (STRING, INT, INT, STRING),
    ),
    _method("trim", "The string without white space at both ends.", (STRING, STRING)),
)

BY_NAME = {function.name: function for function in (*OPERATORS, *FUNCTIONS)}
BY_ID = {overload.id: overload for function in BY_NAME.values() for overload in function.overloads}
