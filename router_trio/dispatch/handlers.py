"""Python handlers: found by name, called with a message, their answers made into a list.

A handler may be `def` or `async def`, and may return a message, several, or None.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import CoroutineType
from typing import Any

from router_trio import headers, protocol
from router_trio.errors import HandlerError
from router_trio.message import Message

Handler = Callable[[Message], Any]


def load_handler(name: str) -> Handler:
    """The function that `package.module:function` names. Imports the module. Raises `HandlerError`."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise HandlerError(f"handler {name!r}: can't import {module_name!r}: {error}; is it on sys.path?") from error
    except Exception as error:
        told = f"importing {module_name!r} raised {type(error).__name__}: {error}"
        raise HandlerError(f"handler {name!r}: {told}; mend that module") from error
    handler = getattr(module, function_name, None)
    if not callable(handler):
        raise HandlerError(f"handler {name!r}: {module_name!r} has no function {function_name!r}")
    return handler  # type: ignore[no-any-return]


class Blocked:
    """An async handler that has begun and is about to block. Await it, once, for its answer."""

    __slots__ = ("_steps", "_wish")

    def __init__(self, steps: Any, wish: Any) -> None:
        self._steps = steps
        self._wish = wish

    def __await__(self) -> Generator[Any, Any, Any]:
        # What `yield from` does once it has taken the first step (PEP 380).
        steps, wish = self._steps, self._wish
        while True:
            try:
                try:
                    answer = yield wish
                except BaseException as error:
                    wish = steps.throw(error)
                else:
                    wish = steps.send(answer)
            except StopIteration as done:
                return done.value


def begin(handler: Handler, message: Message) -> Any:
    """Call the handler: its answer, for `answers_of`, or `Blocked` if it is async and about to block.

    Most async handlers never block, and a message then costs no task switch and no await. What a handler raises is the
    caller's to count.
    """
    answer = handler(message)
    if type(answer) is CoroutineType:
        try:
            # A coroutine is its own iterator, but for the built-in `next`.
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


async def invoke(handler: Handler, message: Message) -> list[Message]:
    """Call the handler; its answers. Blocks as long as it does, and raises what it raises, or as `answers_of`."""
    answer = begin(handler, message)
    return answers_of(await answer if isinstance(answer, Blocked) else answer)


def answers_of(answer: Any) -> list[Message]:
    """What a handler returned as a list of messages. Raises `HandlerError` if it is something else."""
    if isinstance(answer, Message):
        _check(answer)
        return [answer]
    if answer is None:
        return []
    if not isinstance(answer, Iterable) or isinstance(answer, _NOT_SEVERAL):
        raise HandlerError(f"a handler returns a Message, several, or None; this one returned {type(answer).__name__}")
    messages = list(answer)
    for one in messages:
        _check(one)
    return messages


_NOT_SEVERAL = (str, bytes, bytearray, memoryview, Mapping)


def _check(message: object) -> None:
    """Refuse what can't be sent, here where it can be said: the type checker of a handler may never have seen it."""
    if not isinstance(message, Message):
        raise HandlerError(f"a handler returns Message objects; there is {type(message).__name__} among these")
    if not isinstance(message.payload, bytes):
        raise HandlerError(f"the payload of a message is bytes, not {type(message.payload).__name__}; encode it")
    if not isinstance(message.headers, headers.Headers):
        raise HandlerError(f"the headers of a message are Headers, not {type(message.headers).__name__}")
    if not isinstance(message.subject, str) or not (message.reply is None or isinstance(message.reply, str)):
        raise HandlerError("the subject and the reply of a message are strings; a message without reply has None")


def as_messages(batch: Sequence[protocol.RawMessage], connection: str) -> list[Message]:
    """`Message`s for a handler, of what came from a core subscription."""
    text, decode, empty, new = protocol.text, headers.decode, headers.EMPTY, tuple.__new__
    # Past Message(), which takes longer: this is done for each message.
    return [
        new(
            Message,
            (
                text(subject),
                tail[header_size - 2 - size : -2],
                decode(tail[-2 - size : header_size - 2 - size]) if header_size else empty,
                text(reply) if reply else None,
                connection,
                None,
                None,
                1,
                None,
            ),
        )
        for subject, reply, header_size, size, tail in batch
    ]


def as_message(raw: protocol.RawMessage, connection: str, **origin: Any) -> Message:
    """A `Message` for a handler. `origin` are the fields that tell of a stream, where the reply is for the ack."""
    (message,) = as_messages((raw,), connection)
    return message.replace(reply=None, **origin) if origin else message
