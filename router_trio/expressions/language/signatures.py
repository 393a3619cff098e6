"""Every operator and function of the language, with the types that it takes: the one table of them.

The checker takes overloads from here, the compiler finds what carries them out by their ids, and the reference in the
documents is made from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    """A way to call a function, by the types that it takes. The first type of a method is that of its receiver."""

    id: str
    takes: tuple[Type, ...]
    gives: Type
    method: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """An operator or a function. `shown`: how it is written, for an operator."""

    name: str
    about: str
    overloads: tuple[Overload, ...]
    shown: str = ""


def _overloads(name: str, *rows: tuple[Type, ...], method: bool = False) -> Iterator[Overload]:
    """Yield an overload for each row: what it takes, and last what it gives. Its id is made from the types."""
    for *takes, gives in rows:
        kinds = "_".join(one.name.rpartition(".")[2].lower() for one in takes)
        yield Overload(f"{name}:{kinds}", tuple(takes), gives, method)


def _operator(shown: str, name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    return Function(name, about, tuple(_overloads(name, *rows)), shown)


def _function(name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    return Function(name, about, tuple(_overloads(name, *rows)))


def _method(name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    return Function(name, about, tuple(_overloads(name, *rows, method=True)))


def _both(name: str, about: str, *rows: tuple[Type, ...]) -> Function:
    """Return a function that may be called either way. Both ways have the same ids."""
    ways = (*_overloads(name, *rows), *_overloads(name, *rows, method=True))
    return Function(name, about, ways)


def _same(*kinds: Type) -> tuple[tuple[Type, ...], ...]:
    return tuple((one, one, one) for one in kinds)


_COMPARED = (
    *((one, one, BOOL) for one in _ORDERED),
    *((one, other, BOOL) for one in (INT, UINT, DOUBLE) for other in (INT, UINT, DOUBLE) if one != other),
)

OPERATORS = (
    _operator("a ? b : c", "_?_:_", "b if a holds, else c; the other one is not evaluated.", (BOOL, A, A, A)),
    _operator("!a", "!_", "True if a does not hold.", (BOOL, BOOL)),
    _operator("-a", "-_", "The number with the other sign.", (INT, INT), (DOUBLE, DOUBLE)),
    _operator("a == b", "_==_", "True if both are equal; values of types that never equal are not.", (A, A, BOOL)),
    _operator("a != b", "_!=_", "True if they are not equal.", (A, A, BOOL)),
    _operator("a < b", "_<_", "Numbers of different kinds compare by their value, strings by code points.", *_COMPARED),
    _operator("a <= b", "_<=_", "Less or equal.", *_COMPARED),
    _operator("a > b", "_>_", "Greater.", *_COMPARED),
    _operator("a >= b", "_>=_", "Greater or equal.", *_COMPARED),
    _operator(
        "a in b", "@in", "True if the list has this element, or the map this key.", (A, _LIST, BOOL), (A, _MAP, BOOL)
    ),
    _operator(
        "a + b",
        "_+_",
        "The sum, or both one after the other. Ints beyond 64 bits are an error.",
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
        "a / b", "_/_", "The quotient; of ints towards zero. An int by 0 is an error.", *_same(INT, UINT, DOUBLE)
    ),
    _operator("a % b", "_%_", "The remainder, with the sign of a. By 0 is an error.", *_same(INT, UINT)),
    _operator("a[b]", "_[_]", "The element of a list, from 0, or the value of a key.", (_LIST, INT, A), (_MAP, A, B)),
)

_GETTERS = {
    "getFullYear": "The year.",
    "getMonth": "The month, from 0.",
    "getDate": "The day of the month, from 1.",
    "getDayOfMonth": "The day of the month, from 0.",
    "getDayOfWeek": "The day of the week, from 0 for Sunday.",
    "getDayOfYear": "The day of the year, from 0.",
    "getHours": "The hour; of a duration, all its hours.",
    "getMinutes": "The minute; of a duration, all its minutes.",
    "getSeconds": "The second; of a duration, all its seconds.",
    "getMilliseconds": "The milliseconds of the second.",
}
_OF_DURATIONS = ("getHours", "getMinutes", "getSeconds", "getMilliseconds")

FUNCTIONS = (
    _both(
        "size",
        "Characters of a string, bytes, elements of a list, entries of a map.",
        *((one, INT) for one in (STRING, BYTES, _LIST, _MAP)),
    ),
    _both(
        "matches", "True if RE2 finds the regular expression in the string. Needs the extra.", (STRING, STRING, BOOL)
    ),
    _function(
        "int",
        "Of a double without its fraction; of a timestamp in Unix seconds.",
        *((one, INT) for one in (INT, UINT, DOUBLE, STRING, TIMESTAMP)),
    ),
    _function("uint", "Of a double without its fraction.", *((one, UINT) for one in (INT, UINT, DOUBLE, STRING))),
    _function("double", "The nearest double.", *((one, DOUBLE) for one in (INT, UINT, DOUBLE, STRING))),
    _function("bool", "Of true, True, TRUE, t and 1, and their opposites.", (BOOL, BOOL), (STRING, BOOL)),
    _function(
        "string",
        "As text: timestamps as RFC 3339, durations in seconds, bytes as UTF-8.",
        *((one, STRING) for one in (BOOL, INT, UINT, DOUBLE, STRING, BYTES, TIMESTAMP, DURATION)),
    ),
    _function("bytes", "The UTF-8 of a string.", (STRING, BYTES), (BYTES, BYTES)),
    _function(
        "timestamp", "Of RFC 3339, or Unix seconds.", (STRING, TIMESTAMP), (INT, TIMESTAMP), (TIMESTAMP, TIMESTAMP)
    ),
    _function(
        "duration", "Of numbers with h, m, s, ms, us or ns, such as 1h30m.", (STRING, DURATION), (DURATION, DURATION)
    ),
    _function("type", "The type of a value, to be compared: type(x) == int.", (A, type_of(A))),
    _function("dyn", "The value itself, of whose type the checker then knows nothing.", (A, DYN)),
    _method("contains", "True if the other string is part of it.", (STRING, STRING, BOOL)),
    _method("startsWith", "True if it starts with the other string.", (STRING, STRING, BOOL)),
    _method("endsWith", "True if it ends with the other string.", (STRING, STRING, BOOL)),
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
    _method("charAt", "The character at a position, or '' at the end.", (STRING, INT, STRING)),
    _method(
        "indexOf",
        "Where the other string first is, at or behind a position; else -1.",
        (STRING, STRING, INT),
        (STRING, STRING, INT, INT),
    ),
    _method(
        "lastIndexOf",
        "Where the other string last is, at or before a position; else -1.",
        (STRING, STRING, INT),
        (STRING, STRING, INT, INT),
    ),
    _method(
        "join",
        "The strings of a list, one after the other, with something between them.",
        (list_of(STRING), STRING),
        (list_of(STRING), STRING, STRING),
    ),
    _method("lowerAscii", "With A to Z in lower case.", (STRING, STRING)),
    _method("upperAscii", "With a to z in upper case.", (STRING, STRING)),
    _method(
        "replace",
        "With each, or the first n, of a string replaced by another.",
        (STRING, STRING, STRING, STRING),
        (STRING, STRING, STRING, INT, STRING),
    ),
    _method(
        "split",
        "Its parts between separators, at most n.",
        (STRING, STRING, list_of(STRING)),
        (STRING, STRING, INT, list_of(STRING)),
    ),
    _method(
        "substring", "The part from a position on, or up to another.", (STRING, INT, STRING), (STRING, INT, INT, STRING)
    ),
    _method("trim", "Without white space at both ends.", (STRING, STRING)),
)

BY_NAME = {function.name: function for function in (*OPERATORS, *FUNCTIONS)}
BY_ID = {overload.id: overload for function in BY_NAME.values() for overload in function.overloads}
