"""Expressions: compiled once, evaluated for each message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.compiler import compiled
from router_trio.expressions.headers import header_test, header_value
from router_trio.expressions.language.checker import check
from router_trio.expressions.language.parser import parse
from router_trio.expressions.language.source import Source
from router_trio.expressions.language.syntax import Node
from router_trio.expressions.language.types import Type, spelled
from router_trio.expressions.language.usage import Path, body_fields, reads
from router_trio.expressions.values import CLASSES, Value, kind_name
from router_trio.protocol.framing import RawMessage


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A compiled expression. It keeps no state: the activation does."""

    text: str
    name: str
    type: Type
    """The type of its value; `dyn` if only a message tells."""
    reads: frozenset[str]
    """The variables that it reads."""
    body_fields: Mapping[Path, bool] | None
    """The paths of the body that it reads, True for one that may be more than a scalar; None if it reads the whole."""
    evaluate: Callable[[Any], Value] = field(repr=False)
    """Return the value for an activation (`Facts`). Raises EvaluationError, and nothing else."""
    _tree: Node = field(repr=False)

    @property
    def header_value(self) -> Callable[[RawMessage], bytes] | None:
        """Reads the header that the expression is from a message as it came, if it is one and nothing else."""
        return header_value(self._tree)

    @property
    def header_test(self) -> Callable[[RawMessage], bool] | None:
        """Tells of a message as it came whether one header is a text, or is not, if the expression says just that."""
        return header_test(self._tree)


def compile_expression(
    text: str, variables: Mapping[str, Type], *, result: Type | None = None, name: str = "when"
) -> Expression:
    """Return the expression, checked and compiled.

    `variables` are those that there are, with their types; `result` is the type that it must give; `name` is what
    errors call it. Raises ExpressionError, which says where the mistake is and what to do.
    """
    source = Source(text, name)
    tree = check(source, parse(source), variables, result)
    evaluate = compiled(source, tree)
    if result is not None and tree.type != result:
        evaluate = _of_type(evaluate, result)
    return Expression(text, name, tree.type, reads(tree), body_fields(tree), evaluate, tree)


def trace(expression: Expression, activation: Any) -> list[tuple[str, Value | EvaluationError]]:
    """Return what each part of an expression came to, in the order of evaluation, the whole last.

    A part is its text with its value, or with the error. Constants are left out, and so is what is within macros.
    Compiles the expression again: for people, not for each message.
    """
    source = Source(expression.text, expression.name)
    parts: list[tuple[str, Value | EvaluationError]] = []

    def watch(node: Node, value: Value | EvaluationError) -> None:
        parts.append((source.slice(node.start, node.end), value))

    try:
        compiled(source, expression._tree, watch)(activation)
    except EvaluationError as error:
        if not parts:
            parts.append((source.slice(0, len(expression.text)), error))
    return parts


def _of_type(evaluate: Callable[[Any], Value], result: Type) -> Callable[[Any], Value]:
    """Return the same, but for an error where the value is of another type than `result`."""
    wanted = CLASSES.get(result.name)
    if wanted is None:
        return evaluate

    def checked(message: Any) -> Value:
        value = evaluate(message)
        if value.__class__ is wanted:
            return value
        raise EvaluationError(f"the value is a {kind_name(value)}, and a {spelled(result)} is expected")

    return checked
