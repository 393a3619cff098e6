"""Import handlers by name, and check whether they can be called."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from router_trio.errors import ConfigurationError, HandlerError, Problem
from router_trio.routing.handlers.asyncio_loop import InAsyncio
from router_trio.routing.handlers.bodies import typed
from router_trio.routing.handlers.calls import Handler, is_async
from router_trio.routing.handlers.errors import raise_if_signal, text_of
from router_trio.routing.handlers.runtime import HandlerRuntime
from router_trio.routing.handlers.threads import in_thread
from router_trio.settings import RouteSettings
from router_trio.settings.checks.handlers import ASYNC_IN_A_THREAD, without_handler


def load_handler(name: str) -> Handler:
    """Return the handler that `package.module:function` names: see `import_handler`, and `typed` for its bodies.

    Raises `HandlerError`.
    """
    handler = import_handler(name)
    try:
        return typed(handler)
    except HandlerError as error:
        raise HandlerError(f"handler {name!r}: {error}") from error


def import_handler(name: str) -> Callable[..., Any]:
    """Return the function that `package.module:function` names. Imports the module. Raises `HandlerError`."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise HandlerError(f"handler {name!r}: can't import {module_name!r}: {error}; is it on sys.path?") from error
    except BaseException as error:
        raise_if_signal(error)
        cause = f"importing {module_name!r} raised {type(error).__name__}: {text_of(error)}"
        raise HandlerError(f"handler {name!r}: {cause}; mend that module") from error
    try:
        handler = getattr(module, function_name, None)
    except BaseException as error:  # a module may have a `__getattr__`
        raise_if_signal(error)
        cause = f"looking for {function_name!r} in {module_name!r} raised {type(error).__name__}: {text_of(error)}"
        raise HandlerError(f"handler {name!r}: {cause}; mend that module") from error
    if not callable(handler):
        raise HandlerError(f"handler {name!r}: {module_name!r} has no function {function_name!r}")
    if (wrong := unfit(handler)) is not None:
        raise HandlerError(f"handler {name!r}: {wrong}")
    return handler  # type: ignore[no-any-return]


def unfit(handler: Callable[..., Any]) -> str | None:
    """Return why a function can't be a handler, judged by its signature; None if it can."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return None  # not written in Python: only a call can show it
    try:
        signature.bind(None)
    except TypeError:
        names = ", ".join(signature.parameters)
        return f"it is called with the message alone, and takes ({names}); give all other parameters a default"
    if inspect.isasyncgenfunction(handler):
        return "it is an async generator; return a list of messages instead"
    return None


def load_handlers(
    routes: Sequence[RouteSettings], given: Mapping[str, Handler], runtime: HandlerRuntime
) -> dict[str, Handler]:
    """Return the handlers of routes by route name: the imported ones, and those `given` in code.

    A handler that is called in a thread, or on an asyncio loop, is wrapped. Raises `HandlerError`, and
    `ConfigurationError` for a route that needs a handler and has none, or calls an async one in a thread.
    """
    problems = without_handler(routes, given)
    if problems:
        raise ConfigurationError(problems)
    found = {route.name: load_handler(route.handler) for route in routes if route.handler is not None} | dict(given)
    for index, route in enumerate(routes):
        if route.thread:
            if is_async(found[route.name]):
                problems.append(Problem(f"routes[{index}].thread", ASYNC_IN_A_THREAD))
            found[route.name] = in_thread(found[route.name], route.concurrency)
        elif route.name in found and is_async(found[route.name]) and (route.loop or runtime.loop) == "asyncio":
            found[route.name] = InAsyncio(found[route.name], runtime.asyncio).call
    if problems:
        raise ConfigurationError(problems)
    return found


def handler_problem(index: int, route: RouteSettings, given: Handler | None = None) -> Problem | None:
    """Import the handler that the route at `index` names, and return why it can't be used, or None.

    `given` is its handler from code, which is called instead.
    """
    used = given
    if route.handler is not None:
        try:
            loaded = load_handler(route.handler)
        except HandlerError as error:
            return Problem(f"routes[{index}].handler", str(error))
        used = given or loaded
    is_refused = route.thread and used is not None and is_async(used)
    return Problem(f"routes[{index}].thread", ASYNC_IN_A_THREAD) if is_refused else None
