"""Links of a command: one to each connection that it needs, to the first server that takes it.

A command does not reconnect: what it has not done when a link dies, it does when it is run again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from secrets import token_hex

import trio

from router_trio.errors import LinkError
from router_trio.nats.link import Dialer, NatsLink, client_name
from router_trio.nats.requests import Requests
from router_trio.settings import Settings
from router_trio.subjects.inboxes import new_inbox


class CommandLink:
    """A link and the requests on it. Listens to the link: see `link.LinkListener`."""

    link: NatsLink
    requests: Requests
    is_open: bool = False

    def attach(self, link: NatsLink, inbox: bytes) -> None:
        """The link is there."""
        self.link = link
        self.requests = Requests(link.wire, inbox)
        self.is_open = True

    def publish_denied(self, subject: bytes, detail: str) -> None:
        if self.is_open:
            self.requests.deny(subject, detail)

    def reply_denied(self, reply: bytes, detail: str) -> None:
        self.something_denied(detail)

    def something_denied(self, detail: str) -> None:
        """See `link.LinkListener`. No request that waits counts as done."""
        if self.is_open:
            self.requests.deny_all(detail)

    def acked(self, pubacks: Sequence[object], /) -> None:
        """See `link.LinkListener`. PubAcks come as answers to requests here."""

    def ack_refused(self, order: int, reason: str, detail: str, retriable: bool, *, stream: str = "") -> None:
        """See `link.LinkListener`."""

    def expects(self, stream: str) -> bool:
        return False

    def read_begins(self) -> None:
        """See `link.LinkListener`."""

    def read_done(self) -> None:
        """See `link.LinkListener`."""

    def lame_duck(self) -> None:
        """See `link.LinkListener`. The server waits for a while before it ends links."""

    def discovered(self, servers: Sequence[str]) -> None:
        """See `link.LinkListener`."""


@asynccontextmanager
async def open_links(settings: Settings, names: Iterable[str]) -> AsyncIterator[dict[str, CommandLink]]:
    """Open a link to each of these connections. Raises `LinkError` if a connection can't be had, or is lost."""
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(_open_link(settings, name)) for name in dict.fromkeys(names)}


@asynccontextmanager
async def _open_link(settings: Settings, name: str) -> AsyncIterator[CommandLink]:
    connection = settings.connections[name]
    dial = Dialer(connection, client_name(f"{settings.router.name} dead-letters", name))
    failures: list[str] = []
    for server in connection.servers:
        one = CommandLink()
        inbox = new_inbox(connection.inbox_prefix, token_hex(11))
        # One scope bounds the dial and then lives on: a nursery is opened in it and outlives the dial.
        with trio.CancelScope(deadline=trio.current_time() + connection.connect_timeout) as dialling:
            try:
                async with dial(str(server), inbox, one) as link:
                    dialling.deadline = inf
                    one.attach(link, inbox + b"-ask")
                    yield one
                    return
            except LinkError as error:
                if one.is_open:
                    raise
                failures.append(str(error))
        if dialling.cancelled_caught:
            failures.append(f"{server}: no connection within {connection.connect_timeout:g} s")
    raise LinkError(f"connection {name!r}: {'; '.join(failures)}")
