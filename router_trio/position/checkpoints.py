"""Checkpoints of consumers in a KV bucket at the destination, for when the source is gone.

A checkpoint contains how far a consumer has come, and its configuration. The position in the copy is computed when it
is needed, from the copies alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import trio

from router_trio.errors import LinkError, SourceError, codes, reasons
from router_trio.events import Emit, PositionNotSaved
from router_trio.nats.command_link import CommandLink, open_links
from router_trio.nats.jetstream.api import UNAVAILABLE, ApiError, no_jetstream, stream_info
from router_trio.nats.jetstream.pubacks import Refused, read_puback
from router_trio.position.standing import Standing, read_standing
from router_trio.protocol import framing, headers
from router_trio.protocol.bounded_json import AnswerError
from router_trio.protocol.metadata import Metadata, created_by, monitored_stream
from router_trio.protocol.permissions import KV, kv_below
from router_trio.settings import PositionSettings, Settings


class Bucket:
    """The KV bucket of a position. Every method raises `SourceError` if a server refuses a request."""

    def __init__(self, link: CommandLink, position: PositionSettings, metadata: Metadata = dict) -> None:
        """`metadata` identifies the router on a bucket that it creates."""
        self._link = link
        self._metadata = metadata
        self._position = position
        self._stream = f"KV_{position.bucket}"
        self._subject = f"{KV}.{position.bucket}.{position.key}"

    async def ensure(self) -> None:
        """Create the bucket unless it exists. To look it up needs fewer rights than to create what exists."""
        try:
            await self._link.stored(self._stream).info()
        except SourceError as error:
            if error.reason != reasons.STREAM_NOT_FOUND:
                detail = f"the bucket {self._position.bucket} can't be looked up: {error}"
                raise SourceError(detail, reason=error.reason) from error
            await self._create()

    async def _create(self) -> None:
        config = {
            "name": self._stream,
            "subjects": [f"{KV}.{self._position.bucket}.>"],
            "num_replicas": self._position.replicas,
            "max_msgs_per_subject": 1,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "allow_direct": True,
            "deny_delete": True,
            "metadata": {**monitored_stream(self._position.replicas), **self._metadata()},
        }
        subject = framing.wire(f"{self._link.link.api.prefix}.STREAM.CREATE.{self._stream}")
        answer = await self._link.requests.send(subject, json.dumps(config).encode()).answered()
        if headers.status(framing.header_block(answer))[0] == UNAVAILABLE:
            detail = f"the bucket {self._position.bucket} can't be created: {no_jetstream(self._link.link.api.prefix)}"
            raise SourceError(detail, reason=reasons.NO_JETSTREAM)
        try:
            stream_info(framing.payload(answer))
        except ApiError as error:
            if error.error_code != codes.NAME_IN_USE:  # in use: another process has just created it
                detail = f"the bucket {self._position.bucket} can't be created: {error.explained}"
                raise SourceError(detail, reason=reasons.JETSTREAM) from error
        except AnswerError as error:
            detail = f"the bucket {self._position.bucket} can't be created: {error}"
            raise SourceError(detail, reason=reasons.BAD_ANSWER) from error

    async def save(self, standing: Standing) -> None:
        """Store a checkpoint in place of the previous one."""
        api = self._link.link.api.prefix
        subject = f"{kv_below(api)}.{self._position.bucket}.{self._position.key}"
        request = self._link.requests.send(framing.wire(subject), standing.to_bytes())
        try:
            read_puback(await request.answered())
        except Refused as error:
            detail = f"the bucket {self._position.bucket} has not stored the checkpoint: {error}"
            raise SourceError(detail, reason=reasons.JETSTREAM) from error

    async def load(self) -> Standing | None:
        """Return the last checkpoint; None if there is none. One of another consumer is refused."""
        stored = self._link.stored(self._stream)
        found = await stored.last(self._subject)
        if found is None or not found.payload:
            return None
        standing = Standing.from_bytes(found.payload)
        if standing.consumer != self._position.consumer:
            detail = f"the checkpoint is not valid: it is one of consumer {standing.consumer}"
            raise SourceError(detail, reason=reasons.BAD_ANSWER)
        return standing


async def keep_checkpoints(position: PositionSettings, current: Callable[[], Settings], emit: Emit) -> None:
    """Save a checkpoint at each interval, over links of its own, until cancelled.

    A failure is logged when it is the first one after a success, and the next interval tries again. `current` returns
    the settings in force. Nothing is saved while they do not have the route.
    """
    is_failing = False

    def saved() -> None:
        nonlocal is_failing
        is_failing = False

    while True:
        settings = current()
        try:
            await _save(position, settings, lambda: current() is settings, saved)  # noqa: B023 - called in this round
        except (LinkError, SourceError) as error:
            if not is_failing:
                is_failing = True
                consumer, route = position.consumer, position.route
                emit(PositionNotSaved(at=trio.current_time(), consumer=consumer, route=route, detail=str(error)))
        else:
            if current() is not settings:
                continue  # the interval after the last checkpoint has passed
        await trio.sleep(position.interval)


async def _save(
    position: PositionSettings, settings: Settings, in_force: Callable[[], bool], saved: Callable[[], None]
) -> None:
    """Save checkpoints over one link to each server, as long as these settings are in force."""
    route = next((one for one in settings.routes if one.name == position.route), None)
    consumer = None if route is None else route.source.kind.consumer(route.source)
    if route is None or consumer is None:
        return
    names = [route.source.connection, route.to[0].connection]
    async with open_links(settings, "position", names) as links:
        source, destination = (links[name] for name in names)
        bucket = Bucket(destination, position, lambda: created_by(settings.content_hash))
        await bucket.ensure()
        stored = source.stored(consumer[0])
        while in_force():
            await bucket.save(await read_standing(stored, position.consumer))
            saved()
            await trio.sleep(position.interval)
