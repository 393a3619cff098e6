"""The tree of an expression.

The checker writes into the nodes what it finds out: `type`, what a name means, which overloads a call may take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from router_trio.expressions.language.types import DYN, Type

LOCAL, VARIABLE, TYPE_VALUE = "local", "variable", "type"
"""The meaning of a name: the variable of a macro, a variable of the message, or a type."""


@dataclass(slots=True, kw_only=True)
class Node:
    """A part of an expression: where it stands in the text, its type, and how deep the tree below it is."""

    start: int
    end: int
    type: Type = DYN
    depth: int = field(default=1)

    def children(self) -> Sequence[Node]:
        """Return the parts of this part."""
        return ()


@dataclass(slots=True)
class Literal(Node):
    """A value that stands in the text. `type` says which of CEL's it is."""

    value: object


@dataclass(slots=True)
class Name(Node):
    """A variable, or a type. `absolute`: written with a dot before it, so that no variable of a macro is meant."""

    name: str
    absolute: bool = False
    meaning: str = VARIABLE
    slot: int = -1
    """The place of a macro's variable among those that are alive."""


@dataclass(slots=True)
class Select(Node):
    """`operand.field`, or with `test` the macro `has(operand.field)`."""

    operand: Node
    field: str
    test: bool = False

    def children(self) -> Sequence[Node]:
        """Return the parts of this part."""
        return (self.operand,)


@dataclass(slots=True)
class Call(Node):
    """A function, a method if `is_method`, or an operator: then `function` is a name such as `_+_`."""

    function: str
    arguments: tuple[Node, ...]
    is_method: bool = False
    overloads: tuple[str, ...] = ()
    """The ids of those that may be meant; more than one if that is known only when a message is there."""

    def children(self) -> Sequence[Node]:
        """Return the parts of this part."""
        return self.arguments


@dataclass(slots=True)
class Logic(Node):
    """A chain of `&&`, or of `||`."""

    operator: str
    parts: tuple[Node, ...]

    def children(self) -> Sequence[Node]:
        """Return the parts of this part."""
        return self.parts


@dataclass(slots=True)
class ListLiteral(Node):
    """`[a, b]`."""

    items: tuple[Node, ...]

    def children(self) -> Sequence[Node]:
        """Return the parts of this part."""
        return self.items


@dataclass(slots=True)
class MapLiteral(Node):
    """`{key: value}`."""

    entries: tuple[tuple[Node, Node], ...]

    def children(self) -> Sequence[Node]:
        """Return the parts of this part."""
        return tuple(node for entry in self.entries for node in entry)


@dataclass(slots=True)
class Macro(Node):
    """`range.all(variable, parts)` and its like; `map` has one part or two: what is taken, what is made of it."""

    name: str
    range: Node
    variable: str
    parts: tuple[Node, ...]
    slot: int = -1

    def children(self) -> Sequence[Node]:
        """Return the parts of this part."""
        return (self.range, *self.parts)


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all below it."""
    yield node
    for child in node.children():
        yield from walk(child)


def size(node: Node) -> int:
    """Return how many nodes there are."""
    return sum(1 for _ in walk(node))
