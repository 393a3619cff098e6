"""Find out which variables of a message an expression reads, and which fields of the body."""

from __future__ import annotations

from router_trio.expressions.language.syntax import VARIABLE, Call, Literal, Logic, Name, Node, Select, walk
from router_trio.expressions.language.types import DYN, STRING, map_of

BODY, HEADERS = "body", "headers"
Path = tuple[str, ...]

_OF_SCALARS = frozenset({
    "!_", "-_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "_+_", "_-_", "_*_", "_/_", "_%_", "matches", "int",
    "uint", "double", "bool", "string", "timestamp", "duration", "contains", "startsWith", "endsWith", "charAt",
    "indexOf", "lastIndexOf", "lowerAscii", "upperAscii", "replace", "split", "substring", "trim",
})  # fmt: skip
"""Functions whose arguments are hardly ever lists or maps."""


def reads(tree: Node) -> frozenset[str]:
    """Return the names of the variables that an expression reads."""
    return frozenset(node.name for node in walk(tree) if isinstance(node, Name) and node.meaning == VARIABLE)


def is_headers(node: Node) -> bool:
    """Return True for the headers of the message as a whole."""
    return (
        isinstance(node, Name)
        and node.meaning == VARIABLE
        and node.name == HEADERS
        and node.type == map_of(STRING, STRING)
    )


def header_name(node: Node) -> str | None:
    """Return the name of the header that a node reads, if it reads one of a constant name, and nothing else."""
    if isinstance(node, Select) and not node.test and is_headers(node.operand):
        return node.field
    if isinstance(node, Call) and node.function == "_[_]" and is_headers(node.arguments[0]):
        index = node.arguments[1]
        if isinstance(index, Literal) and isinstance(index.value, str):
            return index.value
    return None


def body_path(node: Node) -> Path | None:
    """Return the names from the body to this field of it: `()` for the body itself, None for what is no field of it."""
    if isinstance(node, Name):
        return () if node.meaning == VARIABLE and node.name == BODY and node.type == DYN else None
    name: object
    if isinstance(node, Select) and not node.test:
        of, name = node.operand, node.field
    elif isinstance(node, Call) and node.function == "_[_]" and isinstance(node.arguments[1], Literal):
        of, name = node.arguments[0], node.arguments[1].value
    else:
        return None
    parents = body_path(of)
    if parents is None or not isinstance(name, str) or not (name.isascii() and name.isidentifier()):
        return None
    return (*parents, name)


def body_fields(tree: Node) -> dict[Path, bool] | None:
    """Return the paths of the body that an expression reads; True for one that may be more than a scalar.

    None if it reads the body as a whole.
    """
    found: dict[Path, bool] = {}

    def visit(node: Node, may_be_more: bool) -> bool:
        """Add what is read here and below; return False once the body as a whole is."""
        path = body_path(node)
        if path is None and isinstance(node, Select) and node.test:
            path, may_be_more = body_path(Select(node.operand, node.field, start=0, end=0)), True
        if path is not None:
            found[path] = found.get(path, False) or may_be_more
            return path != ()
        if isinstance(node, Call) and node.function in ("_?_:_", "@in"):
            first, *rest = node.arguments
            return visit(first, False) and all(visit(child, True) for child in rest)
        scalars = isinstance(node, Logic) or (isinstance(node, Call) and node.function in _OF_SCALARS)
        return all(visit(child, not scalars) for child in node.children())

    return found if visit(tree, False) else None
