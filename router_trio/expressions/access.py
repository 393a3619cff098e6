"""Reads the variables of a message: only what is asked for, at the least cost.

A header is looked for in the raw block; a field of the body is read from a record of the fields that are used, if the
message has one (`body.py`), and from the whole otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from msgspec import UNSET

from router_trio.errors import EvaluationError
from router_trio.expressions.headers import FREE_HEADERS, line_start
from router_trio.expressions.language.usage import Path
from router_trio.expressions.operators import COMPARISONS, compare, field, has_field
from router_trio.expressions.values import Value

Closure = Callable[[Any], Value]
"""A compiled expression: takes the activation and returns the value."""


def variable(name: str) -> Closure:
    """Return what reads a variable."""
    if "." in name:
        return lambda message: getattr(message, name)
    return attrgetter(name)


def header(name: str) -> Closure:
    """Return what reads the first value of a header."""
    start = line_start(name)

    def read(message: Any) -> Value:
        value = message.find_header(start) if start is not None else None
        if value is None:
            raise EvaluationError(f"there is no header {name!r}")
        return value.decode("utf-8", "surrogateescape")

    return read


def has_header(name: str) -> Closure:
    """Return what says whether there is a header."""
    start = line_start(name)
    return lambda message: start is not None and message.find_header(start) is not None


def header_equals(name: str, value: str, wanted: bool) -> Closure:
    """Return what says whether the first value of a header is this one, or is not if `wanted` is false.

    Fast path of `header` and `==`; held equal by tests/unit/expressions/test_message.py.
    """
    start = line_start(name)
    if start is None:
        return header(name)
    encoded = value.encode()
    as_written = b" " + encoded + b"\r\n"
    behind = len(start)

    def read(message: Any) -> bool:
        # Of several expressions on one header, as with `first_match`, only the first one looks for it: `line_start`
        # gives all of them the same object.
        if message.found_start is start:
            return (message.found == encoded) is wanted
        block = message.header_block
        at = block.find(start)
        if at < 0:
            if len(block) > FREE_HEADERS:
                message.budget.spend(len(block) >> 4)
            raise EvaluationError(f"there is no header {name!r}")
        at += behind
        if block.startswith(as_written, at):
            if at > FREE_HEADERS:
                message.budget.spend(at >> 4)
            return wanted
        end = block.find(b"\r\n", at)
        if end > FREE_HEADERS:
            message.budget.spend(end >> 4)
        found = (block[at:end] if end >= 0 else last_value(message, block, at)).strip()
        message.found_start, message.found = start, found
        return (found == encoded) is wanted

    return read


def last_value(message: Any, block: bytes, at: int) -> bytes:
    """Return the value of a last line that has no end: a server also relays a block with one."""
    if len(block) > FREE_HEADERS:
        message.budget.spend(len(block) >> 4)
    return block[at:]


def attribute(path: Path) -> str:
    """Return the attribute of a record that holds this path of the body."""
    return ".".join(f"f_{name}" for name in path)


def body_field(path: Path) -> Closure:
    """Return what reads a field of the body."""
    get = attrgetter(attribute(path))

    def read(message: Any) -> Value:
        record = message.record
        if record is not None:
            try:
                value = get(record)
            except AttributeError:
                value = UNSET
            if value is not UNSET:
                return value
        return _walk(message.body, path)

    return read


def has_body_field(path: Path) -> Closure:
    """Return what says whether the body has a field, where its parents are there."""
    get = attrgetter(attribute(path))

    def read(message: Any) -> bool:
        record = message.record
        if record is not None:
            try:
                return get(record) is not UNSET
            except AttributeError:
                pass
        return has_field(_walk(message.body, path[:-1]), path[-1])

    return read


def body_field_compared(path: Path, function: str, bound: float) -> Closure:
    """Return what compares a field of the body with a number.

    Fast path of `body_field` and a comparison; held equal by tests/unit/expressions/test_message.py.
    """
    get = attrgetter(attribute(path))
    test = COMPARISONS[function]
    read = body_field(path)
    is_int = bound.__class__ is int
    as_double = float(bound)

    def compared(message: Any) -> bool:
        record = message.record
        try:
            value = UNSET if record is None else get(record)
        except AttributeError:  # what is above the field is not there
            value = UNSET
        if value is UNSET:
            value = read(message)
        kind = value.__class__
        if kind is float:
            return test(value, as_double)
        if kind is int and is_int:
            return test(value, bound)
        return compare(test, value, bound)

    return compared


def _walk(value: Value, path: Path) -> Value:
    for name in path:
        value = field(value, name)
    return value
