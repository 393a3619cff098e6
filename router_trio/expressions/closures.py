"""Closures that wrap others: logic of `&&` and `||`, calls that charge their cost, and parts that are traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.access import Closure
from router_trio.expressions.costs import Cost
from router_trio.expressions.language.syntax import Node
from router_trio.expressions.values import Budget, Value, kind_name

Watch = Callable[[Node, Value | EvaluationError], None]
"""Called with each part of an expression and its value or error."""


class Nothing:
    """Stands in for a message, without variables, while constants are folded."""

    __slots__ = ("budget",)

    def __init__(self) -> None:
        self.budget: Budget = Budget()


def truth(run: Closure) -> Closure:
    """Return a closure that raises EvaluationError if the value of `run` is not a bool."""

    def checked(message: Any) -> bool:
        value = run(message)
        if value is True or value is False:
            return value
        raise EvaluationError(f"a bool is expected, but the value is of type {kind_name(value)}")

    return checked


ERROR = 12
"""The cost of raising and catching an error that another part of the expression makes irrelevant."""


def call_and_charge(
    function: Callable[..., Value], cost: Cost, free: int, message: Any, values: Sequence[Value]
) -> Value:
    """Call a function, and charge its cost as far as it depends on values longer than `free`."""
    if cost.before is not None and (cost.always or len(values[0]) > free):
        cost.before(message.budget, *values)
    result = function(*values)
    if cost.after is not None and len(result) > free:
        message.budget.spend(len(result) >> cost.after)
    return result


def charged_call(function: Callable[..., Value], parts: list[Closure], cost: Cost, free: int) -> Closure:
    """Return the closure of a call whose cost is charged as by `call_and_charge`."""
    before, after = cost.before, cost.after
    if len(parts) == 2 and before is not None and after is None and not cost.always:
        left, right = parts

        def of_two(message: Any) -> Value:
            one, other = left(message), right(message)
            if len(one) > free:
                before(message.budget, one, other)
            return function(one, other)

        return of_two
    if len(parts) == 2 and before is None and after is not None:
        left, right = parts

        def joined(message: Any) -> Value:
            result = function(left(message), right(message))
            if len(result) > free:
                message.budget.spend(len(result) >> after)
            return result

        return joined
    if len(parts) == 1 and before is not None and after is None and not cost.always:
        (only,) = parts

        def of_one(message: Any) -> Value:
            value = only(message)
            if len(value) > free:
                before(message.budget, value)
            return function(value)

        return of_one
    return lambda message: call_and_charge(function, cost, free, message, [part(message) for part in parts])


def watched_by(run: Closure, node: Node, watch: Watch) -> Closure:
    """Return a closure that also passes the value or the error of `run` to `watch`."""

    def watched(message: Any) -> Value:
        try:
            value = run(message)
        except EvaluationError as error:
            watch(node, error)
            raise
        watch(node, value)
        return value

    return watched


def logical_and(first: Closure, second: Closure) -> Closure:
    """Return `first && second`. It is false if either side is false, even if the other side fails."""

    def run(message: Any) -> Value:
        try:
            if not first(message):
                return False
        except EvaluationError:
            message.budget.spend(ERROR)
            if second(message):
                raise
            return False
        return second(message)

    return run


def logical_or(first: Closure, second: Closure) -> Closure:
    """Return `first || second`. It is true if either side is true, even if the other side fails."""

    def run(message: Any) -> Value:
        try:
            if first(message):
                return True
        except EvaluationError:
            message.budget.spend(ERROR)
            if second(message):
                return True
            raise
        return second(message)

    return run


def logical_chain(parts: list[Closure], all_hold: bool) -> Closure:
    """Return a chain of more than two parts: `&&` if `all_hold`, else `||`."""

    def run(message: Any) -> bool:
        failed = None
        for part in parts:
            try:
                if part(message) is not all_hold:
                    return not all_hold
            except EvaluationError as error:
                message.budget.spend(ERROR)
                failed = failed or error
        if failed is not None:
            raise failed
        return all_hold

    return run
