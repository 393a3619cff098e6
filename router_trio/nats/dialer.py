"""Opens real links: connect, shake hands, and run what a link needs for as long as it is used."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import gethostname

import trio

from router_trio.errors import LinkError, innermost
from router_trio.link import LinkListener
from router_trio.nats.dial import abandon, failed_attempt, open_stream
from router_trio.nats.handshake import Handshake
from router_trio.nats.link import NatsLink
from router_trio.nats.tcp import BeforeWrite
from router_trio.settings import ConnectionSettings


def client_name(router: str, connection: str) -> str:
    """Return the name of a client in a server's reports: router, connection, and host and id of the process."""
    return f"{router} {connection} {gethostname()}:{os.getpid()}"


class Dialer:
    """Opens links with one connection's credentials: the `Connect` of the real network."""

    def __init__(self, settings: ConnectionSettings, name: str, before_write: BeforeWrite | None = None) -> None:
        """`name` is the client's in the server's reports. `before_write` is called each time before bytes leave."""
        self._settings = settings
        self._name = name
        self._before_write = before_write
        self._files = trio.CapacityLimiter(1)

    @asynccontextmanager
    async def __call__(self, server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[NatsLink]:
        """See `link.Connect`."""
        handshake: Handshake | None = None
        opened = False
        try:
            handshake = Handshake(await open_stream(server), server, self._settings, self._name, self._files)
            await handshake.shake_hands()
            async with trio.open_nursery() as nursery:
                link = NatsLink(server, handshake, self._settings, inbox, listener, self._before_write)
                nursery.start_soon(link.wire.read)
                nursery.start_soon(link.wire.write)
                nursery.start_soon(link.api.control.run)
                nursery.start_soon(link.answer_pubacks)
                await link.fence()
                link.announce()
                opened = True
                try:
                    yield link
                finally:
                    link.ended = True
                nursery.cancel_scope.cancel()
        except BaseException as error:
            bare = innermost(error, LinkError)
            if not opened:
                # What failed is the attempt, whatever it failed by.
                bare = failed_attempt(server, bare)
            if bare is error:
                raise
            raise bare from bare.__cause__
        finally:
            if handshake is not None:
                await abandon(handshake.stream)
