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
    """A compiled expression. It is stateless: all state of an evaluation is in the activation."""

    text: str
    name: str
    type: Type
    """The type of its value; `dyn` if it depends on the message."""
    reads: frozenset[str]
    """The variables that it reads."""
    body_fields: Mapping[Path, bool] | None
    """The paths of the body that it reads, True for one that may be more than a scalar; None if it reads all of it."""
    evaluate: Callable[[Any], Value] = field(repr=False)
    """Returns the value for an activation (`Facts`). Raises only EvaluationError."""
    _tree: Node = field(repr=False)

    @property
    def header_value(self) -> Callable[[RawMessage], bytes] | None:
        """A function that reads the header from a raw message, if the expression is just a header; else None."""
        return header_value(self._tree)

    @property
    def header_test(self) -> Callable[[RawMessage], bool] | None:
        """A predicate on raw messages, if the expression just compares a header with a string; else None."""
        return header_test(self._tree)


def compile_expression(
    text: str, variables: Mapping[str, Type], *, result: Type | None = None, name: str = "when"
) -> Expression:
    """Check and compile an expression.

    `variables` are the available variables with their types, `result` is the required type of the value, and `name`
    names the expression in errors. Raises ExpressionError with the place of the mistake and what to write instead.
    """
    source = Source(text, name)
    tree = check(source, parse(source), variables, result)
    evaluate = compiled(source, tree)
    if result is not None and tree.type != result:
        evaluate = _of_type(evaluate, result)
    return Expression(text, name, tree.type, reads(tree), body_fields(tree), evaluate, tree)


def trace(expression: Expression, activation: Any) -> list[tuple[str, Value | EvaluationError]]:
    """Return the value or error of each part of an expression with the text of the part, in the order of evaluation.

    The last part is the entire expression. Constants and the parts within macros are left out. Compiles the expression
    again, so this is for showing to people and not for every message.
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
    """Return a closure that raises EvaluationError if the value of `evaluate` is not of type `result`."""
    wanted = CLASSES.get(result.name)
    if wanted is None:
        return evaluate

    def checked(message: Any) -> Value:
        value = evaluate(message)
        if value.__class__ is wanted:
            return value
        raise EvaluationError(f"the value is of type {kind_name(value)}, but {spelled(result)} is expected")

    return checked
