"""The macros that iterate over lists and maps, within the budget of a message.

The variable of a macro is in `message.locals`, at the index `slot`. `weight` is the cost of one iteration.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.access import Closure
from router_trio.expressions.closures import ERROR
from router_trio.expressions.values import Budget, Value, a_kind, value_of_key


def _elements(of: Value, budget: Budget) -> Iterable[Value]:
    if of.__class__ is list:
        return of
    if of.__class__ is dict:
        budget.spend(len(of))
        return [value_of_key(key) for key in of]
    raise EvaluationError(f"a macro iterates over a list or the keys of a map, not over {a_kind(of)}")


def all_of(of: Closure, slot: int, holds: Closure, weight: int) -> Closure:
    """Return `of.all(x, holds)`. It is false if `holds` is false for any element; else it raises the first error."""

    def run(message: Any) -> bool:
        values, budget, failed = message.locals, message.budget, None
        for value in _elements(of(message), budget):
            budget.spend(weight)
            values[slot] = value
            try:
                if not holds(message):
                    return False
            except EvaluationError as error:
                budget.spend(ERROR)
                failed = failed or error
        if failed is not None:
            raise failed
        return True

    return run


def exists(of: Closure, slot: int, holds: Closure, weight: int) -> Closure:
    """Return `of.exists(x, holds)`. It is true if `holds` is true for any element; else it raises the first error."""

    def run(message: Any) -> bool:
        values, budget, failed = message.locals, message.budget, None
        for value in _elements(of(message), budget):
            budget.spend(weight)
            values[slot] = value
            try:
                if holds(message):
                    return True
            except EvaluationError as error:
                budget.spend(ERROR)
                failed = failed or error
        if failed is not None:
            raise failed
        return False

    return run


def exists_one(of: Closure, slot: int, holds: Closure, weight: int) -> Closure:
    """Return `of.exists_one(x, holds)`, which evaluates all elements and raises the first error."""

    def run(message: Any) -> bool:
        values, budget, count = message.locals, message.budget, 0
        for value in _elements(of(message), budget):
            budget.spend(weight)
            values[slot] = value
            if holds(message):
                count += 1
        return count == 1

    return run


def filtered(of: Closure, slot: int, holds: Closure, weight: int) -> Closure:
    """Return `of.filter(x, holds)`."""

    def run(message: Any) -> list[Value]:
        values, budget, kept = message.locals, message.budget, []
        for value in _elements(of(message), budget):
            budget.spend(weight)
            values[slot] = value
            if holds(message):
                kept.append(value)
        return kept

    return run


def mapped(of: Closure, slot: int, holds: Closure | None, made: Closure, weight: int) -> Closure:
    """Return `of.map(x, made)`, or `of.map(x, holds, made)`."""

    def run(message: Any) -> list[Value]:
        values, budget, results = message.locals, message.budget, []
        for value in _elements(of(message), budget):
            budget.spend(weight)
            values[slot] = value
            if holds is None or holds(message):
                results.append(made(message))
        return results

    return run
