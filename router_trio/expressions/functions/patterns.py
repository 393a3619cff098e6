"""Regular expressions with RE2, whose search time is linear in the length of the text for every pattern.

With Python's `re` a message could block the router by catastrophic backtracking. So an expression that uses `matches`
can't be compiled without `google-re2`, which the extra `expressions` installs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from router_trio.errors import EvaluationError
from router_trio.expressions.values import Budget

MAX_PATTERN = 512
"""Maximum number of characters of a pattern from a message: the time to compile it is proportional to its length."""
MAX_PATTERN_MEMORY = 64 * 1024
"""Bytes that RE2 may use for such a pattern: without a limit, a short `[\\pL]{500}` takes 0.2 s and megabytes."""
MAX_SEARCHED = 65_536
"""Maximum number of characters searched for a pattern from a message: RE2 with little memory takes up to 80 ns each."""
MAX_PATTERNS = 64
"""Maximum number of compiled patterns from messages that are cached."""
PATTERN_COST = 17_000
"""The part of MAX_COST for compiling a pattern from a message that is not cached: up to 1.7 ms."""

_SEARCHED_FREELY = 64
"""Number of characters up to which a text is searched free of charge, or nearly."""
_SMALL = 10
"""Number of instructions up to which a pattern has few states, so that each character takes little time."""
EXTRA = "matches() needs RE2: pip install google-re2"


class BadPattern(Exception):
    """The pattern is not valid."""


class Pattern:
    """A compiled pattern.

    The library's `search` takes five times as long as its `Set` for a short text, but a `Set` does not report that it
    ran out of memory. So the set has a second, empty pattern, which always matches: if it does not, `search` is used.

    Of a text that a sender has written for it, each character may lead to a new state of the pattern. A step is an
    instruction of the pattern for a character. `search` stops making states when there are many, and a `Set` never
    does: so only short texts, and small patterns, are searched by it.
    """

    __slots__ = ("_search", "_set", "_size", "_slow")

    def __init__(self, pattern: str, memory: int | None = None) -> None:
        """Compile a pattern. Raises BadPattern with RE2's message, or ImportError if RE2 is not installed."""
        re2 = import_module("re2")
        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        if memory is not None:
            options.max_mem = memory
        try:
            compiled = re2.compile(pattern, options)
            self._search: Any = compiled.search
            self._size: int = compiled.programsize
            self._slow = 2 + self._size // 4
            self._set: Any = re2.Set.SearchSet(options)
            self._set.Add(pattern)
            self._set.Add("")
            self._set.Compile()
        except (re2.error, UnicodeError) as error:
            reason = error.args[0] if isinstance(error, re2.error) else b"it is not valid UTF-8"
            raise BadPattern(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None

    def found_in(self, text: str, message: Any = None) -> bool:
        """Return True if the text contains a match.

        Raises EvaluationError if the text is not valid UTF-8, and if the budget of `message` is used up: the cost is
        proportional to the length of the text and, for a slow search, to the size of the pattern.
        """
        budget = Budget() if message is None else message.budget
        length = len(text)
        if message is None or length > _SEARCHED_FREELY:
            budget.spend(length >> 3)
        try:
            if self._size > _SMALL:
                steps = length * min(length, self._size)
                budget.search(steps if length > _SEARCHED_FREELY else steps >> 1)
                if length > _SEARCHED_FREELY:
                    return self._search(text) is not None
            found = self._set.Match(text)
            if found is not None:
                return 0 in found
            budget.spend(len(text) * self._slow)
            return self._search(text) is not None
        except UnicodeError:
            raise EvaluationError("the string is not valid UTF-8") from None


_cache: dict[str, Pattern | None] = {}


def matches(text: str, pattern: str, message: Any) -> bool:
    """Return True if the text contains a match of a pattern that comes from a message. Raises EvaluationError."""
    if len(pattern) > MAX_PATTERN:
        raise EvaluationError(f"the regular expression is longer than {MAX_PATTERN} characters")
    if len(text) > MAX_SEARCHED:
        raise EvaluationError(f"the string is longer than {MAX_SEARCHED} characters")
    if pattern not in _cache:
        message.budget.spend(PATTERN_COST)
        while len(_cache) >= MAX_PATTERNS:
            del _cache[next(iter(_cache))]
        try:
            _cache[pattern] = Pattern(pattern, MAX_PATTERN_MEMORY)
        except BadPattern:
            _cache[pattern] = None
    compiled = _cache[pattern]
    if compiled is None:
        raise EvaluationError("the regular expression is invalid or too large")
    return compiled.found_in(text, message)
