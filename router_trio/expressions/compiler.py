"""From the tree to closures: one for each part, which takes the activation and returns a value."""

from __future__ import annotations

from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions import access, macros
from router_trio.expressions.access import Closure
from router_trio.expressions.calls import Calls, weight_of
from router_trio.expressions.closures import Watch, both, either, every, watched_by
from router_trio.expressions.language.source import Source
from router_trio.expressions.language.syntax import (
    LOCAL,
    TYPE_VALUE,
    Call,
    ListLiteral,
    Literal,
    Logic,
    Macro,
    MapLiteral,
    Name,
    Node,
    Select,
    walk,
)
from router_trio.expressions.language.types import UINT
from router_trio.expressions.language.usage import body_path
from router_trio.expressions.operators import field, has_field
from router_trio.expressions.values import TypeValue, Uint, Value, key_of


def compiled(source: Source, tree: Node, watch: Watch | None = None) -> Closure:
    """Return the closure of a checked tree.

    With `watch`, nothing is folded or put together, and each part outside of macros is told of. Raises ExpressionError
    for a pattern that is not valid, or without the library that finds it.
    """
    compiler = _Compiler(source, watch)
    run = compiler.of(tree)
    places = 1 + max((node.slot for node in walk(tree) if isinstance(node, Macro)), default=-1)
    if not places:
        return run

    def bounded(message: Any) -> Value:
        message.locals = [None] * places
        return run(message)

    return bounded


class _Compiler(Calls):
    def of(self, node: Node) -> Closure:
        """Return the closure of a node."""
        match node:
            case Literal():
                return self._constant(Uint(node.value) if node.type == UINT else node.value)  # type: ignore[call-overload]
            case Name():
                run = self._name(node)
            case Select():
                run = self._select(node)
            case Logic():
                run = self._logic(node)
            case Call():
                run = self._call(node)
            case ListLiteral():
                run = self._list([self.of(item) for item in node.items])
            case MapLiteral():
                run = self._map([(self.of(key), self.of(value)) for key, value in node.entries])
            case Macro():
                run = self._macro(node)
            case _:
                raise AssertionError(node)
        if self._watch is not None and not self._looping:
            return watched_by(run, node, self._watch)
        return run

    # --- names, fields, literals ---

    def _name(self, node: Name) -> Closure:
        if node.meaning == TYPE_VALUE:
            return self._constant(TypeValue(node.name))
        if node.meaning == LOCAL:
            slot = node.slot
            return lambda message: message.locals[slot]
        return access.variable(node.name)

    def _select(self, node: Select) -> Closure:
        name = node.field
        if self._is_headers(node.operand):
            return access.has_header(name) if node.test else access.header(name)
        if self._watch is None:
            path = body_path(Select(node.operand, name, start=0, end=0))
            if path:
                return access.has_body_field(path) if node.test else access.body_field(path)
        of = self.of(node.operand)
        if node.test:
            return lambda message: has_field(of(message), name)
        return lambda message: field(of(message), name)

    def _list(self, items: list[Closure]) -> Closure:
        return self._folded(lambda message: [item(message) for item in items], *items)

    def _map(self, entries: list[tuple[Closure, Closure]]) -> Closure:
        keys = [self._constants.get(key) for key, _ in entries]
        if all(key.__class__ is str for key in keys) and len(set(keys)) == len(keys) and self._watch is None:
            values = [(key, value) for key, (_, value) in zip(keys, entries, strict=True)]
            parts = (part for entry in entries for part in entry)
            return self._folded(lambda message: {key: value(message) for key, value in values}, *parts)

        def run(message: Any) -> dict[Value, Value]:
            made = {key_of(key(message)): value(message) for key, value in entries}
            if len(made) != len(entries):
                raise EvaluationError("a key is in the map twice")
            return made

        return self._folded(run, *(part for entry in entries for part in entry))

    # --- logic ---

    def _logic(self, node: Logic) -> Closure:
        parts = [self._truth(part) for part in node.parts]
        if len(parts) == 2:
            return (both if node.operator == "&&" else either)(*parts)
        return every(parts, node.operator == "&&")

    # --- macros ---

    def _macro(self, node: Macro) -> Closure:
        of = self.of(node.range)
        outside, self._looping = self._looping, True
        *conditions, last = node.parts
        taken = [self._truth(part) for part in conditions]
        made = self.of(last) if node.name == "map" else self._truth(last)
        self._looping = outside
        weight = max(2, sum(map(weight_of, node.parts)))
        if node.name == "map":
            return macros.mapped(of, node.slot, taken[0] if taken else None, made, weight)
        macro = {
            "all": macros.all_of,
            "exists": macros.exists,
            "exists_one": macros.exists_one,
            "filter": macros.filtered,
        }[node.name]
        return macro(of, node.slot, made, weight)
