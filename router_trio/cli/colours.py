"""Colours of a terminal, for commands that print tables and lines."""

from __future__ import annotations


class Colours:
    """Paints text if `enabled`; otherwise each method returns it unchanged."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled

    def good(self, text: str) -> str:
        """Return text about something that is well."""
        return self._painted(text, "32")

    def doubtful(self, text: str) -> str:
        """Return text about something that may need attention."""
        return self._painted(text, "33")

    def bad(self, text: str) -> str:
        """Return text about a failure."""
        return self._painted(text, "31")

    def faint(self, text: str) -> str:
        """Return text that is less important than other text."""
        return self._painted(text, "2")

    def bold(self, text: str) -> str:
        """Return text that is more important than other text."""
        return self._painted(text, "1")

    def _painted(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._enabled and text else text
