"""Closures around others: the logic of `&&` and `||`, calls that pay for what they look at, parts that are watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.access import Closure
from router_trio.expressions.language.syntax import Node
from router_trio.expressions.values import Budget, Value, kind_name

Watch = Callable[[Node, Value | EvaluationError], None]
"""Is told what each part came to."""


class Nothing:
    """What constants are folded on: it has no variables."""

    __slots__ = ("budget",)

    def __init__(self) -> None:
        self.budget: Budget = Budget()


def truth(run: Closure) -> Closure:
    """Return the same, but for an error where the value is neither true nor false."""

    def checked(message: Any) -> bool:
        value = run(message)
        if value is True or value is False:
            return value
        raise EvaluationError(f"a {kind_name(value)} is neither true nor false")

    return checked


def paid(function: Callable[..., Value], parts: list[Closure]) -> Closure:
    """Return the closure of a call that pays for the size of its arguments, and of what it makes."""

    def run(message: Any) -> Value:
        budget = message.budget
        values = [part(message) for part in parts]
        for value in values:
            budget.spend_on(value)
        result = function(*values)
        budget.spend_on(result)
        return result

    return run


def watched_by(run: Closure, node: Node, watch: Watch) -> Closure:
    """Return the same, but that `watch` is told of the value, or of the error."""

    def watched(message: Any) -> Value:
        try:
            value = run(message)
        except EvaluationError as error:
            watch(node, error)
            raise
        watch(node, value)
        return value

    return watched


def both(first: Closure, second: Closure) -> Closure:
    """`first && second`: what is false decides, also if the other one fails."""

    def run(message: Any) -> Value:
        try:
            if not first(message):
                return False
        except EvaluationError:
            if second(message):
                raise
            return False
        return second(message)

    return run


def either(first: Closure, second: Closure) -> Closure:
    """`first || second`: what is true decides, also if the other one fails."""

    def run(message: Any) -> Value:
        try:
            if first(message):
                return True
        except EvaluationError:
            if second(message):
                return True
            raise
        return second(message)

    return run


def every(parts: list[Closure], all_hold: bool) -> Closure:
    """A longer chain of `&&`, or of `||`."""

    def run(message: Any) -> bool:
        failed = None
        for part in parts:
            try:
                if part(message) is not all_hold:
                    return not all_hold
            except EvaluationError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return all_hold

    return run
