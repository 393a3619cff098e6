"""The type checker: resolves the types, names and overloads of each part of an expression.

A value whose type depends on the message has the type `dyn`, which fits everywhere: its type is checked at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router_trio.errors import ExpressionError
from router_trio.expressions.language.parser import FUNCTIONS as MARKS
from router_trio.expressions.language.parser import MACROS
from router_trio.expressions.language.signatures import BY_NAME, Function, Overload
from router_trio.expressions.language.source import Source, suggestion
from router_trio.expressions.language.syntax import (
    LOCAL,
    TYPE_VALUE,
    VARIABLE,
    Call,
    ListLiteral,
    Literal,
    Logic,
    Macro,
    MapLiteral,
    Name,
    Node,
    Select,
)
from router_trio.expressions.language.types import (
    BOOL,
    DYN,
    INT,
    KEYS,
    NUMBERS,
    STRING,
    TYPE_NAMES,
    Solution,
    Type,
    list_of,
    map_of,
    spelled,
    type_of,
)


def check(source: Source, tree: Node, variables: Mapping[str, Type], result: Type | None) -> Node:
    """Return the tree with the types of its parts. Raises ExpressionError for the first mistake.

    `result` is the type that the expression must have. A type `dyn` is accepted, and checked at run time.
    """
    checker = _Checker(source, variables)
    tree = checker.check(tree)
    found = checker.solution.resolved(tree.type)
    if result is not None and not checker.solution.fit_all([found], [result]):
        message = f"this is of type {spelled(found)}, but {spelled(result)} is expected"
        raise source.error(message, tree.start, tree.end, entire=True)
    checker.settle(tree)
    return tree


@dataclass(frozen=True, slots=True)
class _Local:
    """A variable of a macro."""

    name: str
    type: Type
    slot: int


class _Checker:
    def __init__(self, source: Source, variables: Mapping[str, Type]) -> None:
        self.solution = Solution()
        self._source = source
        self._variables = variables
        self._locals: list[_Local] = []

    def settle(self, tree: Node) -> None:
        """Replace the type parameters in all nodes by the types that they stand for."""
        tree.type = self.solution.resolved(tree.type, open_as=DYN)
        for child in tree.children():
            self.settle(child)

    def check(self, node: Node) -> Node:
        """Check a node and all nodes below it. Return the node, or the one to put in its place."""
        match node:
            case Literal():
                return node
            case Name():
                return self._name(node)
            case Select():
                return self._select(node)
            case Logic():
                node.parts = tuple(self._truth(part, node.operator) for part in node.parts)
                node.type = BOOL
                return node
            case Call():
                return self._call(node)
            case ListLiteral():
                node.items = tuple(map(self.check, node.items))
                node.type = list_of(self._common(node.items))
                return node
            case MapLiteral():
                return self._map(node)
            case Macro():
                return self._macro(node)
        raise AssertionError(node)

    # --- names and fields ---

    def _name(self, node: Name) -> Node:
        if not node.absolute:
            for local in reversed(self._locals):
                if local.name == node.name:
                    node.meaning, node.type, node.slot = LOCAL, local.type, local.slot
                    return node
        if not self._resolve(node, node.name):
            known = [*self._variables, *(local.name for local in self._locals), *TYPE_NAMES]
            hint = suggestion(node.name, known)
            if not hint and node.name in BY_NAME:
                hint = f": {node.name} is a function, so call it"
            if not hint:
                hint = f": quote it if it is text; the variables are {', '.join(self._variables) or 'none'}"
            raise self._error(f"there is no variable {node.name!r}", node, hint)
        return node

    def _resolve(self, node: Name, name: str) -> bool:
        if name in self._variables:
            node.meaning, node.type = VARIABLE, self._variables[name]
        elif name in TYPE_NAMES:
            node.meaning, node.type = TYPE_VALUE, type_of(TYPE_NAMES[name])
        else:
            return False
        return True

    def _select(self, node: Select) -> Node:
        qualified = None if node.test else self._qualified(node)
        if qualified is not None:
            return qualified
        node.operand = self.check(node.operand)
        of = self.solution.resolved(node.operand.type)
        if of.name == "map" and not of.is_parameter:
            self._must_fit(STRING, of.parameters[0], node, f"the keys of this {spelled(of)} are not strings")
            node.type = of.parameters[1]
        elif of == DYN or of.is_parameter:
            self.solution.fit_all([of], [DYN])
            node.type = DYN
        else:
            hint = suggestion(node.field, BY_NAME)
            raise self._error(f"{_a(spelled(of))} has no fields, so it has no {node.field!r}", node, hint)
        if node.test:
            node.type = BOOL
        return node

    def _qualified(self, node: Select) -> Node | None:
        """Return the variable or type with this dotted name, or None if there is none."""
        parts, at = [node.field], node.operand
        while isinstance(at, Select) and not at.test:
            parts.append(at.field)
            at = at.operand
        if not isinstance(at, Name):
            return None
        if not at.absolute and any(local.name == at.name for local in self._locals):
            return None
        name = Name(".".join([at.name, *reversed(parts)]), at.absolute, start=node.start, end=node.end)
        return name if self._resolve(name, name.name) else None

    # --- literals ---

    def _common(self, nodes: Sequence[Node]) -> Type:
        """Return the common type of the nodes, `dyn` if they differ."""
        if not nodes:
            return self.solution.fresh()
        common = nodes[0].type
        for node in nodes[1:]:
            common = self.solution.join(common, node.type) or DYN
        return common

    def _map(self, node: MapLiteral) -> Node:
        node.entries = tuple((self.check(key), self.check(value)) for key, value in node.entries)
        for key, _ in node.entries:
            kind = self.solution.resolved(key.type)
            if kind not in KEYS and kind != DYN and not kind.is_parameter:
                raise self._error(f"a key must be a string, int, uint or bool, not {_a(spelled(kind))}", key)
        keys = self._common([key for key, _ in node.entries])
        node.type = map_of(keys, self._common([value for _, value in node.entries]))
        return node

    # --- macros, operators and functions ---

    def _macro(self, node: Macro) -> Node:
        node.range = self.check(node.range)
        of = self.solution.resolved(node.range.type)
        if of.is_parameter or of == DYN:
            self.solution.fit_all([of], [DYN])
            element = DYN
        elif of.name in ("list", "map"):
            element = of.parameters[0]
        else:
            message = f"{node.name}() iterates over a list or the keys of a map, not over {_a(spelled(of))}"
            raise self._error(message, node.range)
        node.slot = len(self._locals)
        self._locals.append(_Local(node.variable, element, node.slot))
        *conditions, last = node.parts
        taken = [self._truth(part, node.name) for part in conditions]
        if node.name == "map":
            last = self.check(last)
            node.type = list_of(last.type)
        else:
            last = self._truth(last, node.name)
            node.type = list_of(element) if node.name == "filter" else BOOL
        node.parts = (*taken, last)
        self._locals.pop()
        return node

    def _truth(self, node: Node, where: str) -> Node:
        node = self.check(node)
        if not self.solution.fit_all([node.type], [BOOL]):
            kind = spelled(self.solution.resolved(node.type))
            raise self._error(f"{where} takes a bool, but this is of type {kind}", node)
        return node

    def _call(self, node: Call) -> Node:
        function = BY_NAME.get(node.function)
        if function is None:
            raise self._unknown(node)
        node.arguments = tuple(map(self.check, node.arguments))
        given = [argument.type for argument in node.arguments]
        # With an argument of type `dyn` the result type is unknown too: it is not inferred from the overload.
        open_as = DYN if any(self.solution.resolved(one) == DYN for one in given) else None
        found: list[str] = []
        gives: Type | None = None
        for overload in function.overloads:
            if overload.method != node.is_method:
                continue
            *takes, result = self.solution.instance((*overload.takes_for(len(given)), overload.gives))
            if not self.solution.fit_all(given, takes):
                continue
            found.append(overload.id)
            result = self.solution.resolved(result, open_as=open_as)
            gives = result if gives in (None, result) else DYN
        if gives is None:
            raise self._mismatch(node, function, [self.solution.resolved(one) for one in given])
        node.overloads = tuple(found)
        node.type = gives
        return node

    # --- mistakes ---

    def _error(self, message: str, node: Node, hint: str = "") -> ExpressionError:
        return self._source.error(message, node.start, node.end, hint=hint)

    def _must_fit(self, given: Type, wanted: Type, node: Node, message: str) -> None:
        if not self.solution.fit_all([given], [wanted]):
            raise self._error(message, node)

    def _unknown(self, node: Call) -> ExpressionError:
        called = "method" if node.is_method else "function"
        if node.function in MACROS or node.function == "has":
            counts = " or ".join(str(one) for one in MACROS.get(node.function, (1,)))
            written = f"list.{node.function}(x, ...)" if node.function in MACROS else "has(map.key)"
            return self._error(f"{node.function} takes {counts} arguments: {written}", node)
        names = [name for name in BY_NAME if name.isidentifier()]
        hint = suggestion(node.function, [*names, *MACROS])
        return self._error(f"there is no {called} {node.function!r}", node, hint)

    def _mismatch(self, node: Call, function: Function, given: list[Type]) -> ExpressionError:
        names = [spelled(one) for one in given]
        if node.function == "_[_]":
            return self._error(_index_mistake(given, names), node.arguments[1])
        if node.function == "_?_:_":
            if not self.solution.fit_all(given[:1], [BOOL]):
                return self._error(f"a condition must be a bool, but this is of type {names[0]}", node.arguments[0])
            problem = f"both sides of a conditional must have one type, but these are {names[1]} and {names[2]}"
            return self._error(f"{problem}: put dyn(...) around one", node)
        if function.shown:
            mark = node.function.strip("_@")
            problem = f"{mark} can't be applied to {' and '.join(names)}"
            if node.function in ("_==_", "_!=_") or node.function in (MARKS[one] for one in ("<", "<=", ">", ">=")):
                problem = f"{_a(names[0])} can't be compared with {_a(names[1])}"
            return self._error(f"{problem}{_cure(node, given)}", node)
        ways = [one for one in function.overloads if one.method == node.is_method]
        if not ways:
            *_, one = function.overloads
            return self._error(f"{node.function} is called as {_shown(node.function, one)}", node)
        shown = ", ".join(dict.fromkeys(_shown(node.function, one) for one in ways))
        return self._error(f"{node.function} can't be called with {', '.join(names) or 'nothing'}: use {shown}", node)


def _a(name: str) -> str:
    return f"an {name}" if name == "int" else f"a {name}"


def _index_mistake(given: list[Type], names: list[str]) -> str:
    of = given[0]
    if of.name == "list":
        return f"the index of a list must be an int, but this is {_a(names[1])}"
    if of.name == "map":
        return f"the keys of this map are of type {spelled(of.parameters[0])}, but this is {_a(names[1])}"
    return f"{_a(names[0])} has no elements"


def _cure(node: Call, given: list[Type]) -> str:
    """Return advice for an operator whose two sides don't fit, `""` if there is none."""
    if len(given) != 2:
        return ""
    left, right = given
    if {left, right} <= NUMBERS and left != right:
        other = node.arguments[1]
        if isinstance(other, Literal) and right == INT and left.name == "double":
            return f": write {other.value}.0"
        return f": convert one of them, as in {left.name}(...)"
    if STRING in (left, right) and (left in NUMBERS or right in NUMBERS):
        number = left if left in NUMBERS else right
        return f": convert the string with {number.name}(...), or the {number.name} with string(...)"
    return ""


def _shown(name: str, overload: Overload) -> str:
    takes = [spelled(one) for one in overload.takes] + ["..."] * overload.repeats
    if overload.method:
        return f"{takes[0]}.{name}({', '.join(takes[1:])})"
    return f"{name}({', '.join(takes)})"
