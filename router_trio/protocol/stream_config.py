"""The configuration of a JetStream stream, as far as settings can express it, and its state. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from math import inf

from router_trio.protocol.metadata import Metadata


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """A stream's configuration. Durations are in seconds, 0 for none; sizes in bytes; limits are -1 for no limit.

    `duplicate_window` is None to let the server choose it: two minutes, or `max_age` if that is shorter. `transform` is
    the source and the destination of its subject mapping; None for whatever the stream has. `metadata` returns what
    identifies the router, for a stream that is created; an existing one may have any.
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
    allow_message_schedules: bool = False
    transform: tuple[str, str] | None = None
    metadata: Metadata = field(default=dict, compare=False)

    def differences(self, found: StreamConfig) -> list[str]:
        """Return how the existing stream `found` differs from this configuration, one text for each key."""
        return [f"{name} is {has} there and {wanted} here" for name, wanted, has in self._different(found)]

    @property
    def loses_schedules(self) -> str | None:
        """Why the stream would not publish each schedule that it is sent, with the cure; None if it would.

        A schedule that leaves its stream by a limit is never published, and nothing reports it.
        """
        limits = (
            ("max_age", self.max_age > 0),
            ("max_bytes", self.max_bytes > 0),
            ("max_msgs", self.max_messages > 0),
        )
        limited = [name for name, is_set in limits if is_set]
        if not self.allow_message_schedules:
            why = (
                "does not publish messages later; set allow_msg_schedules on it, which needs nats-server 2.12: "
                f"nats stream edit {self.name} --allow-schedules"
            )
        elif self.discard == "new":
            why = "has the discard policy new, which nats-server does not allow with schedules; set it to old"
        elif self.retention == "interest":
            why = "has the retention interest, and deletes a schedule at once; use the retention limits"
        elif limited:
            why = f"has limits ({', '.join(limited)}) by which schedules are deleted and never published; remove them"
        else:
            return None
        return f"stream {self.name!r} {why}"

    def _different(self, found: StreamConfig) -> Iterator[tuple[str, str, str]]:
        for one in (one for one in fields(self) if one.compare):
            wanted, has = getattr(self, one.name), getattr(found, one.name)
            if one.name == "subjects":
                wanted, has = tuple(sorted(wanted)), tuple(sorted(has))
            if one.name in ("duplicate_window", "transform") and wanted is None:
                continue
            if wanted != has:
                yield _KEYS.get(one.name, one.name), _shown(one.name, wanted), _shown(one.name, has)


_KEYS = {"transform": "partitions"}
"""The keys of a configuration whose names differ from those of the fields."""


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " -> ".join(value) if name == "transform" else f"[{', '.join(value)}]"
    if name in ("max_age", "duplicate_window"):
        return f"{value:g}s" if value else "none"
    return "none" if value in (-1, None) else str(value)


@dataclass(frozen=True, slots=True)
class StreamSubjects:
    """The subjects that a stream accepts, and under which it stores messages.

    `transform` is the source and the destination of the stream's subject mapping, or None: matching messages are stored
    under the mapped subject, others under their own. `has_others` is True if the stream also copies messages from other
    streams.
    """

    taken: tuple[str, ...] = ()
    transform: tuple[str, str] | None = None
    has_others: bool = False


@dataclass(frozen=True, slots=True)
class StreamState:
    """The state of a stream, as far as it matters to publishers.

    `allow_message_ttl`: it takes messages that expire one by one; None if that is not known.

    `refuses` is the reason and detail if the server reports that the stream accepts no messages, else None. `room` is
    the number of messages and of bytes that it accepts before it refuses more; infinite if there is no such limit, or
    if it discards old messages for new ones. `held` is the number of its messages. `limits` are all its limits, in a
    form that changes if one of them changes. `duplicate_window` is the number of seconds for which it remembers ids;
    None if the router may not look it up. `acks_before_writing` is True if it confirms messages that a crash of its
    server may still lose (`persist_mode` is `async`). `created` distinguishes it from another stream of the same name;
    `""` if the router may not look it up. `loses_schedules`: see `StreamConfig`. `time` is that of the server when it
    answered, in nanoseconds since 1970; 0 from one that does not report it.
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
    loses_schedules: str | None = None
    allow_message_ttl: bool | None = None
    time: int = field(default=0, compare=False)

    def has_more_room_than(self, before: StreamState) -> bool:
        """Return True if the stream may now accept a message that it refused when its state was `before`."""
        return (
            self.room[0] > before.room[0]
            or self.room[1] > before.room[1]
            or self.held < before.held
            or self.limits != before.limits
        )

    def takes_again(self, refusal: str) -> bool:
        """Return True if the limit that nats-server named in a refusal is no longer reached.

        The size of the refused message is not known here, so for a limit of bytes this is True only if there is none.
        """
        if "maximum messages exceeded" in refusal:
            return self.room[0] > 0
        if "maximum bytes exceeded" in refusal:
            return self.room[1] == inf
        return False
