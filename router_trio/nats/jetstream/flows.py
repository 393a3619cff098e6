"""How messages move among streams: what each takes, copies and republishes, and which routes read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from router_trio.nats.jetstream.api import MAX_NAMES, MAX_SUBJECTS, ConsumerInfo, answer_of
from router_trio.protocol.bounded_json import Object
from router_trio.subjects.shapes import Shape, mapped, meet

MOST_MAPPINGS = 256
"""Maximum number of streams that one stream copies, and of mappings for each."""

MAX_LIST = 16 * 1024 * 1024
"""Bytes of a page of streams."""

Transform = tuple[str, str]
"""The source and the destination of a mapping of subjects."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A stream that is copied, under its own subjects or those of `mappings`, and of these only what they match."""

    name: str
    mappings: tuple[Transform, ...]

    def copied(self, shape: Shape) -> list[Shape]:
        """Return the subjects under which messages of a shape are copied."""
        met = ((source, to, meet(tuple(source.split(".")), shape)) for source, to in self.mappings)
        return [mapped(source, to, one) for source, to, one in met if one is not None]


@dataclass(frozen=True, slots=True)
class Reader:
    """A durable of a route, and where the route sends: servers, `""` for that of the stream, and templates."""

    durable: str
    route: str
    filters: tuple[str, ...]
    sends: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class StreamFlow:
    """The ways of messages into a stream, and out of it."""

    name: str
    subjects: tuple[str, ...]
    transform: Transform | None
    republish: Transform | None
    origins: tuple[Origin, ...]
    consumers: int
    readers: tuple[Reader, ...] = ()

    def stored(self, shape: Shape) -> Shape:
        """Return the subjects under which messages of a shape are stored."""
        if self.transform is None or (met := meet(tuple(self.transform[0].split(".")), shape)) is None:
            return shape
        return mapped(*self.transform, met)

    def read_by(self, consumers: Sequence[ConsumerInfo]) -> StreamFlow:
        """Return it with the routes that read it: those of its consumers that a router has made."""
        found = [
            Reader(one.name, one.config.route, one.config.filter_subjects, one.config.sends)
            for one in consumers
            if one.config.route
        ]
        return replace(self, readers=tuple(found))


def stream_flows(body: bytes) -> tuple[StreamFlow, ...]:
    """Read a page of the answer to `STREAM.LIST`. Raises as `stream_info` does."""
    return tuple(_flow(one) for one in answer_of(body, MAX_LIST).objects("streams", most=MAX_NAMES))


def _flow(answer: Object) -> StreamFlow:
    config = answer.required("config")
    state = answer.object("state")
    mirror = config.object("mirror")
    origins = (*(() if mirror is None else (mirror,)), *config.objects("sources", most=MOST_MAPPINGS))
    return StreamFlow(
        name=config.text("name"),
        subjects=config.subjects("subjects", most=MAX_SUBJECTS),
        transform=_transform(config.object("subject_transform")),
        republish=_transform(config.object("republish")),
        origins=tuple(_origin(one) for one in origins),
        consumers=0 if state is None else state.number("consumer_count", 0),
    )


def _origin(copied: Object) -> Origin:
    one = copied.optional_subject("filter_subject") or ">"
    several = copied.objects("subject_transforms", most=MOST_MAPPINGS)
    mappings = [(each.optional_subject("src") or ">", each.optional_subject("dest")) for each in several]
    return Origin(
        copied.text("name"), tuple((src, dest or _same(src)) for src, dest in mappings) or ((one, _same(one)),)
    )


def _same(pattern: str) -> str:
    """Return the destination that keeps the subjects of a pattern."""
    tokens, number = [], 0
    for token in pattern.split("."):
        number += token == "*"
        tokens.append(f"{{{{wildcard({number})}}}}" if token == "*" else token)
    return ".".join(tokens)


def _transform(mapping: Object | None) -> Transform | None:
    if mapping is None or not (destination := mapping.optional_subject("dest")):
        return None
    return mapping.optional_subject("src") or ">", destination
