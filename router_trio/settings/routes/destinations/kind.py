"""The questions that each kind of destination answers. A kind is one object; the destination is passed in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from router_trio.errors import Problem
from router_trio.settings.routes.destinations.keys import DestinationKeys
from router_trio.settings.routes.sources.kind import SourceKind


class DestinationKind(ABC):
    """A kind of destination."""

    key: ClassVar[str]
    """The key of `[[routes.to]]` that names the target."""

    waits_for_puback: ClassVar[bool]
    """True if a stream confirms each message with a PubAck; False if a message is delivered once the server has it."""

    is_bucket: ClassVar[bool] = False
    """True if each message is an operation of a KV bucket."""

    described: ClassVar[str]
    """How a message is published, as text."""

    def template(self, to: DestinationKeys) -> str:
        """Return the subject to publish to, a mapping of the subjects of the source."""
        return to.subject

    def published_to(self, to: DestinationKeys, api: str) -> str:
        """Return the template as it is published over a connection whose JetStream API has this prefix."""
        return self.template(to)

    def subject_prefix(self, to: DestinationKeys, api: str) -> str:
        """Return the start of its subjects, which handlers leave out: for a bucket everything before the key."""
        return ""

    def kept_headers(self, to: DestinationKeys, source: SourceKind) -> tuple[str, ...]:
        """Return the control headers that are carried along from this kind of source."""
        return tuple(to.headers.keep)

    def stream(self, to: DestinationKeys) -> str | None:
        """Return the stream that stores the messages, None if it is found by the subject."""
        return to.stream

    def shown(self, to: DestinationKeys) -> dict[str, str | bool]:
        """Return the target as data, for programs."""
        return {self.key: getattr(to, self.key), "jetstream": self.waits_for_puback}

    def stored_under(self, to: DestinationKeys, pattern: str) -> str:
        """Return the pattern of the subjects that copies are published to. `pattern` is that of the mapped subjects."""
        return pattern

    def other_templates(self, to: DestinationKeys) -> tuple[str, ...]:
        """Return an example of each subject besides `template` that messages of the route are stored under."""
        return ()

    @abstractmethod
    def check(self, path: str, to: DestinationKeys) -> Iterator[Problem]:
        """Yield each problem of the keys that depend on the kind."""

    def check_source(self, path: str, to: DestinationKeys, source: SourceKind) -> Iterator[Problem]:
        """Yield each problem with this kind of source."""
        yield from ()


def check_subject(path: str, to: DestinationKeys) -> Iterator[Problem]:
    """Yield each problem of the keys that name the target, for a destination that is not a bucket."""
    if not to.subject:
        yield Problem(f"{path}.subject", "missing; give a subject, or a bucket")
    if to.last_writer:
        yield Problem(f"{path}.last_writer", "is only for a bucket, and this destination is a subject; remove it")
    if to.key is not None:
        yield Problem(f"{path}.key", "is only for a bucket, and this destination is a subject; remove it")
