"""Ask for confirmation on the terminal."""

from __future__ import annotations

import sys

import trio

from router_trio.cli.command_line import UsageError
from router_trio.cli.output import ask


async def confirm(question: str, *, without_terminal: str, otherwise: str) -> None:
    """Ask, and return if the answer is yes. Can be cancelled.

    Raises `UsageError` with `without_terminal` if standard input is not a terminal, and with `otherwise` for any other
    answer.
    """
    if not sys.stdin.isatty():
        raise UsageError(without_terminal)
    ask(f"{question} [y/N]")
    answer = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError(otherwise)
