"""Closures that read the variables of a message, decoding as little as possible.

A header is searched in the raw block. A field of the body is read from a record with only the fields that expressions
use, if the payload allows one (`body.py`), else from the fully decoded body.
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
"""A compiled expression: a function from the activation (`Facts`) to the value."""


def variable(name: str) -> Closure:
    """Return a closure that reads a variable."""
    if "." in name:
        return lambda message: getattr(message, name)
    return attrgetter(name)


def header(name: str) -> Closure:
    """Return a closure that reads the first value of a header. It raises EvaluationError if there is none."""
    start = line_start(name)

    def read(message: Any) -> Value:
        value = message.find_header(start) if start is not None else None
        if value is None:
            raise EvaluationError(f"there is no header {name!r}")
        return value.decode("utf-8", "surrogateescape")

    return read


def has_header(name: str) -> Closure:
    """Return a closure that tests whether the message has a header."""
    start = line_start(name)
    return lambda message: start is not None and message.find_header(start) is not None


def header_equals(name: str, value: str, wanted: bool) -> Closure:
    """Return a closure that tests whether the first value of a header equals `value`; differs, if `wanted` is False.

    Fast path of `header` and `==`; held equal by tests/unit/expressions/test_message.py.
    """
    start = line_start(name)
    if start is None:
        return header(name)
    encoded = value.encode()
    as_written = b" " + encoded + b"\r\n"
    behind = len(start)

    def read(message: Any) -> bool:
        # If several expressions test the same header, as with `first_match`, only the first one searches it:
        # `line_start` returns the same object to all of them.
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
    """Return the value of an unterminated last line, which servers relay too."""
    if len(block) > FREE_HEADERS:
        message.budget.spend(len(block) >> 4)
    return block[at:]


def attribute(path: Path) -> str:
    """Return the dotted attribute name under which a record has this path of the body."""
    return ".".join(f"f_{name}" for name in path)


def body_field(path: Path) -> Closure:
    """Return a closure that reads a field of the body."""
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
    """Return a closure that tests whether the body has a field. It raises EvaluationError if a parent is missing."""
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
    """Return a closure that compares a field of the body with a number.

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
        except AttributeError:  # a parent of the field is missing
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
