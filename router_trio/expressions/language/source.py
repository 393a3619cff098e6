"""The text of an expression, and errors that point into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router_trio.errors import ExpressionError
from router_trio.expressions.language.cures import cure

LONGEST_LINE = 100
"""Characters of a line that an error shows, around what it points to."""


@dataclass(frozen=True, slots=True)
class Source:
    """The text of an expression and what it is called: the key of the configuration that holds it."""

    text: str
    name: str

    def error(
        self, message: str, start: int, end: int | None = None, *, hint: str = "", whole: bool = False
    ) -> ExpressionError:
        """Return the error that says what is wrong with the text from `start` on, up to `end`, and what to write.

        `hint` is for what `cures` knows nothing better of. `whole`: the place is all of an expression that is valid by
        itself, so that no part of it is the mistake.
        """
        start = min(start, len(self.text))
        told = "" if whole else cure(self.text, start, start + 1 if end is None else end)
        message += f": {told}" if told else hint
        line = self.text.count("\n", 0, start) + 1
        first = self.text.rfind("\n", 0, start) + 1
        last = self.text.find("\n", start)
        last = len(self.text) if last < 0 else last
        end = start + 1 if end is None else min(max(end, start + 1), max(last, start + 1))
        left = max(first, min(start - LONGEST_LINE // 2, last - LONGEST_LINE))
        shown = self.text[left : min(last, left + LONGEST_LINE)]
        shown = "".join(one if one.isprintable() else " " for one in shown)
        carets = "^" * max(1, min(end, left + LONGEST_LINE) - start)
        picture = f"  {shown}\n  {' ' * (start - left)}{carets}"
        return ExpressionError(message, name=self.name, line=line, column=start - first + 1, picture=picture)

    def slice(self, start: int, end: int) -> str:
        """Return a part of the text on one line."""
        return " ".join(self.text[start:end].split())


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `: did you mean 'x'?` for the known name that is most like this one, or nothing."""
    from difflib import get_close_matches  # only for a mistake: it takes milliseconds to import

    found = get_close_matches(name, sorted(known), n=1, cutoff=0.65)
    return f": did you mean {found[0]!r}?" if found else ""
