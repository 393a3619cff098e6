"""Open the links of a command: one for each connection that it needs, to the first server that accepts it.

A command does not reconnect. If a link dies, the command ends, and can be run again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Container, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from secrets import token_hex

import trio

from router_trio.errors import LinkError
from router_trio.nats.jetstream.api import StoredMessage, StreamInfo
from router_trio.nats.link import Dialer, NatsLink, client_name
from router_trio.nats.range_reader import StreamRange, read_stream
from router_trio.nats.requests import Requests
from router_trio.nats.stored import StoredMessages
from router_trio.settings import Settings
from router_trio.subjects.inboxes import new_inbox


class CommandLink:
    """A link and its pending requests. It is the listener of the link: see `link.LinkListener`."""

    link: NatsLink
    requests: Requests
    is_open: bool = False

    def __init__(self, declared: Container[str]) -> None:
        """`declared` are the streams that the configuration has a router create."""
        self._declared = declared

    def attach(self, link: NatsLink) -> None:
        """Start to use an open link."""
        self.link = link
        self.requests = link.requests
        self.is_open = True

    def stored(self, stream: str) -> StoredMessages:
        """Return the messages of a stream."""
        return StoredMessages(stream, self.requests, self.link.api.prefix, declared=stream in self._declared)

    def read(self, info: StreamInfo, wanted: StreamRange) -> AsyncGenerator[Sequence[StoredMessage], None]:
        """Read a range of a stream, as `range_reader.read_stream` does, in the way that fits its retention."""
        return read_stream(self.stored(info.name), self.requests, wanted, by_consumer=info.retention == "limits")

    def publish_denied(self, subject: bytes, detail: str) -> None:
        if self.is_open:
            self.requests.deny(subject, detail)

    def reply_denied(self, reply: bytes, detail: str) -> None:
        self.something_denied(detail)

    def something_denied(self, detail: str) -> None:
        """Fail every pending request, since any of them may have been denied."""
        if self.is_open:
            self.requests.deny_all(detail)

    def acked(self, pubacks: Sequence[object], /) -> None:
        """Do nothing: here PubAcks are answers to requests."""

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        """Do nothing: here refusals are answers to requests."""

    def expects(self, stream: str) -> bool:
        return False

    def read_begins(self) -> None:
        """Do nothing."""

    def read_done(self) -> None:
        """Do nothing."""

    def lame_duck(self) -> None:
        """Do nothing: the server keeps its links for a while."""

    def discovered(self, servers: Sequence[str]) -> None:
        """Do nothing: the command does not reconnect."""


@asynccontextmanager
async def open_links(
    settings: Settings, command: str, names: Iterable[str], unreachable: dict[str, str] | None = None
) -> AsyncIterator[dict[str, CommandLink]]:
    """Open a link for each of these connections, with the command in its client name.

    If `unreachable` is given, a connection that can't be opened is left out, and the reason is stored there. Raises
    `LinkError` if a link can't be opened otherwise, or is lost.
    """
    async with AsyncExitStack() as stack:
        links = {}
        for name in dict.fromkeys(names):
            try:
                links[name] = await stack.enter_async_context(_open_link(settings, command, name))
            except LinkError as error:
                if unreachable is None:
                    raise
                unreachable[name] = str(error)
        yield links


@asynccontextmanager
async def _open_link(settings: Settings, command: str, name: str) -> AsyncIterator[CommandLink]:
    connection = settings.connections[name]
    dial = Dialer(connection, client_name(f"{settings.router.name} {command}", name))
    failures: list[str] = []
    for server in connection.servers:
        command_link = CommandLink({one.name for one in settings.streams if one.connection == name})
        inbox = new_inbox(connection.inbox_prefix, token_hex(11))
        # This scope limits the time to connect. It stays open afterwards, since the link opens a nursery in it.
        with trio.CancelScope(deadline=trio.current_time() + connection.connect_timeout) as dialling:
            try:
                async with dial(str(server), inbox, command_link) as link:
                    dialling.deadline = inf
                    command_link.attach(link)
                    yield command_link
                    return
            except LinkError as error:
                if command_link.is_open:
                    raise
                failures.append(str(error))
        if dialling.cancelled_caught:
            failures.append(f"{server}: no connection within {connection.connect_timeout:g} s")
    raise LinkError(f"connection {name!r}: {'; '.join(failures)}")
