"""The syntax tree of an expression.

The checker fills in the nodes: `type`, the meaning of a name, and the possible overloads of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from router_trio.expressions.language.types import DYN, Type

LOCAL, VARIABLE, TYPE_VALUE = "local", "variable", "type"
"""The meanings of a name: the variable of a macro, a variable of the message, or a type."""


@dataclass(slots=True, kw_only=True)
class Node:
    """A part of an expression: its position in the text, its type, and the depth of the tree from here down."""

    start: int
    end: int
    type: Type = DYN
    depth: int = field(default=1)

    def children(self) -> Sequence[Node]:
        """Return the direct children of this node."""
        return ()


@dataclass(slots=True)
class Literal(Node):
    """A literal value."""

    value: object


@dataclass(slots=True)
class Name(Node):
    """A variable or a type. If `absolute`, a dot precedes the name, so that it can't be the variable of a macro."""

    name: str
    absolute: bool = False
    meaning: str = VARIABLE
    slot: int = -1
    """The index of a macro's variable in `Facts.locals`."""


@dataclass(slots=True)
class Select(Node):
    """A field access `operand.field`, or with `test` the macro `has(operand.field)`."""

    operand: Node
    field: str
    test: bool = False

    def children(self) -> Sequence[Node]:
        return (self.operand,)


@dataclass(slots=True)
class Call(Node):
    """A call of a function, of a method if `is_method`, or of an operator, whose `function` is a name such as `_+_`."""

    function: str
    arguments: tuple[Node, ...]
    is_method: bool = False
    overloads: tuple[str, ...] = ()
    """The ids of the overloads that may be called; more than one if the choice depends on the message."""

    def children(self) -> Sequence[Node]:
        return self.arguments


@dataclass(slots=True)
class Logic(Node):
    """A chain of `&&`, or of `||`."""

    operator: str
    parts: tuple[Node, ...]

    def children(self) -> Sequence[Node]:
        return self.parts


@dataclass(slots=True)
class ListLiteral(Node):
    """A list literal: `[a, b]`."""

    items: tuple[Node, ...]

    def children(self) -> Sequence[Node]:
        return self.items


@dataclass(slots=True)
class MapLiteral(Node):
    """A map literal: `{key: value}`."""

    entries: tuple[tuple[Node, Node], ...]

    def children(self) -> Sequence[Node]:
        return tuple(node for entry in self.entries for node in entry)


@dataclass(slots=True)
class Macro(Node):
    """A macro such as `range.all(variable, part)`. `map` has one or two parts: an optional condition and the result."""

    name: str
    range: Node
    variable: str
    parts: tuple[Node, ...]
    slot: int = -1

    def children(self) -> Sequence[Node]:
        return (self.range, *self.parts)


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes below it."""
    yield node
    for child in node.children():
        yield from walk(child)


def size(node: Node) -> int:
    """Return the number of nodes of a tree."""
    return sum(1 for _ in walk(node))
