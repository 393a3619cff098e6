"""A handler called for one message after another returns what it returns for each message alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import copy_context
from functools import partial
from types import coroutine
from typing import Any

import pytest

from router_trio.message import Message
from router_trio.protocol import headers
from router_trio.protocol.framing import RawMessage
from router_trio.routing.handlers.calls import OVER, Blocked, Handler, HandlerCalls, begin

MESSAGES = [Message(f"in.{number}", b"%d" % number, headers.EMPTY) for number in range(4)]


@coroutine
def wait(*wishes: object) -> Generator[object, object, list[object]]:
    """Block once for each wish, and return the values sent back."""
    answers: list[object] = []
    for wish in wishes:
        answers.append((yield wish))
    return answers


def plain(message: Message) -> Message:
    return message


def raises(error: BaseException, message: Message) -> Message:
    raise error


async def answers(message: Message) -> Message:
    return message


async def raises_later(error: BaseException, message: Message) -> Message:
    raise error


async def blocks(message: Message) -> Any:
    return message, await wait("a", None, message)


async def blocks_at_times(message: Message) -> Any:
    return await wait(message) if message.payload in (b"1", b"2") else message


async def blocks_and_raises(message: Message) -> Message:
    await wait("a")
    raise OSError(message.subject)


async def continues(message: Message) -> Any:
    try:
        return await wait("raise", "a")
    except LookupError:
        return await wait("b")


def several(message: Message) -> Generator[Message, None, None]:
    yield message
    yield message


class Waits:
    """An awaitable object that is not a coroutine."""

    def __init__(self, message: Message, *wishes: object) -> None:
        self.message = message
        self.wishes = wishes

    def __await__(self) -> Generator[object, object, Any]:
        answers = []
        for wish in self.wishes:
            answers.append((yield wish))
        return self.message, answers


HANDLERS: list[Handler] = [
    plain,
    answers,
    blocks,
    blocks_at_times,
    blocks_and_raises,
    continues,
    Waits,
    lambda message: Waits(message, "a", "b"),
    *(partial(one, error) for one in (raises, raises_later) for error in (ValueError("no"), KeyboardInterrupt())),
    partial(raises, StopIteration("no")),
    partial(raises_later, GeneratorExit("no")),
]


def driven(blocked: Awaitable[Any]) -> tuple[list[object], Any]:
    """Run a blocked awaitable to its end; return what it waited for, and its result."""
    wishes: list[object] = []
    steps = blocked.__await__()
    step: Callable[[], object] = partial(next, steps)
    try:
        while True:
            wish = step()
            wishes.append(wish)
            step = partial(steps.throw, LookupError("thrown")) if wish == "raise" else partial(steps.send, [wish])
    except StopIteration as done:
        return wishes, done.value


def alone(handler: Handler, message: Message) -> object:
    wishes: list[object] = []
    try:
        answer = begin(handler, message, copy_context())
        if isinstance(answer, Blocked):
            wishes, answer = driven(answer)
    except BaseException as error:
        return type(error), str(error)
    return wishes, answer


def together(handler: Handler) -> list[object]:
    raws: list[RawMessage] = [(b"in.%d" % number, b"", 0, 0, b"0\r\n\r\n") for number in range(len(MESSAGES))]
    calls = HandlerCalls(handler, zip(raws, MESSAGES, strict=True))
    found: list[object] = []
    while (step := (context := copy_context()).run(next, calls.steps, OVER)) is not OVER:
        wishes: list[object] = []
        (received, message), answer, error = calls.call
        assert (received, message) == (raws[len(found)], MESSAGES[len(found)])
        if step is not calls.call:
            try:
                wishes, answer = driven(calls.blocked(step, context))
            except BaseException as raised:
                error = raised
        found.append((wishes, answer) if error is None else (type(error), str(error)))
        calls.call[2] = None
    return found


@pytest.mark.parametrize("handler", HANDLERS)
async def test_each_call_of_a_batch_behaves_like_a_call_for_a_message_alone(handler: Handler) -> None:
    found = together(handler)
    assert len(found) == len(MESSAGES)
    for one, message in zip(found, MESSAGES, strict=True):
        assert one == alone(handler, message)


def test_the_items_of_a_generator_are_passed_on_unchanged() -> None:
    first: Any = together(several)[0]
    assert [*first[1]] == [MESSAGES[0], MESSAGES[0]]
