"""The place where a body does not fit, and the rule that it breaks. Neither contains anything of the body."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from router_trio.errors.quotes import excerpt
from router_trio.expressions.values import Budget

LONGEST_PATH = 150
"""Maximum number of characters of a path that are shown, of the body and of the schema."""

UNNAMED = "*"
"""The name shown for a key that the schema does not name: the sender chose it."""

ALL = object()
"""Stands for all elements of a list among those that a schema has evaluated."""

Seen = set[Any] | None
"""The keys or indexes of a value that a schema has evaluated; None if no `unevaluated...` needs them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A keyword at its place in a schema: its JSON pointer, and what it demands."""

    pointer: str
    text: str

    def miss(self) -> Miss:
        """Return the miss of a value that does not fit."""
        return Miss(self)


class Miss:
    """The rule that a value breaks. The path of the value is completed from its end, while the checks return."""

    __slots__ = ("path", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule: Rule = rule
        self.path: list[str | int] = []

    @property
    def pointer(self) -> str:
        """The JSON pointer of the value."""
        return "".join(f"/{escaped(str(part))}" for part in reversed(self.path))

    def __str__(self) -> str:
        path = self.pointer
        shown = excerpt(path, LONGEST_PATH) if path else "the body"
        return f"{shown} {self.rule.text} ({excerpt(self.rule.pointer, LONGEST_PATH)})"


class Run:
    """The state while one body is judged."""

    __slots__ = ("budget", "references", "scopes", "shows_names")

    def __init__(self, budget: Budget, root: int, *, shows_names: bool = False) -> None:
        """`root` identifies the resource of the schema; see `references.Document`.

        `shows_names`: the path of a miss has all names, not only those that the schema names.
        """
        self.shows_names: bool = shows_names
        self.budget: Budget = budget
        self.references: int = 0
        """The number of references that have been followed and not returned."""
        self.scopes: list[int] = [root]
        """The resources that were entered, the outermost first: where `$dynamicRef` looks."""


def escaped(name: str) -> str:
    """Return a name as part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def listed(names: Set[str]) -> str:
    """Return the names of types, for a rule."""
    return " or ".join(sorted(names))
