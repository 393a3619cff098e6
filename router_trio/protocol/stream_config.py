"""The configuration of a JetStream stream, as far as settings can say it, and its state. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import inf


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """A stream's configuration. Durations in seconds, 0 for none; sizes in bytes; limits are -1 where there is none.

    `duplicate_window` is None if the server is to choose it: two minutes, or `max_age` if that is shorter.
    """

    name: str
    subjects: tuple[str, ...]
    storage: str = "file"
    retention: str = "limits"
    replicas: int = 1
    max_age: float = 0.0
    max_bytes: int = -1
    max_messages: int = -1
    discard: str = "old"
    duplicate_window: float | None = None
    allow_batched: bool = False
    allow_message_ttl: bool = False

    def differences(self, found: StreamConfig) -> list[str]:
        """Return in what the stream that was found is not as this one says, one text for each key."""
        return [f"{name} is {has} there and {wanted} here" for name, wanted, has in self._different(found)]

    def _different(self, found: StreamConfig) -> Iterator[tuple[str, str, str]]:
        for one in fields(self):
            wanted, has = getattr(self, one.name), getattr(found, one.name)
            if one.name == "subjects":
                wanted, has = tuple(sorted(wanted)), tuple(sorted(has))
            if one.name == "duplicate_window" and wanted is None:
                continue
            if wanted != has:
                yield one.name, _shown(one.name, wanted), _shown(one.name, has)


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    if name in ("max_age", "duplicate_window"):
        return f"{value:g}s" if value else "none"
    return "none" if value == -1 else str(value)


@dataclass(frozen=True, slots=True)
class StreamSubjects:
    """The subjects that a stream takes, and those that it stores them under.

    `transform` is the source and the destination of its own mapping, or None: what matches is stored under the mapped
    subject, everything else as it is. `has_others`: it also holds what was not published to it, but copied from other
    streams.
    """

    taken: tuple[str, ...] = ()
    transform: tuple[str, str] | None = None
    has_others: bool = False


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream as a publisher meets it.

    `refuses`: reason and detail why it takes no message now, or None as far as the server tells. `room`: how many more
    messages and bytes it takes before it refuses; infinite if it has no such limit, or discards old ones for new ones.
    `held`: its messages. `limits`: whatever it may be short of, in a form that changes if one of them does.
    `duplicate_window`: seconds for which it remembers ids; None if it may not be looked at. `acks_before_writing`: it
    confirms messages that a crash of its server may still lose (`persist_mode` is `async`). `created` tells it from
    another stream of its name; `""` if it may not be looked at.
    """

    name: str
    subjects: tuple[str, ...]
    refuses: tuple[str, str] | None
    room: tuple[float, float]
    held: int
    limits: tuple[int, ...]
    duplicate_window: float | None
    acks_before_writing: bool = False
    created: str = ""
    stores: StreamSubjects = StreamSubjects()

    def has_more_room_than(self, before: StreamState) -> bool:
        """Return True if it may take now what it refused then."""
        return (
            self.room[0] > before.room[0]
            or self.room[1] > before.room[1]
            or self.held < before.held
            or self.limits != before.limits
        )

    def takes_again(self, refusal: str) -> bool:
        """Return True if it is not short now of what nats-server named when it refused a message.

        How large that message was is not known here: of bytes, only no limit is enough.
        """
        if "maximum messages exceeded" in refusal:
            return self.room[0] > 0
        if "maximum bytes exceeded" in refusal:
            return self.room[1] == inf
        return False
