"""How a command ends: the exit codes, and the error of whoever typed it."""

from __future__ import annotations

DONE = 0
FAILED = 1
"""It failed while running, or messages were left unsettled at shutdown."""
WRONG_USAGE = 2
INVALID_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h."""
INTERRUPTED = 130
"""Ctrl-C before there was anything to drain, as shells have it."""


class UsageError(Exception):
    """An argument can't be used. The text says which, why, and what would do."""
