"""Answers of handlers, as a bounded list of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from router_trio.errors import HandlerError
from router_trio.message import Message
from router_trio.protocol import headers

MOST_ANSWERS = 65_536
MOST_ANSWER_BYTES = 64 * 1024 * 1024
"""Messages, and bytes of their payloads, that a handler may return for one: a generator might never end."""


def answers_of(answer: Any) -> list[Message]:
    """Return the answer of a handler as a list of messages. Raises `HandlerError` if it is something else."""
    if isinstance(answer, Message):
        _check(answer)
        return [answer]
    if answer is None:
        return []
    if not isinstance(answer, Iterable) or isinstance(answer, _NOT_SEVERAL):
        raise HandlerError(f"a handler returns a Message, several, or None; this one returned {_refused(answer)}")
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


_PAYLOADS = (str, bytes, bytearray, memoryview)
_NOT_SEVERAL = (*_PAYLOADS, Mapping)


def _refused(answer: object) -> str:
    """Return the type of an answer that is no message, and how to send it."""
    name = type(answer).__name__
    if isinstance(answer, _PAYLOADS):
        return f"{name}; return message.replace(payload=...)"
    return f"{name}, which is sent as JSON only if the annotation of its return has that type"


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
