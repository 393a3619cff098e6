"""Determine the first message of a stream that the durable of a route was to deliver."""

from __future__ import annotations

from typing import NamedTuple

from router_trio.nats.jetstream.api import ConsumerInfo, StreamInfo, nanoseconds
from router_trio.nats.stored import StoredMessages

STARTS_WITHIN = 1
"""Seconds after its creation in which a durable that delivers new messages may not deliver any yet."""


class Start(NamedTuple):
    """The start of a route in its stream.

    No message before `sequence` is known to have been delivered; 0 if all were to be delivered. Nor is one stored
    before `certain_from`, in nanoseconds since 1970.
    """

    sequence: int
    certain_from: int = 0

    def is_before(self, sequence: int, time_ns: int) -> bool:
        """Return True for a message that may never have been delivered."""
        return sequence < self.sequence or time_ns < self.certain_from


async def start_of(durable: ConsumerInfo, deliver: str | int, messages: StoredMessages, info: StreamInfo) -> Start:
    """Return the start of the route with this durable. Raises `SourceError`.

    `deliver` is where the configuration has the route start. It counts for a durable that continues where a deleted one
    was; the start of any other durable is its own.
    """
    config = durable.config
    policy, time = config.deliver_policy, config.start_time
    if config.continues and deliver != "new":  # where that was, a durable that is gone has known
        if deliver == "all":
            return Start(0)
        if isinstance(deliver, int):
            return Start(deliver)
        policy, time = "by_start_time", deliver
    if policy == "all":
        return Start(0)
    if policy == "by_start_sequence":
        return Start(config.start_sequence)
    if policy == "by_start_time":
        return Start(await messages.first_at(nanoseconds(time), info))
    created = nanoseconds(durable.created)
    return Start(await messages.first_at(created, info), created + STARTS_WITHIN * 10**9)
