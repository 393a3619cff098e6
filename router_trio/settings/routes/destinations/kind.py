"""The questions that each kind of destination answers. A kind is one object; the destination is passed in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from router_trio.errors import Problem
from router_trio.settings.routes.destinations.keys import DestinationKeys


class DestinationKind(ABC):
    """A kind of destination."""

    key: ClassVar[str]
    """The key of `[[routes.to]]` that names the target."""

    waits_for_puback: ClassVar[bool]
    """True if a stream confirms each message with a PubAck; False if a message is delivered once the server has it."""

    described: ClassVar[str]
    """How a message is published, as text."""

    def template(self, to: DestinationKeys) -> str:
        """Return the subject to publish to, a mapping of the subjects of the source."""
        return to.subject

    def stream(self, to: DestinationKeys) -> str | None:
        """Return the stream that stores the messages, None if it is found by the subject."""
        return to.stream

    def shown(self, to: DestinationKeys) -> dict[str, str | bool]:
        """Return the target as data, for programs."""
        return {self.key: getattr(to, self.key), "jetstream": self.waits_for_puback}

    @abstractmethod
    def check(self, path: str, to: DestinationKeys) -> Iterator[Problem]:
        """Yield each problem of the keys that depend on the kind."""
