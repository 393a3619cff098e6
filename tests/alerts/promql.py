"""The metrics that a PromQL expression reads, and the labels of its result: enough to check rules against the contract.

`Series` knows the labels of every metric, and learns those of recording rules. An unknown name or label is an
`AssertionError` that names the place.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import promql_parser as promql

TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus adds to everything that it scrapes."""

SET_OPERATORS = ("and", "or", "unless")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


class Series:
    """The existing series, by name, with their labels."""

    def __init__(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        self._labels = {"up": TARGET}
        for metric in metrics:
            ends = ("_bucket", "_count", "_sum") if metric["type"] == "histogram" else ("",)
            for end in ends:
                bucket = {"le"} if end == "_bucket" else set()
                self._labels[metric["name"] + end] = TARGET | set(metric["labels"]) | bucket

    def add(self, name: str, labels: frozenset[str]) -> None:
        """Add the series of a recording rule."""
        self._labels[name] = self._labels.get(name, labels) | labels

    def labels(self, expression: str) -> frozenset[str]:
        """Return the labels of an expression's result. Raises `AssertionError` for an unknown name or label."""
        return self._of(promql.parse(expression), expression)

    def _of(self, node: promql.Expr, text: str) -> frozenset[str]:
        match node:
            case promql.VectorSelector():
                return self._of_selector(node, text)
            case promql.MatrixSelector():
                return self._of_selector(node.vector_selector, text)
            case promql.AggregateExpr():
                return self._of_aggregate(node, text)
            case promql.BinaryExpr():
                return self._of_binary(node, text)
            case promql.Call():
                return self._of_call(node, text)
            case promql.ParenExpr() | promql.SubqueryExpr() | promql.UnaryExpr():
                return self._of(node.expr, text)
            case promql.NumberLiteral() | promql.StringLiteral():
                return frozenset()
            case _:
                raise AssertionError(f"{type(node).__name__} is not understood here: {text}")

    def _of_selector(self, selector: promql.VectorSelector, text: str) -> frozenset[str]:
        name = selector.name or ""
        assert name in self._labels, f"there is no metric {name!r}: {text}"
        has = self._labels[name]
        _exist({matcher.name for matcher in selector.matchers.matchers}, has, text)
        return has

    def _of_aggregate(self, node: promql.AggregateExpr, text: str) -> frozenset[str]:
        has = self._of(node.expr, text)
        if node.modifier is None:
            return frozenset()
        named = frozenset(node.modifier.labels)
        _exist(named, has, text)
        return named if node.modifier.type == promql.AggModifierType.By else has - named

    def _of_binary(self, node: promql.BinaryExpr, text: str) -> frozenset[str]:
        left, right = self._of(node.lhs, text), self._of(node.rhs, text)
        modifier = node.modifier
        matching = modifier.matching if modifier is not None else None
        if matching is not None:
            _exist(matching.labels, left | right, text)
        operator = str(node.op)
        if operator == "or":
            return left | right
        if operator in SET_OPERATORS or matching is None or operator in COMPARISONS:
            return left or right
        if modifier is not None and modifier.card == promql.VectorMatchCardinality.ManyToOne:
            return left | frozenset(modifier.group_labels or ())
        named = frozenset(matching.labels)
        return named if matching.type == promql.LabelModifierType.Include else left - named

    def _of_call(self, node: promql.Call, text: str) -> frozenset[str]:
        has = frozenset[str]().union(*(self._of(argument, text) for argument in node.args))
        if node.func.name in ("absent", "absent_over_time"):
            return frozenset()
        if node.func.name == "label_replace":
            return has | {node.args[1].val}
        return has


def template_labels(text: str) -> set[str]:
    """Return the labels that a template of an annotation shows."""
    return set(re.findall(r"\$labels\.(\w+)", text))


def mutants(expression: str) -> list[str]:
    """Return the expression once for each of its operators, without that operator and its right side."""
    texts: list[str] = []
    for cut in itertools.count():
        visit = _cutter(cut)
        text = promql.transform(promql.parse(expression), post_visit=visit).prettify()
        if text == promql.parse(expression).prettify():
            return texts
        texts.append(text)
    raise AssertionError("unreachable")


def _cutter(cut: int) -> Callable[[promql.Expr], promql.Expr | None]:
    number = itertools.count()

    def visit(node: promql.Expr) -> promql.Expr | None:
        if isinstance(node, promql.BinaryExpr) and next(number) == cut:
            return node.lhs
        return None

    return visit


def _exist(asked: Iterable[str], has: frozenset[str], text: str) -> None:
    missing = set(asked) - has
    assert not missing, f"there is no label {sorted(missing)} here, only {sorted(has)}: {text}"
