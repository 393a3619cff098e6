"""A compiled schema, which validates the body of each message."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from router_trio.errors import BodyError, EvaluationError
from router_trio.expressions.values import Budget
from router_trio.schemas.compiler import Compiler
from router_trio.schemas.misses import Run
from router_trio.schemas.reading import read, without_effect
from router_trio.schemas.values import TooDeepError

MAX_COST = 140_000
"""The budget of the schema for one message, in tenths of a microsecond: a body takes at most about 14 ms."""
MAX_COMPILED = 256
"""Number of compiled schemas in the cache: many routes of one configuration may have the same schema."""

TOO_MUCH = "the body takes too long to compare with the schema: MAX_COST is used up"
TOO_DEEP = "the body is nested too deeply for the schema"


class Schema:
    """A compiled JSON Schema. It has no state: that of each validation is in a `Run`."""

    def __init__(self, content: bytes) -> None:
        """Read and compile the content of a schema file. Raises ValueError for its first fault."""
        document, draft = read(content)
        compiler = Compiler(document, draft)
        try:
            self._check = compiler.root()
        except RecursionError:
            raise ValueError("has too many nested references; simplify it") from None
        self.warnings: tuple[str, ...] = tuple(without_effect(document, draft))
        """A text for each key of the file that has no effect, with its place and the cure."""
        self._collects = compiler.collects
        self._document = document  # kept alive: its resources are known by their `id()`
        self._root = id(document.contents)

    def miss(self, body: Any, budget: Budget | None = None) -> str | None:
        """Return where and why a decoded body does not fit, without anything of its content; None if it fits.

        `budget` is `MAX_COST` by default. A body that uses it up does not fit.
        """
        if self._check is None:
            return None
        run = Run(Budget(MAX_COST) if budget is None else budget, self._root)
        try:
            miss = self._check(body, run, set() if self._collects else None)
        except EvaluationError:
            return TOO_MUCH
        except (TooDeepError, RecursionError):
            return TOO_DEEP
        return None if miss is None else str(miss)

    def require(self, facts: Any) -> None:
        """Raise BodyError if the body of the message with these `facts` does not fit, or is not JSON."""
        try:
            body = facts.body
        except EvaluationError as error:
            raise BodyError(str(error)) from None
        miss = self.miss(body)
        if miss is not None:
            raise BodyError(miss)

    def checked(self, when: Callable[[Any], Any] | None) -> Callable[[Any], bool]:
        """Return the `when` of a route with this schema.

        It raises BodyError if `when` takes a message whose body does not fit.
        """

        def takes(facts: Any) -> bool:
            if when is not None and not when(facts):
                return False
            self.require(facts)
            return True

        return takes


@lru_cache(MAX_COMPILED)
def schema_of(content: bytes) -> Schema:
    """Return the compiled schema of a file with this content. Raises ValueError for its first fault."""
    return Schema(content)
