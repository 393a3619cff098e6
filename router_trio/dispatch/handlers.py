"""Python handlers: found by name, called with a message, their answers made into a list.

A handler may be `def` or `async def`, and may return a message, several, or None.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
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


async def invoke(
    handler: Handler, message: Message, *, before_blocking: Callable[[], None] | None = None
) -> list[Message]:
    """Call the handler; what it returns as a list of messages. What it raises is the caller's to count.

    `before_blocking` is called when an async handler is about to block, and not for one that never does. Raises
    `HandlerError` if it returns something else. Blocks as long as an async handler does.
    """
    answer = handler(message)
    if hasattr(answer, "__await__"):
        answer = await (answer if before_blocking is None else _watched(answer, before_blocking))
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


@types.coroutine
def _watched(awaitable: Awaitable[Any], before_blocking: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Await, but tell of the first time that it would block: what `yield from` does, spelled out (PEP 380)."""
    steps: Any = awaitable.__await__()
    try:
        wish = next(steps)
    except StopIteration as done:
        return done.value
    before_blocking()
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


def as_message(raw: protocol.RawMessage, connection: str, **origin: Any) -> Message:
    """A `Message` for a handler. `origin` are the fields that tell of a stream."""
    subject, reply, header_size, size, tail = raw
    start = len(tail) - 2 - size
    return Message(
        protocol.text(subject),
        tail[start + header_size : -2],
        headers.decode(tail[start : start + header_size]) if header_size else headers.EMPTY,
        protocol.text(reply) if reply and "stream" not in origin else None,
        connection,
        **origin,
    )
