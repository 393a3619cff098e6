"""Find the variables of a message and the fields of its body that an expression reads."""

from __future__ import annotations

from router_trio.expressions.language.syntax import VARIABLE, Call, Literal, Logic, Name, Node, Select, walk
from router_trio.expressions.language.types import DYN, STRING, map_of

BODY, HEADERS = "body", "headers"
Path = tuple[str, ...]

_OF_SCALARS = frozenset({
    "!_", "-_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "_+_", "_-_", "_*_", "_/_", "_%_", "matches", "int",
    "uint", "double", "bool", "string", "timestamp", "duration", "contains", "startsWith", "endsWith", "charAt",
    "indexOf", "lastIndexOf", "lowerAscii", "upperAscii", "replace", "split", "substring", "trim",
    "sha256",
})  # fmt: skip
"""Functions whose arguments are rarely lists or maps."""


def reads(tree: Node) -> frozenset[str]:
    """Return the names of the variables that an expression reads."""
    return frozenset(node.name for node in walk(tree) if isinstance(node, Name) and node.meaning == VARIABLE)


def is_headers(node: Node) -> bool:
    """Return True if a node is the variable `headers`."""
    return (
        isinstance(node, Name)
        and node.meaning == VARIABLE
        and node.name == HEADERS
        and node.type == map_of(STRING, STRING)
    )


def header_name(node: Node) -> str | None:
    """Return the name of a header if the node just reads a header with a constant name, else None."""
    if isinstance(node, Select) and not node.test and is_headers(node.operand):
        return node.field
    if isinstance(node, Call) and node.function == "_[_]" and is_headers(node.arguments[0]):
        index = node.arguments[1]
        if isinstance(index, Literal) and isinstance(index.value, str):
            return index.value
    return None


def body_path(node: Node) -> Path | None:
    """Return the path of a field of the body: `()` for the body itself, None if the node is not such a field."""
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
    """Return the paths of the body that an expression reads, with True for those that may be more than a scalar.

    Return None if it reads the entire body.
    """
    found: dict[Path, bool] = {}

    def visit(node: Node, may_be_more: bool) -> bool:
        """Add the fields that are read here and below. Return False if the entire body is read."""
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
