"""Compile a checked tree to closures: one for each part, from the activation to a value."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions import access, macros
from router_trio.expressions.access import Closure
from router_trio.expressions.closures import (
    Nothing,
    Watch,
    call_and_charge,
    charged_call,
    logical_and,
    logical_chain,
    logical_or,
    truth,
    watched_by,
)
from router_trio.expressions.costs import Cost, cost_of
from router_trio.expressions.functions import fields
from router_trio.expressions.functions.patterns import EXTRA, BadPattern, Pattern, matches
from router_trio.expressions.language.signatures import BY_ID
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
from router_trio.expressions.language.types import (
    BOOL,
    BYTES,
    DURATION,
    DYN,
    NULL,
    NUMBERS,
    SCALARS,
    STRING,
    TIMESTAMP,
    UINT,
)
from router_trio.expressions.language.usage import body_path, header_name, is_headers
from router_trio.expressions.operators import (
    COMPARISONS,
    FUNCTIONS,
    compare,
    dispatch_table,
    element,
    entry,
    field,
    has_field,
    has_key,
    indexed,
    no_overload,
)
from router_trio.expressions.values import LONG, TypeValue, Uint, Value, equal, is_element, key_of

LONG_IN_A_LOOP = 16
_NULLABLE = frozenset({NULL, TIMESTAMP, DURATION})
"""Types whose values may be null: the checker accepts null in place of a timestamp or a duration."""


def compiled(source: Source, tree: Node, watch: Watch | None = None) -> Closure:
    """Return the closure of a checked tree.

    With `watch`, constants are not folded, parts are not merged, and `watch` is called for each part outside of macros.
    Raises ExpressionError for an invalid regular expression, or if RE2 is not installed.
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


class _Compiler:
    """Makes the closure of each node, and of the calls of operators and functions.

    Work is done at compile time where possible: constants are folded, a call with a single possible overload does not
    check types, and the most common predicates (a header equals a string, a field of the body is compared with a
    number) are one closure each.
    """

    def __init__(self, source: Source, watch: Watch | None) -> None:
        self._source = source
        self._watch = watch
        self._constants: dict[Closure, Value] = {}
        self._looping = False
        """True while compiling the part of a macro that is evaluated for each element, where small costs add up."""

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
                raise EvaluationError("the map has a duplicate key")
            return made

        return self._folded(run, *(part for entry in entries for part in entry))

    # --- logic ---

    def _logic(self, node: Logic) -> Closure:
        parts = [self._truth(part) for part in node.parts]
        if len(parts) == 2:
            return (logical_and if node.operator == "&&" else logical_or)(*parts)
        return logical_chain(parts, node.operator == "&&")

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

    # --- constants, and arguments that cost nothing ---

    @property
    def _free(self) -> int:
        """The length up to which an argument adds nothing to the cost of a call."""
        return LONG_IN_A_LOOP if self._looping else LONG

    def _constant(self, value: Value) -> Closure:
        def constant(_message: Any) -> Value:
            return value

        self._constants[constant] = value
        return constant

    def _is_constant(self, *parts: Closure) -> bool:
        return self._watch is None and all(part in self._constants for part in parts)

    def _folded(self, run: Closure, *parts: Closure) -> Closure:
        """Return a constant closure if all `parts` are constants and `run` succeeds, else `run` itself."""
        if not self._is_constant(*parts):
            return run
        try:
            return self._constant(run(Nothing()))
        except EvaluationError:
            return run

    # --- what the arguments are ---

    def _is_headers(self, node: Node) -> bool:
        return self._watch is None and is_headers(node)

    def _truth(self, node: Node) -> Closure:
        """Return the closure of a node whose value must be a bool; it raises EvaluationError for any other value."""
        run = self.of(node)
        if node.type == BOOL:
            return run
        return truth(run)

    # --- calls ---

    def _call(self, node: Call) -> Closure:
        name = node.function
        if name == "_?_:_":
            return self._conditional(*node.arguments)
        if name == "_[_]":
            return self._index(node)
        if name == "@in":
            return self._in(*node.arguments)
        if name in ("_==_", "_!=_"):
            return self._equality(node, name == "_==_")
        parts = [self.of(argument) for argument in node.arguments]
        if name == "matches":
            return self._matches(node, parts)
        if name in fields.EDITS:
            return self._edit(node, parts)
        if name in COMPARISONS:
            return self._folded(self._comparison(node, parts), *parts)
        if name in ("dyn", "type"):
            return self._folded(self._applied(FUNCTIONS[f"{name}:a"], parts), *parts)
        if len(node.overloads) == 1 and self._is_exact(node):
            (only,) = node.overloads
            # These read no more of the text than the length of the constant.
            bounded = name in ("startsWith", "endsWith") and self._is_constant(parts[1])
            return self._folded(self._applied(FUNCTIONS[only], parts, None if bounded else cost_of(only)), *parts)
        return self._folded(self._dispatched(node, parts), *parts)

    @staticmethod
    def _is_exact(node: Call) -> bool:
        """Return True if the arguments have exactly the types of the only overload, so that no type check is needed."""
        takes = BY_ID[node.overloads[0]].takes
        pairs = zip(node.arguments, takes, strict=True)
        return all(one.type.name == kind.name and one.type not in _NULLABLE for one, kind in pairs)

    def _conditional(self, condition: Node, first: Node, second: Node) -> Closure:
        holds, one, other = self._truth(condition), self.of(first), self.of(second)
        return lambda message: one(message) if holds(message) else other(message)

    def _applied(self, function: Callable[..., Value], parts: list[Closure], cost: Cost | None = None) -> Closure:
        """Return the closure that calls a function with its arguments and charges its cost."""
        if cost is not None and (cost.before or cost.after is not None):
            return charged_call(function, parts, cost, self._free)
        if len(parts) == 1:
            (only,) = parts
            return lambda message: function(only(message))
        if len(parts) == 2:
            left, right = parts
            return lambda message: function(left(message), right(message))
        return lambda message: function(*[part(message) for part in parts])

    def _dispatched(self, node: Call, parts: list[Closure]) -> Closure:
        """Return the closure that chooses the overload by the types of the values at run time."""
        name = node.function
        table = dispatch_table(node.overloads)
        free = self._free
        choices: dict[tuple[type, ...], tuple[Callable[..., Value], Cost | None]] = {}
        for kinds, (overload, function) in table.items():
            cost = cost_of(overload)
            choices[kinds] = function, cost if cost.before is not None or cost.after is not None else None
        if len(parts) == 2:
            left, right = parts

            def call_two(message: Any) -> Value:
                one, other = left(message), right(message)
                chosen = choices.get((one.__class__, other.__class__))
                if chosen is None:
                    raise no_overload(name, (one, other))
                function, cost = chosen
                if cost is None:
                    return function(one, other)
                if cost.before is not None and (cost.always or len(one) > free):
                    cost.before(message.budget, one, other)
                result = function(one, other)
                if cost.after is not None and len(result) > free:
                    message.budget.spend(len(result) >> cost.after)
                return result

            return call_two

        if len(parts) == 1:
            (only,) = parts

            def call_one(message: Any) -> Value:
                value = only(message)
                chosen = choices.get((value.__class__,))
                if chosen is None:
                    raise no_overload(name, (value,))
                function, cost = chosen
                return function(value) if cost is None else call_and_charge(function, cost, free, message, (value,))

            return call_one

        def call(message: Any) -> Value:
            values = [part(message) for part in parts]
            chosen = choices.get(tuple([value.__class__ for value in values]))
            if chosen is None:
                raise no_overload(name, tuple(values))
            function, cost = chosen
            return function(*values) if cost is None else call_and_charge(function, cost, free, message, values)

        return call

    def _index(self, node: Call) -> Closure:
        of, index = node.arguments
        if isinstance(index, Literal) and isinstance(index.value, str):
            if self._is_headers(of):
                return access.header(index.value)
            path = body_path(node) if self._watch is None else None
            if path:
                return access.body_field(path)
        parts = [self.of(of), self.of(index)]
        exact: Callable[..., Value] = element if of.type.name == "list" else entry if of.type.name == "map" else indexed
        return self._folded(self._applied(exact, parts), *parts)

    def _in(self, what: Node, of: Node) -> Closure:
        if self._is_headers(of) and isinstance(what, Literal) and isinstance(what.value, str):
            return access.has_header(what.value)
        left, right = self.of(what), self.of(of)
        if self._is_constant(right) and not self._looping:
            values = self._constants[right]
            if values.__class__ is list and all(value.__class__ is str for value in values):
                strings = frozenset(values)

                def among(message: Any) -> bool:
                    value = left(message)
                    return value.__class__ is str and value in strings

                return self._folded(among, left)

        def contained(message: Any) -> bool:
            value, values = left(message), right(message)
            if values.__class__ is list:
                return is_element(value, values, message)
            if values.__class__ is dict:
                return has_key(values, value)
            raise no_overload("in", (value, values))

        return self._folded(contained, left, right)

    def _equality(self, node: Call, wanted: bool) -> Closure:
        one, other = node.arguments
        for name, constant in ((one, other), (other, one)):
            header = header_name(name) if self._watch is None else None
            if header is not None and isinstance(constant, Literal) and isinstance(constant.value, str):
                return access.header_equals(header, constant.value, wanted)
        left, right = self.of(one), self.of(other)
        if self._is_constant(left):
            left, right = right, left
        if self._is_constant(right) and not self._is_constant(left):
            bound = self._constants[right]
            if bound is None or bound.__class__ in (str, bytes):
                if wanted:
                    return lambda message: bool(left(message) == bound)
                return lambda message: bool(left(message) != bound)
        if one.type == other.type and one.type in SCALARS and one.type not in (STRING, BYTES):
            test = operator.eq if wanted else operator.ne
            return self._folded(lambda message: test(left(message), right(message)), left, right)
        if one.type == other.type and one.type in SCALARS:
            free = self._free

            def same(message: Any) -> bool:
                first, second = left(message), right(message)
                if len(first) > free:
                    message.budget.spend(len(first) >> 7)
                return (first == second) is wanted

            return self._folded(same, left, right)
        return self._folded(lambda message: equal(left(message), right(message), message) is wanted, left, right)

    def _comparison(self, node: Call, parts: list[Closure]) -> Closure:
        test = COMPARISONS[node.function]
        kinds = [one.type for one in node.arguments]
        right = parts[1]
        if self._is_constant(right) and kinds[1] in NUMBERS and kinds[0] == DYN:
            path, bound = body_path(node.arguments[0]), self._constants[right]
            if path:
                return access.body_field_compared(path, node.function, bound)
        if kinds[0] == kinds[1] and kinds[0] in SCALARS - _NULLABLE:
            return self._applied(test, parts, cost_of(node.overloads[0]))
        left, right = parts
        free = self._free

        def compared(message: Any) -> bool:
            one, other = left(message), right(message)
            if (
                (one.__class__ is str or one.__class__ is bytes)
                and one.__class__ is other.__class__
                and len(one) > free
            ):
                message.budget.spend(min(len(one), len(other)) >> 6)
            return compare(test, one, other)

        return compared

    def _matches(self, node: Call, parts: list[Closure]) -> Closure:
        text, pattern = parts
        literal = node.arguments[1]
        try:
            known = Pattern(self._constants[pattern]) if pattern in self._constants else None
            if known is None:
                Pattern("")
        except ImportError:
            raise self._source.error(EXTRA, node.start, node.end) from None
        except BadPattern as error:
            raise self._source.error(f"RE2 can't read the pattern: {error}", literal.start, literal.end) from None

        def found(message: Any) -> bool:
            value = text(message)
            if value.__class__ is not str:
                raise no_overload("matches", (value,))
            if known is not None:
                return known.found_in(value, message)
            wanted = pattern(message)
            if wanted.__class__ is not str:
                raise no_overload("matches", (value, wanted))
            return matches(value, wanted, message)

        return self._folded(found, text, pattern)

    def _edit(self, node: Call, parts: list[Closure]) -> Closure:
        """Return the closure of a call that changes the fields at some paths; constant paths are read here."""
        edit = fields.EDITS[node.function]
        of, *paths = parts
        for path, argument in zip(paths, node.arguments[1:], strict=True):
            if path in self._constants:
                try:
                    fields.steps(self._constants[path])
                except EvaluationError as error:
                    raise self._source.error(str(error), argument.start, argument.end) from None
        known = fields.tree_of([self._constants[path] for path in paths]) if self._is_constant(*paths) else None

        def edited(message: Any) -> Value:
            value = of(message)
            if value.__class__ is not dict and value.__class__ is not list:
                raise no_overload(node.function, (value,))
            if known is not None:
                return edit(value, known, message)
            texts = [path(message) for path in paths]
            for one in texts:
                if one.__class__ is not str:
                    raise no_overload(node.function, (value, one))
                message.budget.spend(10 + len(one))
            return edit(value, fields.tree_of(texts), message)

        return self._folded(edited, *parts)


def weight_of(node: Node) -> int:
    """Return the fixed cost of evaluating a part of an expression, independent of the message."""
    return sum(_flat(one) for one in walk(node))


def _flat(node: Node) -> int:
    if isinstance(node, Call):
        costs = [cost_of(one) for one in node.overloads]
        if node.function in ("_==_", "_!=_") and not any(isinstance(one, Literal) for one in node.arguments):
            return costs[0].flat + 3  # for checking types
        paid_for = any(one.before or one.after is not None for one in costs)
        return max(one.flat for one in costs) + (3 if paid_for else 0) + (6 if len(costs) > 1 else 0)
    return _WEIGHTS.get(type(node), 1)


_WEIGHTS: dict[type[Node], int] = {Literal: 0, Select: 3, ListLiteral: 4, MapLiteral: 6, Logic: 3, Macro: 4}
