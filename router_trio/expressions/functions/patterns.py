"""Regular expressions, by RE2: it takes time in proportion to the text, whatever the pattern is.

`re` of Python does not, which a message could use to stop the router. So an expression that uses `matches` can't be
compiled without `google-re2`, the extra `expressions`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.values import Budget

MAX_PATTERN = 512
"""Characters of a pattern that comes from a message: RE2 takes time in proportion to them to compile it."""
MAX_PATTERN_MEMORY = 64 * 1024
"""Bytes that RE2 may use for such a pattern: a short one such as `[\\pL]{500}` would else take 0.2 s, and megabytes."""
MAX_SEARCHED = 65_536
"""Characters that such a pattern is looked for in: with little memory RE2 takes up to 80 ns for each."""
MAX_PATTERNS = 64
"""Patterns of messages that are remembered compiled."""
PATTERN_COST = 17_000
"""The part of MAX_COST for a pattern from a message that is not remembered: up to 1.7 ms."""

_SEARCHED_FREELY = 64
"""Characters of a text that is searched at no cost."""
EXTRA = "matches() needs RE2: pip install google-re2"


class BadPattern(Exception):
    """A pattern is not valid."""


class Pattern:
    """A compiled pattern.

    The search of the library takes five times as long as its `Set`, which says nothing when it runs out of memory. So
    the set has a second pattern, which is always found: if it isn't, the search decides.
    """

    __slots__ = ("_search", "_set", "_slow")

    def __init__(self, pattern: str, memory: int | None = None) -> None:
        """Compile a pattern. Raises BadPattern, with what RE2 says of it; ImportError if the library is not there."""
        re2 = import_module("re2")
        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        if memory is not None:
            options.max_mem = memory
        try:
            compiled = re2.compile(pattern, options)
            self._search: Any = compiled.search
            self._slow = 2 + compiled.programsize // 4
            self._set: Any = re2.Set.SearchSet(options)
            self._set.Add(pattern)
            self._set.Add("")
            self._set.Compile()
        except (re2.error, UnicodeError) as error:
            told = error.args[0] if isinstance(error, re2.error) else b"no UTF-8"
            raise BadPattern(told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)) from None

    def found_in(self, text: str, message: Any = None) -> bool:
        """Return True if the pattern is found in the text. Raises EvaluationError if that is no UTF-8.

        And if `message` can't pay for it: the search takes its time for each character and each part of the pattern.
        """
        budget = Budget() if message is None else message.budget
        if message is None or len(text) > _SEARCHED_FREELY:
            budget.spend(len(text) >> 3)
        try:
            found = self._set.Match(text)
            if found is not None:
                return 0 in found
            budget.spend(len(text) * self._slow)
            return self._search(text) is not None
        except UnicodeError:
            raise EvaluationError("the string is no UTF-8") from None


_remembered: dict[str, Pattern | None] = {}


def matches(text: str, pattern: str, message: Any) -> bool:
    """Return True if the pattern, which comes from a message, is found in the text. Raises EvaluationError."""
    if len(pattern) > MAX_PATTERN:
        raise EvaluationError(f"the regular expression is longer than {MAX_PATTERN} characters")
    if len(text) > MAX_SEARCHED:
        raise EvaluationError(f"the string is longer than {MAX_SEARCHED} characters")
    if pattern not in _remembered:
        message.budget.spend(PATTERN_COST)
        while len(_remembered) >= MAX_PATTERNS:
            del _remembered[next(iter(_remembered))]
        try:
            _remembered[pattern] = Pattern(pattern, MAX_PATTERN_MEMORY)
        except BadPattern:
            _remembered[pattern] = None
    known = _remembered[pattern]
    if known is None:
        raise EvaluationError("the regular expression is not valid, or too large")
    return known.found_in(text, message)
