"""Links and refusals of real handshakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from router_trio.nats.link import Dialer, NatsLink
from router_trio.settings import ConnectionSettings
from tests.support.impostors import Caller, info
from tests.support.recorder import INBOX, Recorder

WITHIN = 10.0


@asynccontextmanager
async def link_to(config: ConnectionSettings, listener: Recorder | None = None) -> AsyncIterator[NatsLink]:
    with trio.fail_after(WITHIN):
        async with Dialer(config, "main")(str(config.servers[0]), INBOX, listener or Recorder()) as link:
            yield link


async def serve_in_clear(caller: Caller) -> None:
    """Play a NATS server without TLS that accepts every client."""
    await caller.say(info(auth_required=True))
    await caller.hear(b"PING\r\n")
    await caller.say(b"PONG\r\n")
