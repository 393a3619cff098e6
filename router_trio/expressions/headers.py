"""Find the line of one header in a raw block, without reading the others.

An expression that one header decides is evaluated on the raw message: nothing is made of it, and nothing decoded. That
is for messages that come in batches from a core subscription, where an activation costs more than such an expression.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from router_trio.errors import EvaluationError
from router_trio.expressions.language.syntax import Call, Literal, Node
from router_trio.expressions.language.usage import header_name
from router_trio.protocol.framing import RawMessage

FREE_HEADERS = 4096
"""Bytes of a header block in which headers are looked for at no cost: some 20 µs at most."""
MAX_NAMES = 1024
"""Names of headers that are remembered; those of the expressions, none that a message brings."""


@lru_cache(MAX_NAMES)
def line_start(name: str) -> bytes | None:
    """Return what the line of this header begins with, or None if no header is so named."""
    if any(mark in name for mark in ":\r\n"):
        return None
    return b"\r\n" + name.encode() + b":"


def first_value(start: bytes, text: bytes, first: int, last: int) -> bytes | None:
    """Return the first value of the header whose line begins with `start`, in the block `text[first:last]`."""
    at = text.find(start, first, last)
    if at < 0:
        return None
    at += len(start)
    end = text.find(b"\r\n", at, last)
    return text[at : end if end >= 0 else last].strip()


def header_value(tree: Node) -> Callable[[RawMessage], bytes] | None:
    """Return what reads the header that a tree is, and nothing else, as it came; None for any other tree.

    It raises EvaluationError if there is none.
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
    """Return what says whether a header is a text, or is not, if a tree does that and nothing else."""
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
