"""Types each part of an expression, finds what its names mean and which overloads may be called.

What is known only when a message is there has the type `dyn`, which fits everywhere: such mistakes are found then.
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
    """Return the tree with the types of its parts. Raises ExpressionError at the first mistake.

    `result` is the type that the whole must have; one that is `dyn` may turn out to have it.
    """
    checker = _Checker(source, variables)
    tree = checker.check(tree)
    found = checker.solution.resolved(tree.type)
    if result is not None and not checker.solution.fit_all([found], [result]):
        told = f"this is of type {spelled(found)}, and a {spelled(result)} is expected"
        raise source.error(told, tree.start, tree.end, whole=True)
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
        """Put what type parameters stand for in their place, in all nodes."""
        tree.type = self.solution.resolved(tree.type, open_as=DYN)
        for child in tree.children():
            self.settle(child)

    def check(self, node: Node) -> Node:
        """Type a node and all below it; return what stands in its place."""
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
                hint = f": {node.name} is a function, call it"
            if not hint:
                hint = f": text is in quotes, and there is {', '.join(self._variables) or 'none'}"
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
            self._must_fit(STRING, of.parameters[0], node, f"a key of this {spelled(of)} is no string")
            node.type = of.parameters[1]
        elif of == DYN or of.is_parameter:
            self.solution.fit_all([of], [DYN])
            node.type = DYN
        else:
            hint = suggestion(node.field, BY_NAME)
            raise self._error(f"a {spelled(of)} has no fields, as {node.field!r} would be one", node, hint)
        if node.test:
            node.type = BOOL
        return node

    def _qualified(self, node: Select) -> Node | None:
        """Return the variable or type whose name has dots in it, if this is one."""
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
        """Return the type that all of these have, `dyn` if they differ."""
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
                raise self._error(f"a key is a string, int, uint or bool, and no {spelled(kind)}", key)
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
            raise self._error(f"{node.name}() goes over a list or the keys of a map, not a {spelled(of)}", node.range)
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
            raise self._error(f"{where} takes what is true or false, and this is of type {kind}", node)
        return node

    def _call(self, node: Call) -> Node:
        function = BY_NAME.get(node.function)
        if function is None:
            raise self._unknown(node)
        node.arguments = tuple(map(self.check, node.arguments))
        given = [argument.type for argument in node.arguments]
        # What a value of type `dyn` holds may be anything: it is not found out from how it is used.
        open_as = DYN if any(self.solution.resolved(one) == DYN for one in given) else None
        found: list[str] = []
        gives: Type | None = None
        for overload in function.overloads:
            if overload.method != node.is_method:
                continue
            *takes, result = self.solution.instance((*overload.takes, overload.gives))
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
                return self._error(f"a condition is true or false, and this is of type {names[0]}", node.arguments[0])
            told = f"both sides of a conditional are of one type, and these are {names[1]} and {names[2]}"
            return self._error(f"{told}: put dyn(...) around one", node)
        if function.shown:
            mark = node.function.strip("_@")
            told = f"{mark} takes no {' and '.join(names)}"
            if node.function in ("_==_", "_!=_") or node.function in (MARKS[one] for one in ("<", "<=", ">", ">=")):
                told = f"{_a(names[0])} is never compared with {_a(names[1])}"
            return self._error(f"{told}{_cure(node, given)}", node)
        ways = [one for one in function.overloads if one.method == node.is_method]
        if not ways:
            *_, one = function.overloads
            return self._error(f"{node.function} is called as {_shown(node.function, one)}", node)
        shown = ", ".join(dict.fromkeys(_shown(node.function, one) for one in ways))
        return self._error(f"{node.function} can't be given {', '.join(names) or 'nothing'}: there is {shown}", node)


def _a(name: str) -> str:
    return f"an {name}" if name == "int" else f"a {name}"


def _index_mistake(given: list[Type], names: list[str]) -> str:
    of = given[0]
    if of.name == "list":
        return f"a list is indexed by an int, and this is a {names[1]}"
    if of.name == "map":
        return f"a key of this map is a {spelled(of.parameters[0])}, and this is a {names[1]}"
    return f"a {names[0]} has no elements"


def _cure(node: Call, given: list[Type]) -> str:
    """Return what to do about an operator whose two sides don't fit."""
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
    takes = [spelled(one) for one in overload.takes]
    if overload.method:
        return f"{takes[0]}.{name}({', '.join(takes[1:])})"
    return f"{name}({', '.join(takes)})"
