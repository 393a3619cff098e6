"""A core publish: delivered when the server has read it, with or without subscribers."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.patterns import check_name
from router_trio.settings.routes.destinations.keys import DestinationKeys
from router_trio.settings.routes.destinations.kind import DestinationKind, check_subject

_CURE = "set jetstream = true, or remove it"


class _Core(DestinationKind):
    key = "subject"
    waits_for_puback = False
    described = "core publish"

    def check(self, path: str, to: DestinationKeys) -> Iterator[Problem]:
        yield from check_subject(path, to)
        yield from check_name(f"{path}.stream", to.stream)
        if to.stream is not None:
            yield Problem(f"{path}.stream", f"only a JetStream publish has a PubAck; {_CURE}")
        if to.delay is not None:
            yield Problem(f"{path}.delay", f"only a stream publishes messages later; {_CURE}")
        if to.ttl:
            yield Problem(f"{path}.ttl", f"only a stream deletes messages; {_CURE}")
        if to.breaker is not None and to.mirror is None:
            yield Problem(f"{path}.breaker", f"only a stream says whether it took a message; {_CURE}")


CORE: DestinationKind = _Core()
"""The kind of a destination that names a core subject."""
