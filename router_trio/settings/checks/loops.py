"""Find out whether a route can send a message to its own source.

Such a route turns one message into endless copies, so it is refused before it runs. It is refused if any message, not
only if every message, would return.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

from router_trio.protocol.stream_config import StreamSubjects
from router_trio.subjects.patterns import matches_tokens
from router_trio.subjects.shapes import Patterns, Shape, mapped, meet

MOST_TOKENS = 128
"""Maximum number of tokens of a stream's subject that are compared. The rest counts as `>`."""

_FUNCTION = re.compile(r"\{\{\s*([A-Za-z]+)")


class _Produced(Enum):
    """The tokens that a placeholder of a destination can produce."""

    TOKEN = "one token, any text"
    NUMBER = "one token of digits"
    TOKENS = "one or more tokens, any text"
    REST = "the tokens that > stood for"


def feeds_itself(source: str, destination: str) -> bool:
    """Return True if the subjects that `destination` can produce overlap `source`. Both must be valid."""
    return _meet(source.split("."), [_produced(token) for token in destination.split(".")])


def feeds_itself_through(stream: StreamSubjects, filters: Sequence[str], destination: str) -> str | None:
    """Return the subject of a stream that takes what a route reads from it and sends to `destination`; or None.

    `filters` are those of the route, none for the entire stream; messages that they exclude do not return. All
    arguments but the server's description of the stream must be valid.
    """
    takers = [one for one in stream.taken if feeds_itself(".".join(_shape(one)), destination)]
    if not takers:
        return None
    # A server may name thousands of subjects: each is compared only with those that it can overlap.
    held, entries = _held(stream), [_shape(one) for one in filters]
    taken, in_stream, wanted = (_index(shapes) for shapes in (map(_shape, takers), held, entries))
    compared: set[Shape] = set()
    for pattern in filters or (">",):
        entry = _shape(pattern)
        for number in in_stream.meeting(entry):
            sent = mapped(pattern, destination, meet(held[number], entry) or entry)
            for taker in () if sent in compared else taken.meeting(sent):
                arriving = meet(sent, _shape(takers[taker])) or sent
                if not filters or any(wanted.meeting(one) for one in _stored(arriving, stream)):
                    return takers[taker]
            compared.add(sent)
    return None


def _shape(pattern: str) -> Shape:
    return _bounded(tuple(pattern.split(".")))


def _bounded(shape: Shape) -> Shape:
    """Return a shape that matches at least as much and has few tokens, regardless of how many a server names."""
    return shape if len(shape) <= MOST_TOKENS else (*shape[:MOST_TOKENS], ">")


def _index(shapes: Iterable[Shape]) -> Patterns:
    """Return an index of shapes by their position in the list."""
    found = Patterns()
    for number, shape in enumerate(shapes):
        found.add(shape, number)
    return found


def _held(stream: StreamSubjects) -> list[Shape]:
    """Return the shapes of the subjects that a stream may contain."""
    if stream.has_others:
        return [(">",)]
    return [stored for subject in stream.taken for stored in _stored(_shape(subject), stream)]


def _stored(taken: Shape, stream: StreamSubjects) -> Iterator[Shape]:
    """Yield the shapes of the subjects under which a stream stores messages of this shape."""
    if stream.transform is None:
        yield taken
        return
    source, destination = stream.transform
    changed = meet(taken, _shape(source))
    if changed is not None:
        yield _bounded(mapped(source, destination, changed))
    if not (matches_tokens(source.split("."), taken) and (source[-1] == ">" or taken[-1] != ">")):
        yield taken


def chosen_by_sender(token: str) -> bool:
    """Return True if a token of a destination is replaced by text of the message's subject."""
    return _produced(token) in (_Produced.TOKEN, _Produced.TOKENS, _Produced.REST)


def _produced(token: str) -> str | _Produced:
    if token == ">":
        return _Produced.REST
    if re.fullmatch(r"\$[+-]?[0-9]+", token):
        return _Produced.TOKEN
    if not (token.startswith("{{") and token.endswith("}}")):
        return token
    functions = [name.lower() for name in _FUNCTION.findall(token)]
    if any(name.startswith(("split", "slice", "key")) for name in functions):
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
