"""Where a body does not fit, and which rule it breaks. Neither contains anything of the body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from router_trio.errors.quotes import excerpt
from router_trio.expressions.values import Budget

LONGEST_PATH = 150
"""Maximum number of characters shown of a path in the body, and of one in the schema."""

UNNAMED = "*"
"""The name shown for a key that the schema does not name: the sender chose it."""

ALL = object()
"""An entry of `Seen` that stands for all keys or indexes of the value."""

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
    """The rule that a value breaks, and the path of the value, last part first: each check appends its part."""

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
    """The state of the validation of one body."""

    __slots__ = ("budget", "references", "scopes", "shows_names")

    def __init__(self, budget: Budget, root: int, *, shows_names: bool = False) -> None:
        """`root` identifies the resource of the schema; see `references.Document`.

        With `shows_names` the path of a miss also has names that the schema does not name.
        """
        self.shows_names: bool = shows_names
        self.budget: Budget = budget
        self.references: int = 0
        """The number of nested references that are being followed."""
        self.scopes: list[int] = [root]
        """The resources that were entered, the outermost first. `$dynamicRef` searches these."""


def escaped(name: str) -> str:
    """Return a name as part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
