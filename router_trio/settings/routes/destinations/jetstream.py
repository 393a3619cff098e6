"""A JetStream publish: delivered when a stream has confirmed that it stored the message."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.patterns import check_name
from router_trio.settings.routes.destinations.keys import DestinationKeys
from router_trio.settings.routes.destinations.kind import DestinationKind, check_subject


class JetStream(DestinationKind):
    """A JetStream publish."""

    key = "subject"
    waits_for_puback = True
    described = "JetStream, waits for the PubAck"

    def check(self, path: str, to: DestinationKeys) -> Iterator[Problem]:
        yield from check_subject(path, to)
        yield from check_name(f"{path}.stream", to.stream)
        # If only the source makes this a JetStream publish, no message has a reply subject.
        if to.reply and to.jetstream:
            text = "can't be combined with jetstream, whose PubAck comes to the reply subject; remove one of them"
            yield Problem(f"{path}.reply", text)


JETSTREAM: DestinationKind = JetStream()
"""The kind of a destination whose subject a stream takes."""
