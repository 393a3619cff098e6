"""Why content sends a message nowhere."""

from __future__ import annotations

from typing import Final

WHEN: Final = "when"
"""The `when` of its route does not hold."""

UNMATCHED: Final = "unmatched"
"""No destination of its route takes it."""
