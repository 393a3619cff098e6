"""Pause and resume a durable on its server, for every process that reads from it.

The metadata of the durable records who has paused it. A record that names another time than the pause in force is one
of an earlier pause, and is ignored: see `jetstream.api`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import trio

from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import (
    PAUSED_BY,
    PAUSED_UNTIL,
    ConsumerInfo,
    config_fields,
    consumer_info,
    nanoseconds,
    pauses,
)

SINCE = (2, 11)

SHOWN_WITHIN = 5.0
"""Seconds within which the durable has to show a pause, or its end: in a cluster its leader learns of it later."""

LOOK_EVERY = 0.05

_OWN = "_nats"
"""The beginning of the keys that a server adds to the metadata in its answers."""


class PausedDurable:
    """A durable that is paused or resumed. Every method raises `SourceError` and `LinkError`, and can be cancelled."""

    def __init__(self, link: CommandLink, stream: str, durable: str) -> None:
        self._link = link.link
        self._stored = link.stored(stream)
        self._durable = durable

    async def info(self) -> ConsumerInfo:
        """Return the durable as it is now. Checks the version of the server first."""
        server = self._link.info
        if server.major_minor is not None and server.major_minor < SINCE:
            detail = f"nats-server {excerpt(server.version)} can't pause a consumer; that needs 2.11 or later"
            raise SourceError(detail, reason=reasons.SERVER_TOO_OLD)
        found = await self._stored.consumer(self._durable)
        if found is None:
            detail = f"stream {self._stored.stream!r} has no consumer {self._durable!r}; a router that runs creates it"
            raise SourceError(detail, reason=reasons.CONSUMER_NOT_FOUND)
        return found

    async def pause(self, until: datetime | timedelta, by: str) -> tuple[ConsumerInfo, str]:
        """Pause until that time, or for that long by the clock of the server.

        Returns the durable, and why its metadata does not name who has paused it, `""` if it does: this user may not be
        permitted to change it. A pause that is in force is replaced. `ValueError` is raised for a time that is over.
        """
        now = datetime.fromisoformat((await self.info()).now or datetime.now(UTC).isoformat())
        end = now + until if isinstance(until, timedelta) else until
        if end <= now:
            raise ValueError(f"{_text(end)} is over: the time of the server is {_text(now)}")
        # Before the pause: a router that reads the durable between the two requests would report another author.
        denied = await self._record({PAUSED_BY: by, PAUSED_UNTIL: _text(end)})
        await self._stored.of_consumer("PAUSE", self._durable, pauses, {"pause_until": _text(end)})
        return await self._until_shown(nanoseconds(_text(end))), denied

    async def resume(self) -> ConsumerInfo:
        """Resume. Nothing happens if the durable is not paused."""
        if not (found := await self.info()).paused:
            return found
        await self._stored.of_consumer("PAUSE", self._durable, pauses)
        found = await self._until_shown(None)
        await self._record({})
        return found

    async def _record(self, record: dict[str, str]) -> str:
        """Replace the record in the metadata. Returns what this user is denied if it may not change the durable."""
        fields = await self._stored.of_consumer("INFO", self._durable, config_fields)
        old: dict[str, object] = fields.get("metadata") or {}
        kept = {key: value for key, value in old.items() if not key.startswith(_OWN)}
        metadata = {key: value for key, value in kept.items() if key not in (PAUSED_BY, PAUSED_UNTIL)} | record
        if metadata == kept:
            return ""
        # As an update: a durable that was deleted meanwhile is not created again.
        body = {"stream_name": self._stored.stream, "config": fields | {"metadata": metadata}, "action": "update"}
        try:
            await self._stored.of_consumer("DURABLE.CREATE", self._durable, consumer_info, body)
        except SourceError as error:
            if error.reason != reasons.PERMISSION_DENIED:
                raise
            return str(error)
        return ""

    async def _until_shown(self, until: int | None) -> ConsumerInfo:
        """Wait until the durable shows that it is paused until then, in nanoseconds, or not paused for None."""
        with trio.move_on_after(SHOWN_WITHIN):
            while True:
                found = await self._stored.of_consumer("INFO", self._durable, consumer_info)
                if not found.paused if until is None else nanoseconds(found.config.pause_until) == until:
                    return found
                await trio.sleep(LOOK_EVERY)
        detail = f"the server accepted the request, but {self._durable!r} does not show it after {SHOWN_WITHIN:g} s"
        raise SourceError(detail, reason=reasons.TIMEOUT)


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
