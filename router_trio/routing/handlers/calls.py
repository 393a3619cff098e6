"""Call a handler with a message.

A handler may be `def` or `async def`, and may return a message, several, or None. It may raise anything, even if it is
not an `Exception`: that fails its message and nothing else. Only a signal that the process received, and the
cancellation of the calling task, pass through (see `errors.raise_if_ours`).

Each call has a context of its own: context variables that a handler sets are seen by no other call, nor by the router.
The task that calls it may handle a thousand messages in one turn, so the context of the task is left as it is, and each
step of a call is run in the context of the call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import suppress
from contextvars import Context
from functools import partial
from inspect import iscoroutinefunction
from types import CoroutineType, coroutine
from typing import Any

import outcome
import trio
from trio.lowlevel import current_task

from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
from router_trio.routing.handlers.answers import answers_of
from router_trio.routing.handlers.errors import raise_if_signal
from router_trio.routing.handlers.scopes import close_left_open, left_open

Handler = Callable[[Message], Any]

MOST_CANCELLATIONS = 1000
"""Consecutive cancellations that a handler may swallow: then its call is given up, so that the router can end."""

_NOTHING = object()


def is_async(handler: Callable[..., Any]) -> bool:
    """Return True if a call of the handler returns an awaitable."""
    while isinstance(handler, partial):
        handler = handler.func
    called = getattr(handler, "__call__", None)  # noqa: B004 - of an object, what a call of it is
    return iscoroutinefunction(handler) or iscoroutinefunction(called)


class Blocked:
    """An async handler that has started in `context`, and is about to block. Await it once for its answer.

    `answered`: the value that `steps` yields when there is an answer, if it continues after that.
    """

    __slots__ = ("_answered", "_context", "_steps", "_wish")

    def __init__(self, steps: Any, wish: Any, context: Context, answered: object = _NOTHING) -> None:
        self._steps = steps
        self._wish = wish
        self._context = context
        self._answered = answered

    def __await__(self) -> Generator[Any, Any, Any]:
        # The semantics of `yield from` after the first step (PEP 380), but each step is run in the call's context.
        steps, wish, run = self._steps, self._wish, self._context.run
        task = current_task()
        own = task.context
        swallowed = 0
        while True:
            try:
                try:
                    answer = yield wish
                except BaseException as error:
                    wish = run(steps.throw, error) if task.context is own else steps.throw(error)
                else:
                    # While a thread of the handler has `trio.from_thread.run` call something in this task, Trio gives
                    # the task the context of that thread.
                    wish = run(steps.send, answer) if task.context is own else steps.send(answer)
                    # Trio sends the outcome of a wait, which the waiting code unwraps.
                    swallowed = swallowed + 1 if type(answer) is outcome.Error else 0
                    if swallowed > MOST_CANCELLATIONS:
                        run(_drop, steps)
                        raise answer.error
            except StopIteration as done:
                return done.value
            if wish is self._answered:
                return wish


def begin(handler: Handler, message: Message, context: Context) -> Any:
    """Call the handler in a context. Return its answer, or `Blocked` if it is async and about to block.

    Call `answers_of` for the answer in the same context: it may be a generator. Most async handlers never block, so a
    message costs no task switch and no await. The caller counts what the handler raises.
    """
    return context.run(_begin, handler, message, context)


def _begin(handler: Handler, message: Message, context: Context) -> Any:
    answer = handler(message)
    if type(answer) is CoroutineType:
        try:  # without `__await__`, which would take a quarter of the time of this call
            return Blocked(answer, answer.send(None), context)
        except StopIteration as done:
            return done.value
    if not hasattr(answer, "__await__"):
        return answer
    steps = answer.__await__()
    try:
        return Blocked(steps, next(steps), context)
    except StopIteration as done:
        return done.value


Pair = tuple[RawMessage, Message]
"""A raw message, and the message for the handler."""

OVER = object()
"""Stands for the step after the last one. A handler may yield None."""


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
        """Each step calls the handler for the next message and yields `call`, or something else if it blocks.

        A step is run in the context for that call: `context.run(next, steps, OVER)`.
        """

    async def blocked(self, wish: object, context: Context) -> Any:
        """Return the answer of the call that is about to block, for which the latest step yielded `wish`.

        `context` is that of the step. Must be awaited before the next step. Blocks as long as the handler does, and
        raises what it raises.
        """
        await Blocked(self.steps, wish, context, self.call)
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


async def finished(blocked: Awaitable[Any], scopes: Any, context: Context) -> list[Message]:
    """Return the answers of a handler that has started in a context. Blocks as long as it does, and raises its errors.

    `scopes` are those in which it was called: see `scopes_of_task`. Raises `trio.Cancelled` if the calling task is
    cancelled, even if the handler swallowed that and answered: the message was given up, and its answer must not be
    sent. Raises `ScopeLeftOpenError` if the handler left a scope open, which is closed.
    """
    try:
        answers = context.run(answers_of, await blocked)
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
