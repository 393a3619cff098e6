"""Reads a configuration for a command, handlers included.

Handlers named in it are imported from the working directory as well as from what is installed, as with `python -m`: a
console script alone would not look there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from router_trio.errors import ConfigurationError, HandlerError, Problem

if TYPE_CHECKING:
    from router_trio.settings import Settings


def load_with_handlers(path: Path) -> Settings:
    """Read a configuration and import its handlers. Runs the top level of their modules.

    Raises ConfigurationError with every problem of the configuration, or with every handler that can't be had.
    """
    from router_trio.settings import Settings

    settings = Settings.load(path)
    problems = _handler_problems(settings)
    if problems:
        raise ConfigurationError(problems, str(path))
    return settings


def search_working_directory() -> None:
    """Let modules be imported from the working directory, before all others."""
    directory = str(Path.cwd())
    if directory not in sys.path and "" not in sys.path:
        sys.path.insert(0, directory)


def _handler_problems(settings: Settings) -> list[Problem]:
    named = [(index, route.handler) for index, route in enumerate(settings.routes) if route.handler is not None]
    if not named:
        return []
    from router_trio.dispatch.handlers import load_handler

    search_working_directory()
    problems = []
    for index, handler in named:
        try:
            load_handler(handler)
        except HandlerError as error:
            problems.append(Problem(f"routes[{index}].handler", str(error)))
    return problems
