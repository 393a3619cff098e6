"""Read the configuration of a command, and import its handlers.

Handlers are imported from the installed packages first, and then from the working directory, which a console script
does not search by default. In this order, no file of the working directory can replace a module that the router itself
imports, now or later.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

from router_trio.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from router_trio.routing.handlers.bodies import Types
    from router_trio.routing.handlers.runtime import HandlerRuntime
    from router_trio.routing.route_plans import Handler
    from router_trio.settings import RouteSettings, Settings


CONFIG = Path("router.toml")
"""The default path of the configuration."""

STDIN = "<stdin>"
"""The name of standard input in error messages, and the path that commands receive for a lone `-`."""


def load(path: Path, *more: Path, workers: int | None = None) -> Settings:
    """Read a configuration from one file or several, or from standard input for `STDIN`. Blocks.

    `workers` overrides `[router] workers`.

    Raises `ConfigurationError` with every problem.
    """
    from router_trio.settings import Settings

    if STDIN not in map(str, (path, *more)):
        return Settings.load(path, *more, workers=workers)
    if more:
        detail = "can't be combined with files or folders; give - alone, or files and folders without it"
        raise ConfigurationError([Problem("", detail)], STDIN)
    try:
        content = sys.stdin.buffer.read()
    except (OSError, ValueError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else type(error).__name__
        detail = f"can't be read ({why}); give the path of a file"
        raise ConfigurationError([Problem("", detail)], STDIN) from None
    return Settings.parse(content, STDIN, workers=workers)


def load_with_handlers(path: Path, *more: Path, workers: int | None = None) -> Settings:
    """Read a configuration as `load` does, and import its handlers, which runs the top level of their modules.

    Raises `ConfigurationError` with every problem of the configuration or, if it has none, with every handler that
    can't be imported or used.
    """
    settings = load(path, *more, workers=workers)
    problems = _handler_problems(settings)
    if problems:
        raise ConfigurationError(list(map(settings.located, problems)), str(path))
    return settings


def handlers_of(settings: Settings, route: RouteSettings) -> tuple[dict[str, Handler], HandlerRuntime]:
    """Import the handler of one route, if it has one. It is called in the runtime, while that lasts.

    Raises `ConfigurationError`.
    """
    import gc

    from router_trio.connection.platform import REAL_PLATFORM
    from router_trio.routing.handlers.loading import handler_problem, lifespan_problem, load_handlers, load_lifespan
    from router_trio.routing.handlers.runtime import HandlerRuntime

    gc.enable()  # see `__main__`
    search_working_directory()
    named = settings.router.lifespan
    index, has_lifespan = settings.routes.index(route), named is not None
    problem = lifespan_problem(settings.router) or handler_problem(index, route, has_lifespan=has_lifespan)
    if problem is not None:
        raise settings.refused(problem)
    runtime = HandlerRuntime(settings.router, REAL_PLATFORM, None if named is None else load_lifespan(named))
    return load_handlers([route], {}, runtime), runtime


def types_of_handler(name: str) -> Types:
    """Import the handler with this name, and return the types of its body and answer. Raises `HandlerError`."""
    import gc

    from router_trio.routing.handlers.bodies import types_of
    from router_trio.routing.handlers.loading import import_handler

    gc.enable()  # see `__main__`
    search_working_directory()
    return types_of(import_handler(name, has_lifespan=True))  # whether it has one is not asked here


_HANDLERS_ARE_LOADED_BY = "router_trio.routing.handlers.loading"


class _WorkingDirectory:
    """An import finder for one directory, after all others. It never finds modules of the standard library.

    It serves handlers only: the modules that a configuration names, and the modules that those import. An optional
    import of any other module, such as `simplejson` or `brotli`, is not searched here, whenever it happens.

    Appending the directory to `sys.path` would not do: every module is searched there, and a package without an
    `__init__.py`, such as `opentelemetry`, is used only if no directory of the path has a module of that name.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._found: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # A module of the standard library may be missing on this platform, and its importer then does without it.
        if path is not None or name in sys.stdlib_module_names or not self._is_for_handlers(_importer()):
            return None
        spec = PathFinder.find_spec(name, [self.directory], target)
        if spec is not None:
            self._found.add(name)
        return spec

    def _is_for_handlers(self, importer: str) -> bool:
        return importer == _HANDLERS_ARE_LOADED_BY or importer.partition(".")[0] in self._found


def _importer() -> str:
    """Return the name of the module whose code runs the current import."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and name != __name__ and name.partition(".")[0] != "importlib":
            return name
        frame = frame.f_back
    return ""


def search_working_directory() -> None:
    """Let handlers, and the modules that they import, be found in the working directory, after all other places."""
    directory = str(Path.cwd())
    if directory in sys.path or "" in sys.path:
        return
    if not any(isinstance(finder, _WorkingDirectory) and finder.directory == directory for finder in sys.meta_path):
        sys.meta_path.append(_WorkingDirectory(directory))


def _handler_problems(settings: Settings) -> list[Problem]:
    from router_trio.settings.checks.handlers import without_handler

    problems = without_handler(settings.routes, ())
    named = settings.router.lifespan
    if named is None and all(route.handler is None for route in settings.routes):
        return problems
    from router_trio.routing.handlers.loading import handler_problem, lifespan_problem

    search_working_directory()
    found = [
        lifespan_problem(settings.router),
        *(handler_problem(index, one, has_lifespan=named is not None) for index, one in enumerate(settings.routes)),
    ]
    return problems + [problem for problem in found if problem is not None]
