"""Expressions of which one header decides, asked of the raw message: nothing is made of it, and nothing decoded.

For messages that come in batches from a core subscription. What an activation costs is more than such an expression.
"""

from __future__ import annotations

from collections.abc import Callable

from router_trio.errors import EvaluationError
from router_trio.expressions.access import line_start
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
    behind = len(start)

    def read(raw: RawMessage) -> bytes:
        _, _, header_size, size, tail = raw
        first = len(tail) - 2 - size
        last = first + header_size
        at = tail.find(start, first, last)
        if at < 0:
            raise EvaluationError(f"there is no header {name!r}")
        at += behind
        end = tail.find(b"\r\n", at, last)
        return tail[at : end if end >= 0 else last].strip()

    return read


def header_test(tree: Node) -> Callable[[RawMessage], bool] | None:
    """Return what says whether a header is a text, or is not, if a tree does that and nothing else.

    Fast path of `access.header_equals`; held equal by
    tests/unit/expressions/test_message.py::test_a_header_is_found_in_a_raw_message_as_in_its_block, worth 27
    instructions a message (tests/performance/test_fast_paths.py::test_a_header_that_decides_alone).
    """
    if not isinstance(tree, Call) or tree.function not in ("_==_", "_!=_"):
        return None
    one, other = tree.arguments
    if isinstance(one, Literal):
        one, other = other, one
    name = header_name(one)
    start = None if name is None else line_start(name)
    if start is None or not isinstance(other, Literal) or not isinstance(other.value, str):
        return None
    wanted = tree.function == "_==_"
    value = other.value.encode()
    as_written = start + b" " + value + b"\r\n"
    behind = len(start)

    def test(raw: RawMessage) -> bool:
        _, _, header_size, size, tail = raw
        first = len(tail) - 2 - size
        last = first + header_size
        at = tail.find(start, first, last)
        if at < 0:
            raise EvaluationError(f"there is no header {name!r}")
        if tail.startswith(as_written, at, last):
            return wanted
        end = tail.find(b"\r\n", at + behind, last)
        return (tail[at + behind : end if end >= 0 else last].strip() == value) is wanted

    return test
