"""Expressions of which one header decides, asked of the raw message: nothing is made of it, and nothing decoded.

For messages that come in batches from a core subscription. What an activation costs is more than such an expression.
"""

from __future__ import annotations

from collections.abc import Callable

from router_trio.errors import EvaluationError
from router_trio.expressions.header_lines import first_value, line_start
from router_trio.expressions.language.syntax import Call, Literal, Node
from router_trio.expressions.language.usage import header_name
from router_trio.protocol.framing import RawMessage


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
