"""The text of an expression, and errors that point into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router_trio.errors import ExpressionError
from router_trio.expressions.language.cures import cure

LONGEST_LINE = 100
"""Maximum number of characters of a line that an error shows, around the mistake."""


@dataclass(frozen=True, slots=True)
class Source:
    """The text of an expression, and its name: the key of the configuration that has it."""

    text: str
    name: str

    def error(
        self, message: str, start: int, end: int | None = None, *, hint: str = "", entire: bool = False
    ) -> ExpressionError:
        """Return the error of a mistake between `start` and `end` (by default one character), with what to write.

        `hint` is added if `cures` has no advice. `entire` means that the entire expression, though valid, is wrong in
        its place, so that no advice about a part of it would help.
        """
        start = min(start, len(self.text))
        advice = "" if entire else cure(self.text, start, start + 1 if end is None else end)
        message += f": {advice}" if advice else hint
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
    """Return `: did you mean 'x'?` with the known name that is most similar to `name`, or `""`."""
    from difflib import get_close_matches  # imported only for a mistake, because the import takes milliseconds

    found = get_close_matches(name, sorted(known), n=1, cutoff=0.65)
    return f": did you mean {found[0]!r}?" if found else ""
