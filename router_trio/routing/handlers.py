"""Python handlers: import them by name, call them with a message, and turn their answers into a list.

A handler may be `def` or `async def`, and may return a message, several, or None. It may raise anything, even if it is
not an `Exception`: that fails its message and nothing else. Only a signal that the process received, and the
cancellation of the calling task, pass through (see `raise_if_ours`).
"""

from __future__ import annotations

import importlib
import inspect
import signal
import threading
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from inspect import iscoroutinefunction
from types import CoroutineType, coroutine
from typing import Any

import outcome
import trio

from router_trio.errors import ConfigurationError, HandlerError, Problem, Reject, Retry, innermost, reasons
from router_trio.errors.quotes import bounded
from router_trio.message import Message
from router_trio.protocol import headers
from router_trio.protocol.framing import RawMessage
from router_trio.routing.policy.retry import Failure
from router_trio.routing.scopes import close_left_open, left_open
from router_trio.settings import RouteSettings
from router_trio.settings.checks.handlers import ASYNC_IN_A_THREAD, without_handler

Handler = Callable[[Message], Any]

MOST_CANCELLATIONS = 1000
"""Consecutive cancellations that a handler may swallow: then its call is given up, so that the router can end."""


MOST_ANSWERS = 65_536
MOST_ANSWER_BYTES = 64 * 1024 * 1024
"""Messages, and bytes of their payloads, that a handler may return for one: a generator might never end."""


def load_handler(name: str) -> Handler:
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


def unfit(handler: Handler) -> str | None:
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


def load_handlers(routes: Sequence[RouteSettings], given: Mapping[str, Handler]) -> dict[str, Handler]:
    """Return the handlers of routes by route name: the imported ones, and those `given` in code.

    A handler that is called in a thread is wrapped: see `in_thread`. Raises `HandlerError`, and `ConfigurationError`
    for a route that needs a handler and has none, or calls an async one in a thread.
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


def is_async(handler: Handler) -> bool:
    """Return True if a call of the handler returns an awaitable."""
    while isinstance(handler, partial):
        handler = handler.func
    called = getattr(handler, "__call__", None)  # noqa: B004 - of an object, what a call of it is
    return iscoroutinefunction(handler) or iscoroutinefunction(called)


def in_thread(handler: Handler, most: int) -> Handler:
    """Return an async handler that calls this one in threads, at most `most` calls at a time.

    A thread can't be ended: a cancelled call is left behind, and its result is discarded.
    """
    return InThread(handler, most).call


class InThread:
    """A handler that is called in threads, at most `most` calls at a time."""

    def __init__(self, handler: Handler, most: int) -> None:
        self.__wrapped__: Handler = handler
        self._limiter = trio.CapacityLimiter(most)
        self.left_behind: set[object] = set()
        """Calls that were cancelled and have not returned."""

    async def call(self, message: Message) -> Sequence[Message]:
        """Call the handler in a thread and wait for its answers. Can be cancelled, which leaves the call behind."""
        this = object()

        def call() -> Sequence[Message]:
            try:
                return answers_of(self.__wrapped__(message))  # a generator runs in the thread as well
            finally:
                over.append(None)  # first: a task that is cancelled meanwhile either finds this, or is found below
                self.left_behind.discard(this)

        over: list[None] = []
        try:
            return await trio.to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)
        except trio.Cancelled:
            self.left_behind.add(this)
            if over:
                self.left_behind.discard(this)  # it returned at the same time
            raise


def left_behind_by(handler: Handler | None) -> Collection[object]:
    """Return the calls of a handler that were left behind in threads: a live set, if it is called in threads.

    A worker wraps its handlers.
    """
    owner = getattr(getattr(handler, "__wrapped__", handler), "__self__", None)
    return owner.left_behind if isinstance(owner, InThread) else ()


_NOTHING = object()


class Blocked:
    """An async handler that has started and is about to block. Await it once for its answer.

    `answered`: the value that `steps` yields when there is an answer, if it continues after that.
    """

    __slots__ = ("_answered", "_steps", "_wish")

    def __init__(self, steps: Any, wish: Any, answered: object = _NOTHING) -> None:
        self._steps = steps
        self._wish = wish
        self._answered = answered

    def __await__(self) -> Generator[Any, Any, Any]:
        # The semantics of `yield from` after the first step (PEP 380).
        steps, wish = self._steps, self._wish
        swallowed = 0
        while True:
            try:
                try:
                    answer = yield wish
                except BaseException as error:
                    wish = steps.throw(error)
                else:
                    wish = steps.send(answer)
                    # Trio sends the outcome of a wait, which the waiting code unwraps.
                    swallowed = swallowed + 1 if type(answer) is outcome.Error else 0
                    if swallowed > MOST_CANCELLATIONS:
                        _drop(steps)
                        raise answer.error
            except StopIteration as done:
                return done.value
            if wish is self._answered:
                return wish


def begin(handler: Handler, message: Message) -> Any:
    """Call the handler. Return its answer, for `answers_of`, or `Blocked` if it is async and about to block.

    Most async handlers never block, so a message costs no task switch and no await. The caller counts what the handler
    raises.
    """
    answer = handler(message)
    if type(answer) is CoroutineType:
        try:  # without `__await__`, which would take a quarter of the time of this call
            return Blocked(answer, answer.send(None))
        except StopIteration as done:
            return done.value
    if not hasattr(answer, "__await__"):
        return answer
    steps = answer.__await__()
    try:
        return Blocked(steps, next(steps))
    except StopIteration as done:
        return done.value


Pair = tuple[RawMessage, Message]
"""A raw message, and the message for the handler."""


class HandlerCalls:
    """The calls of a handler for `messages`. `call` has the result of the latest one.

    Part of the fast path `HandlerBatch`, in place of `begin`, which `Routing.handle` calls. Awaiting a coroutine gives
    its answer directly; driving it with `send` gives the answer in an exception, which takes 150 of 340 ns a message
    (tests/performance/test_fast_paths.py::test_calls_one_after_another). Held equal by
    tests/unit/routing/test_handler_calls.py::test_each_call_of_a_batch_behaves_like_a_call_for_a_message_alone.
    """

    __slots__ = ("call", "steps")

    def __init__(self, handler: Handler, messages: Iterable[Pair]) -> None:
        self.call: list[Any] = [None, None, None]
        """The message (a `Pair`), the answer of the handler, and its error, which the reader has to set to None."""
        self.steps: Iterator[object] = _call_each(handler, messages, self.call)
        """Each step calls the handler for the next message and yields `call`, or something else if it blocks."""

    async def blocked(self, wish: object) -> Any:
        """Return the answer of the call that is about to block, for which the latest step yielded `wish`.

        Must be awaited before the next step. Blocks as long as the handler does, and raises what it raises.
        """
        await Blocked(self.steps, wish, self.call)
        _, answer, error = self.call
        if error is not None:
            self.call[2] = None
            raise error
        return answer


def _steps(handler: Handler, messages: Iterable[Pair], call: list[Any]) -> Generator[Any, Any, None]:
    for pair in messages:
        call[0] = pair
        try:
            answer = handler(pair[1])
            if type(answer) is CoroutineType:
                answer = yield from answer  # type: ignore[misc]  # so it may, in a `coroutine`
            elif hasattr(answer, "__await__"):
                answer = yield from answer.__await__()
        except BaseException as error:
            answer, call[2] = None, error
        call[1] = answer
        yield call


_call_each: Any = coroutine(_steps)  # or it could not `yield from` a coroutine; its type would be no iterator


def _drop(steps: Any) -> None:
    """Discard a coroutine that can't be ended, and ignore its errors."""
    with suppress(BaseException):
        steps.close()


async def finished(blocked: Awaitable[Any], scopes: Any) -> list[Message]:
    """Return the answers of a handler that has started. Blocks as long as it does, and raises what it raises.

    `scopes` are those in which it was called: see `scopes_of_task`. Raises `trio.Cancelled` if the calling task is
    cancelled, even if the handler swallowed that and answered: the message was given up, and its answer must not be
    sent. Raises `ScopeLeftOpenError` if the handler left a scope open, which is closed.
    """
    try:
        answers = answers_of(await blocked)
    except BaseException as error:
        if left_open(scopes):
            left = await close_left_open(scopes)
            raise_if_signal(error)
            raise left from error
        raise
    if left_open(scopes):
        raise await close_left_open(scopes)
    await trio.lowlevel.checkpoint_if_cancelled()
    return answers


async def raise_if_ours(error: BaseException) -> None:
    """Return if an error is the handler's own. Otherwise raise a signal's error, or the cancellation of the task.

    `trio.Cancelled` in `error` decides nothing: a handler may have its own scopes, mix cancellations with other errors,
    or swallow ours and raise something else. Only the cancellation of this task counts.
    """
    raise_if_signal(error)
    await trio.lowlevel.checkpoint_if_cancelled()


def raise_if_signal(error: BaseException) -> None:
    """Raise the error, or the group that contains it, if a signal handler raised it while other code ran.

    Such an error asks the program to end. Its traceback contains the frame of the signal handler, which that of a
    `raise KeyboardInterrupt` or `sys.exit()` in other code does not.
    """
    if isinstance(error, Exception):
        return  # the usual case
    if threading.current_thread() is not threading.main_thread():
        return  # Python calls signal handlers in the main thread only
    receivers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {code for receiver in receivers if (code := getattr(receiver, "__code__", None)) is not None}
    if _came_through(error, codes, signal.default_int_handler in receivers):
        raise error


def _came_through(error: BaseException, codes: set[Any], bare: bool) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_came_through(one, codes, bare) for one in error.exceptions)
    if bare and isinstance(error, KeyboardInterrupt):
        return True  # Python's own handler of SIGINT has no frame, so it can't be distinguished
    step = error.__traceback__
    while step is not None:
        if step.tb_frame.f_code in codes:
            return True
        step = step.tb_next
    return False


def text_of(error: BaseException) -> str:
    """Return the text of an error of foreign code, whose `str` may raise as well."""
    try:
        return str(error)
    except BaseException as another:
        raise_if_signal(another)
        return "(it has no text)"


def failure_of(error: BaseException) -> Failure:
    """Return the failure of a message whose handler raised this, possibly in a group of a nursery."""
    bare = innermost(error, Reject)
    detail = bounded(text_of(bare))
    if isinstance(bare, Reject):
        return Failure(reasons.REJECTED, detail, quotes=True)
    if isinstance(bare, Retry):
        return Failure(reasons.RETRY, detail, after=bare.after, quotes=True)
    return Failure(reasons.HANDLER_ERROR, f"{type(bare).__qualname__}: {detail}", type(bare), quotes=True)


def answers_of(answer: Any) -> list[Message]:
    """Return the answer of a handler as a list of messages. Raises `HandlerError` if it is something else."""
    if isinstance(answer, Message):
        _check(answer)
        return [answer]
    if answer is None:
        return []
    if not isinstance(answer, Iterable) or isinstance(answer, _NOT_SEVERAL):
        raise HandlerError(f"a handler returns a Message, several, or None; this one returned {type(answer).__name__}")
    messages: list[Message] = []
    room = MOST_ANSWER_BYTES
    for one in answer:
        _check(one)
        room -= len(one.payload)
        if len(messages) == MOST_ANSWERS or room < 0:
            most = f"{MOST_ANSWERS:,} messages" if room >= 0 else f"{MOST_ANSWER_BYTES:,} bytes of payloads"
            raise HandlerError(f"a handler makes at most {most} of one message; this one went on")
        messages.append(one)
    return messages


_NOT_SEVERAL = (str, bytes, bytearray, memoryview, Mapping)


def _check(message: object) -> None:
    """Raise `HandlerError` for a message that can't be sent, since no type checker may have checked the handler."""
    if not isinstance(message, Message):
        raise HandlerError(f"a handler returns Message objects; there is {type(message).__name__} among these")
    if not isinstance(message.payload, bytes):
        raise HandlerError(f"the payload of a message is bytes, not {type(message.payload).__name__}; encode it")
    if not isinstance(message.headers, headers.Headers):
        raise HandlerError(f"the headers of a message are Headers, not {type(message.headers).__name__}")
    if not isinstance(message.subject, str) or not (message.reply is None or isinstance(message.reply, str)):
        raise HandlerError("the subject and the reply of a message are strings; a message without reply has None")
