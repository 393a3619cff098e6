"""Import handlers by name, and check whether they can be called."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from inspect import iscoroutinefunction
from types import ModuleType
from typing import Any

from router_trio.errors import ConfigurationError, HandlerError, Problem
from router_trio.routing.handlers.asyncio_loop import InAsyncio
from router_trio.routing.handlers.bodies import typed
from router_trio.routing.handlers.calls import Handler, is_async
from router_trio.routing.handlers.errors import raise_if_signal, text_of
from router_trio.routing.handlers.lifespan import MANAGER_CURE, LifespanFunction
from router_trio.routing.handlers.runtime import HandlerRuntime
from router_trio.routing.handlers.threads import in_thread
from router_trio.settings import RouteSettings
from router_trio.settings.checks.handlers import ASYNC_IN_A_THREAD, without_handler
from router_trio.settings.problems import suggestion
from router_trio.settings.sections import RouterSettings


def load_handler(name: str, *, has_lifespan: bool = False) -> Handler:
    """Return the handler that `package.module:function` names: see `import_handler`, and `typed` for its bodies.

    `has_lifespan`: it may have a second parameter. Raises `HandlerError`.
    """
    handler = import_handler(name, has_lifespan=has_lifespan)
    try:
        return typed(handler)
    except HandlerError as error:
        raise HandlerError(f"handler {name!r}: {error}") from error


def import_handler(name: str, *, has_lifespan: bool = False) -> Callable[..., Any]:
    """Return the function that `package.module:function` names. Imports the module. Raises `HandlerError`."""
    handler: Callable[..., Any] = _imported(name, "handler")
    if (wrong := unfit(handler, has_lifespan=has_lifespan)) is not None:
        raise HandlerError(f"handler {name!r}: {wrong}")
    return handler


def load_lifespan(name: str) -> LifespanFunction:
    """Return the function that `package.module:function` names. Imports the module. Raises `HandlerError`."""
    function: LifespanFunction = _imported(name, "lifespan")
    if (wrong := unfit_lifespan(function)) is not None:
        raise HandlerError(f"lifespan {name!r}: {wrong}")
    return function


def _imported(name: str, kind: str) -> Any:
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise HandlerError(f"{kind} {name!r} is not of the form 'package.module:function'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise HandlerError(f"{kind} {name!r}: can't import {module_name!r}: {error}; is it on sys.path?") from error
    except BaseException as error:
        raise_if_signal(error)
        cause = f"importing {module_name!r} raised {type(error).__name__}: {text_of(error)}"
        raise HandlerError(f"{kind} {name!r}: {cause}; mend that module") from error
    try:
        found = getattr(module, function_name, None)
    except BaseException as error:  # a module may have a `__getattr__`
        raise_if_signal(error)
        cause = f"looking for {function_name!r} in {module_name!r} raised {type(error).__name__}: {text_of(error)}"
        raise HandlerError(f"{kind} {name!r}: {cause}; mend that module") from error
    if not callable(found):
        cure = suggestion(function_name, _functions_of(module, module_name))
        raise HandlerError(f"{kind} {name!r}: {module_name!r} has no function {function_name!r}; {cure}")
    return found


def _functions_of(module: ModuleType, module_name: str) -> Iterator[str]:
    """Yield the names of the functions in a module, except those that it imports from other packages."""
    package = module_name.partition(".")[0]
    for name, value in list(vars(module).items()):
        try:
            is_own = str(value.__module__).partition(".")[0] == package
            is_function = callable(value) and not inspect.isclass(value)
        except Exception:  # an object of foreign code may raise when it is inspected
            continue
        if is_own and is_function:
            yield name


def unfit(handler: Callable[..., Any], *, has_lifespan: bool = False) -> str | None:
    """Return why a function can't be a handler, judged by its signature; None if it can."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return None  # not written in Python: only a call can show it
    if not _takes(signature, 1):
        names = ", ".join(signature.parameters)
        if not _takes(signature, 2):
            given = "the message and what the lifespan yields" if has_lifespan else "the message alone"
            return f"it is called with {given}, and takes ({names}); give all other parameters a default"
        if not has_lifespan:
            return (
                f"it takes ({names}); the second parameter is for what the lifespan yields, and there is no lifespan: "
                "set [router] lifespan, or give that parameter a default"
            )
    if inspect.isasyncgenfunction(handler):
        return "it is an async generator; return a list of messages instead"
    return None


def unfit_lifespan(function: LifespanFunction) -> str | None:
    """Return why a function can't be a lifespan, judged by its kind and signature; None if it can."""
    if _returns_no_manager(function):
        return f"it must return an async context manager: {MANAGER_CURE}"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    if not _takes(signature, 0):
        return f"it is called without arguments, and takes ({', '.join(signature.parameters)}); give them defaults"
    return None


def _never() -> Any: ...


_OF_MANAGERS = getattr(contextmanager(_never), "__code__", None)
_OF_ASYNC_MANAGERS = getattr(asynccontextmanager(_never), "__code__", None)
"""The code of all functions that a decorator of `contextlib` returns."""


def _returns_no_manager(function: Callable[..., Any]) -> bool:
    """Return True if the kind of a function shows that what it returns is no async context manager."""
    code = getattr(function, "__code__", None)
    if code is _OF_MANAGERS:
        return True
    decorated = getattr(function, "__wrapped__", None)
    if code is _OF_ASYNC_MANAGERS and decorated is not None:
        return inspect.isgeneratorfunction(decorated) or iscoroutinefunction(decorated)
    kinds = inspect.isasyncgenfunction, inspect.isgeneratorfunction, iscoroutinefunction
    return any(is_kind(function) for is_kind in kinds)


def takes_lifespan(handler: Handler) -> bool:
    """Return True if a handler has a second parameter without a default: the value of the lifespan."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return False
    return not _takes(signature, 1) and _takes(signature, 2)


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


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
    has_lifespan = runtime.lifespan is not None
    found = {
        route.name: load_handler(route.handler, has_lifespan=has_lifespan)
        for route in routes
        if route.handler is not None
    } | dict(given)
    for index, route in enumerate(routes):
        handler = found.get(route.name)
        if handler is None:
            continue
        waits = is_async(handler)
        if route.thread and waits:
            problems.append(Problem(f"routes[{index}].thread", ASYNC_IN_A_THREAD))
        if runtime.lifespan is not None and takes_lifespan(handler):
            handler = runtime.lifespan.passed_to(handler)
        if route.thread:
            handler = in_thread(handler, route.concurrency)
        elif waits and (route.loop or runtime.loop) == "asyncio":
            handler = InAsyncio(handler, runtime.asyncio).call
        found[route.name] = handler
    if problems:
        raise ConfigurationError(problems)
    return found


def handler_problem(
    index: int, route: RouteSettings, given: Handler | None = None, *, has_lifespan: bool = False
) -> Problem | None:
    """Import the handler that the route at `index` names, and return why it can't be used, or None.

    `given` is its handler from code, which is called instead. `has_lifespan`: see `load_handler`.
    """
    used = given
    if route.handler is not None:
        try:
            loaded = load_handler(route.handler, has_lifespan=has_lifespan)
        except HandlerError as error:
            return Problem(f"routes[{index}].handler", str(error))
        used = given or loaded
    is_refused = route.thread and used is not None and is_async(used)
    return Problem(f"routes[{index}].thread", ASYNC_IN_A_THREAD) if is_refused else None


def lifespan_problem(settings: RouterSettings) -> Problem | None:
    """Import the lifespan, and return why it can't be used, or None."""
    try:
        if settings.lifespan is not None:
            load_lifespan(settings.lifespan)
    except HandlerError as error:
        return Problem("router.lifespan", str(error))
    return None
