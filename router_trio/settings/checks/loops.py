"""Whether a route can send a message to its own source.

Such a route turns one message into an endless stream of them, so it is refused before it runs. The answer errs on the
side of refusing: it is True when some message, not every message, would come back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum

from router_trio.protocol.stream_config import StreamSubjects
from router_trio.subjects.patterns import matches_tokens
from router_trio.subjects.shapes import Shape, mapped, meet

_FUNCTION = re.compile(r"\{\{\s*([A-Za-z]+)")


class _Produced(Enum):
    """What a placeholder of a destination turns into."""

    TOKEN = "one token, any text"
    NUMBER = "one token of digits"
    TOKENS = "one or more tokens, any text"
    REST = "the tokens that > stood for"


def feeds_itself(source: str, destination: str) -> bool:
    """Return True if what `destination` can become overlaps `source`. Both must be valid already."""
    return _meet(source.split("."), [_produced(token) for token in destination.split(".")])


def feeds_itself_through(stream: StreamSubjects, filters: Sequence[str], destination: str) -> str | None:
    """Return the subject of a stream that takes what a route reads from it, and sends to `destination`; or None.

    `filters` are those of the route, none for the whole stream. What they leave out of it does not come back. All must
    be valid already.
    """
    for entry in filters or (">",):
        for held in _held(stream):
            read = meet(held, _shape(entry))
            if read is None:
                continue
            sent = mapped(entry, destination, read)
            for subject in stream.taken:
                taken = meet(sent, _shape(subject)) if feeds_itself(subject, destination) else None
                if taken is not None and any(_passes(one, filters) for one in _stored(taken, stream)):
                    return subject
    return None


def _shape(pattern: str) -> Shape:
    return tuple(pattern.split("."))


def _held(stream: StreamSubjects) -> list[Shape]:
    """Return the shapes of what may be in a stream."""
    if stream.has_others:
        return [(">",)]
    return [stored for subject in stream.taken for stored in _stored(_shape(subject), stream)]


def _stored(taken: Shape, stream: StreamSubjects) -> Iterator[Shape]:
    """Yield the shapes under which a stream stores what has this one."""
    if stream.transform is None:
        yield taken
        return
    source, destination = stream.transform
    changed = meet(taken, _shape(source))
    if changed is not None:
        yield mapped(source, destination, changed)
    if not (matches_tokens(source.split("."), taken) and (source[-1] == ">" or taken[-1] != ">")):
        yield taken


def _passes(stored: Shape, filters: Sequence[str]) -> bool:
    return not filters or any(meet(stored, _shape(one)) is not None for one in filters)


def chosen_by_sender(token: str) -> bool:
    """Return True if a token of a destination stands for text of the message's subject."""
    return _produced(token) in (_Produced.TOKEN, _Produced.TOKENS, _Produced.REST)


def _produced(token: str) -> str | _Produced:
    if token == ">":
        return _Produced.REST
    if re.fullmatch(r"\$[+-]?[0-9]+", token):
        return _Produced.TOKEN
    if not (token.startswith("{{") and token.endswith("}}")):
        return token
    functions = [name.lower() for name in _FUNCTION.findall(token)]
    if any(name.startswith(("split", "slice")) for name in functions):
        return _Produced.TOKENS
    if all(name in ("partition", "random") for name in functions):
        return _Produced.NUMBER
    return _Produced.TOKEN


def _meet(source: list[str], produced: list[str | _Produced]) -> bool:
    if not source or not produced:
        return not source and not produced
    if source[0] == ">" or produced[0] is _Produced.REST:
        return True
    if source[0] != "*" and not _can_be(source[0], produced[0]):
        return False
    if _meet(source[1:], produced[1:]):
        return True
    return produced[0] is _Produced.TOKENS and _meet(source[1:], produced)


def _can_be(token: str, produced: str | _Produced) -> bool:
    if produced is _Produced.NUMBER:
        return token.isascii() and token.isdigit()
    return isinstance(produced, _Produced) or produced == token
