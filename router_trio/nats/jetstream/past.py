"""Is a stream still the one that a route knows? What it says of itself is held against the last message known of it.

A stream that is put back from a backup, comes back empty, or is deleted and made again gives sequences anew, often with
the same name and time of creation. A message that a stream still has is the same one if it has the same time. Times
alone prove nothing: the clock of a server may be set back.
"""

from __future__ import annotations

import json

import nats.errors

from router_trio.errors import SourceError
from router_trio.link import ConsumerSpec
from router_trio.nats.jetstream.api import ApiError, Stored, StreamInfo, nanoseconds, stored
from router_trio.nats.jetstream.ask import Api

LOOK_UP_WITHIN = 2.0
"""Seconds for the answer to one look at a message."""


def went_back(spec: ConsumerSpec, stream: StreamInfo) -> str | None:
    """Return how a stream shows that it went back in time; None if nothing shows it."""
    if spec.stream_created is None:
        return None
    if stream.created != spec.stream_created:
        return f"it was created again at {stream.created}"
    if stream.last_sequence < spec.last_sequence:
        return f"its last sequence is {stream.last_sequence}, but message {spec.last_sequence} was received before"
    for sequence, time in (
        (stream.first_sequence, stream.first_time),
        (stream.last_sequence, stream.last_time),
    ):
        if stream.messages and sequence == spec.last_sequence and nanoseconds(time) != spec.last_time:
            return _another(sequence)
    return None


def is_doubtful(spec: ConsumerSpec, stream: StreamInfo) -> bool:
    """Return True if all that a stream has seems to be younger than a message that it should have."""
    return stream.first_sequence <= spec.last_sequence and spec.last_time < nanoseconds(stream.first_time)


async def other_message(api: Api, spec: ConsumerSpec, *, doubtful: bool) -> str | None:
    """Look whether a stream has another message under the last sequence that is known. Can be cancelled.

    Returns how that shows that the stream went back; None if nothing shows it. A message that can't be read proves
    nothing, unless the stream is `doubtful`.
    """
    try:
        found = await look_up(api, spec.stream, {"seq": spec.last_sequence})
    except (ApiError, SourceError, TimeoutError, nats.errors.Error):
        return "all its messages are newer than those received before" if doubtful else None
    return None if nanoseconds(found.time) == spec.last_time else _another(spec.last_sequence)


async def look_up(api: Api, stream: str, which: dict[str, object]) -> Stored:
    """Return where and when a stream stored a message. Raises as `Api.ask` does, `ApiError` if there is none."""
    return await api.ask(f"STREAM.MSG.GET.{stream}", json.dumps(which).encode(), stored, LOOK_UP_WITHIN)


def _another(sequence: int) -> str:
    return f"it has another message under sequence {sequence}"
