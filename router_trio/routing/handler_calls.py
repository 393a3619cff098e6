"""Call one handler for one message after another."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from types import CoroutineType, coroutine
from typing import Any

from router_trio.message import Message
from router_trio.protocol.framing import RawMessage
from router_trio.routing.handlers import Blocked, Handler

Pair = tuple[RawMessage, Message]
"""A message as it came, and as a handler gets it."""


class HandlerCalls:
    """The calls of a handler for `messages`. `call` says what comes of the latest.

    A part of the fast path that `HandlerBatch` is, where `Routing.handle` has `handlers.begin`: who awaits a coroutine
    gets its answer as it is, and who drives one gets it in an exception, which takes 150 of 340 ns a message
    (tests/performance/test_fast_paths.py::test_calls_one_after_another). Held equal by
    tests/unit/routing/test_handler_calls.py::test_a_handler_is_called_as_for_a_message_alone.
    """

    __slots__ = ("call", "steps")

    def __init__(self, handler: Handler, messages: Iterable[Pair]) -> None:
        self.call: list[Any] = [None, None, None]
        """The message, a `Pair`; what the handler has answered; or what it has raised, until that is set to None."""
        self.steps: Iterator[object] = _call_each(handler, messages, self.call)
        """Calls the handler for the next message, and gives `call` then; anything else if it is about to block."""

    async def blocked(self, wish: object) -> Any:
        """Return the answer of the call that is about to block, of which the latest step gave `wish`.

        To be awaited before the next step. Blocks as long as the handler does, and raises what it raises.
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


_call_each: Any = coroutine(_steps)  # else it could not `yield from` a coroutine; a type of it would not be an iterator
