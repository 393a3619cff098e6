"""Find one header in a raw block without parsing the others.

An expression that depends on a single header is evaluated on the raw message, without creating an activation or
decoding anything. This is for batches of messages from a core subscription, where creating an activation costs more
than evaluating such an expression.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from router_trio.errors import EvaluationError
from router_trio.expressions.language.syntax import Call, Literal, Node
from router_trio.expressions.language.usage import header_name
from router_trio.protocol.framing import RawMessage

FREE_HEADERS = 4096
"""Bytes up to which a header block is searched free of charge: about 20 µs at most."""
MAX_NAMES = 1024
"""Maximum number of cached header names. They come from expressions, never from messages."""


@lru_cache(MAX_NAMES)
def line_start(name: str) -> bytes | None:
    """Return the bytes that start the line of this header, or None if it is not a valid header name."""
    if any(mark in name for mark in ":\r\n"):
        return None
    return b"\r\n" + name.encode() + b":"


def first_value(start: bytes, text: bytes, first: int, last: int) -> bytes | None:
    """Return the first value of the header whose line begins with `start`, in the block `text[first:last]`, or None."""
    at = text.find(start, first, last)
    if at < 0:
        return None
    at += len(start)
    end = text.find(b"\r\n", at, last)
    return text[at : end if end >= 0 else last].strip()


def header_value(tree: Node) -> Callable[[RawMessage], bytes] | None:
    """Return a function that reads a header's raw value, if the tree is just a header; None for any other tree.

    The function raises EvaluationError if the message does not have the header.
    """
    name = header_name(tree)
    start = None if name is None else line_start(name)
    if start is None:
        return None

    def read(raw: RawMessage) -> bytes:
        _, _, header_size, size, tail = raw
        first = len(tail) - 2 - size
        value = first_value(start, tail, first, first + header_size)
        if value is None:
            raise EvaluationError(f"there is no header {name!r}")
        return value

    return read


def header_test(tree: Node) -> Callable[[RawMessage], bool] | None:
    """Return a predicate on raw messages, if the tree just compares a header with a string; None for any other tree."""
    if not isinstance(tree, Call) or tree.function not in ("_==_", "_!=_"):
        return None
    one, other = tree.arguments
    if isinstance(one, Literal):
        one, other = other, one
    read = header_value(one)
    if read is None or not isinstance(other, Literal) or not isinstance(other.value, str):
        return None
    wanted = tree.function == "_==_"
    value = other.value.encode()
    return lambda raw: (read(raw) == value) is wanted
