"""`[routes.from]`: the source of a route."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import randrange

from router_trio.errors import Problem
from router_trio.settings.routes.sources.bucket import BUCKET
from router_trio.settings.routes.sources.keys import SourceKeys
from router_trio.settings.routes.sources.kind import SourceKind
from router_trio.settings.routes.sources.stream import STREAM
from router_trio.settings.routes.sources.subject import SUBJECT
from router_trio.subjects.mapping import Mapping

KINDS: tuple[SourceKind, ...] = (SUBJECT, STREAM, BUCKET)
"""All kinds of source."""

_FROM_LAST = KINDS[::-1]

_OWNERS = {key: kind for kind in _FROM_LAST for key in (kind.key, *kind.keys)}
"""The kind of source that the refusal of a key names: the first that has the key."""


class SourceSettings(SourceKeys, init=False):
    """`[routes.from]`: a subject (core NATS), or a stream or KV bucket with a durable consumer (JetStream)."""

    @property
    def kind(self) -> SourceKind:
        """Its kind: the last one if several are named, a subject if none is. `check_source` refuses both."""
        for kind in _FROM_LAST:  # no generator: each route is asked some twenty times
            if getattr(self, kind.key) is not None:
                return kind
        return SUBJECT

    @property
    def own_ids(self) -> bool:
        """True if copies get ids of the router, regardless of the sender's."""
        return self.kind.is_stored if self.message_id is None else self.message_id == "own"

    def mapping(self, destination: str, random: Callable[[int], int] = randrange) -> Mapping:
        """The mapping from this source to a destination's subject. Raises MappingError or SubjectError.

        `random(n)` gives an integer of at least 0 and less than `n`.
        """
        if self.subjects:
            return Mapping.compile_each(self.subjects, destination, random=random)
        return Mapping.compile_for_any(destination, random=random)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The patterns in the configuration, none if only the server knows the subjects."""
        return self.kind.subjects(self)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The subjects of messages: the patterns in the configuration, or `>` if only the server knows them."""
        return self.subjects or (">",)

    @property
    def pattern(self) -> str:
        """The `patterns` as one text."""
        return ", ".join(self.patterns)


def check_source(path: str, source: SourceSettings) -> Iterator[Problem]:
    """Yield each problem of a source: none or several kinds, keys of another kind, and what its kind checks."""
    kind = source.kind
    if getattr(source, kind.key) is None:
        yield Problem(path, f"names no source; give {', or '.join(one.needed for one in KINDS)}")
        return
    # Only keys that were set are compared: the defaults cost a validation of their own.
    others = [key for key in _OWNERS if key not in (kind.key, *kind.keys) and key in source.model_fields_set]
    defaults = SourceSettings() if others else source
    for key in others:
        if getattr(source, key) != getattr(defaults, key):
            yield Problem(f"{path}.{key}", kind.refuse(key, _OWNERS[key]))
    yield from kind.check(path, source)
