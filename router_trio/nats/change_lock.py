"""The lock by which one command at a time changes the partitions of a route: a key in the bucket of their members.

The key is stored only if no other command has stored it since it was read, again every few seconds while the change is
carried out, and with a time to live. So a command that was killed holds it for a short time only.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from getpass import getuser
from math import inf
from socket import gethostname

import trio

from router_trio.errors import LinkError, SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream import members
from router_trio.nats.jetstream.api import StoredMessage, stream_info
from router_trio.nats.partitions import EXPIRES, put_after
from router_trio.protocol import headers
from router_trio.protocol.buckets import MARKER
from router_trio.protocol.permissions import KV

HELD_FOR = 12
"""Seconds after which the lock of a command that has ended is free."""

RENEW_EVERY = 2.0
"""Seconds after which the command that holds the lock stores it again, with its next step."""

FREED_WITHIN = 2.0
"""Seconds for a command that ends to free the lock, also while it is cancelled."""

LOOK_EVERY = 0.5
"""Seconds between two looks at a lock that another command holds."""

MOST_SHOWN = 100
"""Characters of the name of another command that are shown."""


class ChangeLock:
    """The lock for the partitions of one route. Every method raises `SourceError` and `LinkError`."""

    def __init__(self, link: CommandLink, stream: str, durable: str) -> None:
        self._link = link
        self._bucket = link.stored(members.STREAM)
        self._key = members.key(stream, durable, members.CHANGE)
        self._sequence = 0
        self._held_since = -inf

    async def take(self) -> None:
        """Take the lock. Waits until one that was left is free.

        Raises `SourceError` if another command holds it, or has held it meanwhile: that one has changed what this one
        was started for.
        """
        await self._ensure_bucket()
        before: int | None = None
        while True:
            found = await self._bucket.last(f"{KV}.{members.BUCKET}.{self._key}")
            sequence = 0 if found is None else found.sequence
            now = await self._bucket.clock()
            expired = found is not None and now is not None and now > members.expires_at(found, HELD_FOR)
            if found is not None and before not in (None, sequence) and not _is_marker(found):
                by = excerpt(found.payload.decode("utf-8", "replace"), MOST_SHOWN) or "it has ended"
                detail = f"the partitions are being changed by another command ({by}); run this one when it has ended"
                raise SourceError(detail, reason=reasons.PARTITIONS_DIFFER)
            before = sequence
            if found is not None and found.payload and not expired:
                await trio.sleep(LOOK_EVERY)
                continue
            self._sequence = sequence
            if await self._put():
                return

    async def keep(self) -> None:
        """Hold the lock for the next step. Raises `SourceError` if another command may have taken it."""
        if trio.current_time() < self._held_since + RENEW_EVERY:
            return
        if trio.current_time() > self._held_since + HELD_FOR or not await self._put():
            detail = "this command was interrupted for too long, and another one may change the partitions now"
            raise SourceError(f"{detail}; run it again", reason=reasons.PARTITIONS_DIFFER)

    async def free(self) -> None:
        """Let another command take the lock, unless one has it by now. Does not raise, also if that can't be stored."""
        with trio.move_on_after(FREED_WITHIN, shield=True), suppress(SourceError, LinkError):
            await put_after(self._link, self._key, self._sequence, b"", EXPIRES)

    async def _put(self) -> bool:
        """Store the lock. Return False if another command has stored it."""
        at = trio.current_time()
        value = f"{getuser()}@{gethostname()}, at {datetime.now(UTC):%H:%M:%S} UTC".encode()
        sequence = await put_after(self._link, self._key, self._sequence, value, {members.TTL: f"{HELD_FOR}s"})
        if sequence is None:
            return False
        self._sequence, self._held_since = sequence, at
        return True

    async def _ensure_bucket(self) -> None:
        try:
            await self._bucket.info()
        except SourceError as error:
            if error.reason != reasons.STREAM_NOT_FOUND:
                raise
            await self._bucket.of_stream("CREATE", stream_info, members.bucket_config(1, "file"))


def _is_marker(message: StoredMessage) -> bool:
    """Return True for what the server stores in place of a lock that has expired."""
    return headers.find(message.headers, MARKER) is not None
