"""The parser: from tokens to the tree, with macros recognized. It follows the grammar of CEL's language definition."""

from __future__ import annotations

from typing import TypeVar

from router_trio.expressions.language.lexer import KEYWORDS, RESERVED, Token, tokens
from router_trio.expressions.language.source import Source
from router_trio.expressions.language.syntax import (
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
from router_trio.expressions.language.types import BOOL, BYTES, DOUBLE, INT, NULL, STRING, UINT

MAX_TEXT = 8192
"""Maximum number of characters of an expression, about a page of text."""
MAX_NODES = 1000
"""Maximum number of parts. Each is evaluated at most once per message (in a macro within MAX_COST), in about 50 ns."""
MAX_DEPTH = 80
"""Maximum depth of the tree, as of a sum of 80 terms. A level takes one stack frame to evaluate, three to compile."""
MAX_NESTED = 40
"""Maximum nesting of parentheses, brackets, braces and calls. Each level takes seven stack frames to parse."""

MACROS = {"all": (2,), "exists": (2,), "exists_one": (2,), "map": (2, 3), "filter": (2,)}
"""The macros that iterate over a list or a map, with the numbers of arguments that they accept."""

LEVELS = (("||",), ("&&",), ("==", "!=", "<", "<=", ">", ">=", "in"), ("+", "-"), ("*", "/", "%"))
"""The binary operators, from the lowest precedence to the highest."""
LEVEL_OF = {mark: level for level, marks in enumerate(LEVELS) for mark in marks}
FUNCTIONS = {mark: f"_{mark}_" for mark in LEVEL_OF} | {"in": "@in"}

_LITERALS = {"int": INT, "uint": UINT, "double": DOUBLE, "string": STRING, "bytes": BYTES}
_CONSTANTS = {"true": (BOOL, True), "false": (BOOL, False), "null": (NULL, None)}
_LARGEST = {"int": 2**63 - 1, "uint": 2**64 - 1}


def parse(source: Source) -> Node:
    """Return the tree of an expression. Raises ExpressionError if it is invalid, too long or nested too deeply."""
    if len(source.text) > MAX_TEXT:
        raise source.error(f"the expression is longer than {MAX_TEXT} characters", MAX_TEXT)
    return _Parser(source).parse()


_N = TypeVar("_N", bound=Node)


class _Parser:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._tokens = tokens(source)
        self._at = 0
        self._nodes = 0
        self._nested = 0

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def parse(self) -> Node:
        if self._next.kind == "end":
            raise self._source.error("the expression is empty", 0)
        node = self._expression()
        if self._next.kind != "end":
            raise self._unexpected("an operator or the end")
        return node

    # --- the tokens ---

    def _take(self, *kinds: str) -> Token | None:
        token = self._next
        if token.kind not in kinds:
            return None
        self._at += 1
        return token

    def _need(self, kind: str, where: str) -> Token:
        return self._take(kind) or self._fail(repr(kind), f" {where}")

    def _fail(self, wanted: str, where: str = "") -> Token:
        raise self._unexpected(wanted, where)

    def _unexpected(self, wanted: str, where: str = "") -> Exception:
        token = self._next
        if token.kind == "end":
            return self._source.error(f"the expression ends where {wanted} is expected{where}", token.start)
        there = self._source.slice(token.start, token.end)
        return self._source.error(f"{wanted} is expected here{where}, not {there!r}", token.start, token.end)

    def _made(self, node: _N) -> _N:
        """Set the depth of a new node and return it. Raises ExpressionError beyond MAX_NODES or MAX_DEPTH."""
        self._nodes += 1
        node.depth = 1 + max((child.depth for child in node.children()), default=0)
        if self._nodes > MAX_NODES:
            raise self._source.error(f"the expression has more than {MAX_NODES} parts", node.start)
        if node.depth > MAX_DEPTH:
            raise self._source.error(f"the expression is nested more than {MAX_DEPTH} levels deep", node.start)
        return node

    # --- the grammar, from the lowest precedence ---

    def _expression(self) -> Node:
        self._nested += 1
        if self._nested > MAX_NESTED:
            raise self._source.error(f"the expression is nested more than {MAX_NESTED} levels deep", self._next.start)
        node = self._binary(0)
        if self._take("?"):
            first = self._binary(0)
            self._need(":", "between the two sides of a conditional")
            second = self._expression()
            node = self._made(Call("_?_:_", (node, first, second), start=node.start, end=second.end))
        self._nested -= 1
        return node

    def _binary(self, level: int) -> Node:
        """Parse operators of at least this precedence level."""
        node = self._unary()
        while (found := LEVEL_OF.get(self._next.kind, -1)) >= level:
            mark = self._next.kind
            if mark in ("&&", "||"):
                parts = [node]
                while self._take(mark):
                    parts.append(self._binary(found + 1))
                node = self._made(Logic(mark, tuple(parts), start=node.start, end=parts[-1].end))
            else:
                self._at += 1
                right = self._binary(found + 1)
                node = self._made(Call(FUNCTIONS[mark], (node, right), start=node.start, end=right.end))
        return node

    def _unary(self) -> Node:
        signs: list[Token] = []
        while token := self._take("!", "-"):
            if signs and token.kind != signs[-1].kind:
                raise self._source.error("put parentheses between '!' and '-'", token.start)
            signs.append(token)
        if signs and signs[-1].kind == "-" and self._next.kind in ("int", "double"):
            node = self._member(negative=signs.pop())
        else:
            node = self._member()
        for sign in reversed(signs):
            node = self._made(Call(f"{sign.kind}_", (node,), start=sign.start, end=node.end))
        return node

    def _member(self, negative: Token | None = None) -> Node:
        node = self._primary() if negative is None else self._number(negative.start, -1)
        while True:
            if self._take("."):
                node = self._selected(node)
            elif self._take("["):
                index = self._expression()
                end = self._need("]", "after an index").end
                node = self._made(Call("_[_]", (node, index), start=node.start, end=end))
            elif self._next.kind == "{" and isinstance(node, Name | Select):
                raise self._source.error(
                    "message types are not supported: use a map, {'name': value}", node.start, node.end
                )
            else:
                return node

    def _selected(self, operand: Node) -> Node:
        token = self._take("name", "quoted") or self._fail("the name of a field")
        name = str(token.value)
        if token.kind == "name" and self._take("("):
            arguments, end = self._arguments()
            return self._method(operand, name, token, arguments, end)
        return self._made(Select(operand, name, start=operand.start, end=token.end))

    def _method(self, operand: Node, name: str, token: Token, arguments: list[Node], end: int) -> Node:
        if len(arguments) not in MACROS.get(name, ()):
            return self._made(Call(name, (operand, *arguments), True, start=operand.start, end=end))
        variable, *parts = arguments
        if not isinstance(variable, Name) or variable.absolute:
            raise self._source.error(
                f"the first argument of {name}() is a variable, as in list.{name}(x, ...)", variable.start, variable.end
            )
        return self._made(Macro(name, operand, variable.name, tuple(parts), start=operand.start, end=end))

    def _arguments(self) -> tuple[list[Node], int]:
        arguments: list[Node] = []
        if token := self._take(")"):
            return arguments, token.end
        arguments.append(self._expression())
        while self._take(","):
            arguments.append(self._expression())
        return arguments, self._need(")", "after the arguments").end

    def _primary(self) -> Node:
        token = self._next
        if token.kind in ("name", "."):
            return self._named()
        if self._take("("):
            node = self._expression()
            node.end = self._need(")", "after an expression in parentheses").end
            node.start = token.start
            return node
        if self._take("["):
            return self._list(token.start)
        if self._take("{"):
            return self._map(token.start)
        if token.kind in _CONSTANTS:
            self._at += 1
            kind, value = _CONSTANTS[token.kind]
            return self._made(Literal(value, type=kind, start=token.start, end=token.end))
        if token.kind in ("int", "uint", "double"):
            return self._number(token.start, 1)
        if token.kind in _LITERALS:
            self._at += 1
            return self._made(Literal(token.value, type=_LITERALS[token.kind], start=token.start, end=token.end))
        raise self._unexpected("a value")

    def _number(self, start: int, sign: int) -> Node:
        token = self._tokens[self._at]
        self._at += 1
        value = token.value
        assert isinstance(value, int | float)
        if token.kind != "double" and not -_LARGEST[token.kind] - (sign < 0) <= sign * value <= _LARGEST[token.kind]:
            raise self._source.error(f"the number is out of range for {token.kind}", start, token.end)
        return self._made(Literal(sign * value, type=_LITERALS[token.kind], start=start, end=token.end))

    def _named(self) -> Node:
        start = self._next.start
        absolute = self._take(".") is not None
        token = self._take("name") or self._fail("a name")
        name = str(token.value)
        if name in RESERVED or name in KEYWORDS:
            raise self._source.error(f"{name!r} is a reserved word and can't be a name", token.start, token.end)
        if not self._take("("):
            return self._made(Name(name, absolute, start=start, end=token.end))
        arguments, end = self._arguments()
        if name == "has" and len(arguments) == 1:
            field = arguments[0]
            if not isinstance(field, Select) or field.test:
                raise self._source.error(
                    "has() takes a field, as in has(body.total); for other keys use 'key' in map",
                    field.start,
                    field.end,
                )
            return self._made(Select(field.operand, field.field, True, start=start, end=end))
        return self._made(Call(name, tuple(arguments), start=start, end=end))

    def _list(self, start: int) -> Node:
        items: list[Node] = []
        while self._next.kind != "]":
            items.append(self._expression())
            if not self._take(","):
                break
        end = self._need("]", "after the elements of a list").end
        return self._made(ListLiteral(tuple(items), start=start, end=end))

    def _map(self, start: int) -> Node:
        entries: list[tuple[Node, Node]] = []
        while self._next.kind != "}":
            key = self._expression()
            self._need(":", "between a key and its value")
            entries.append((key, self._expression()))
            if not self._take(","):
                break
        end = self._need("}", "after the entries of a map").end
        return self._made(MapLiteral(tuple(entries), start=start, end=end))
