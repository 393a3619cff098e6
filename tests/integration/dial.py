"""Links to real servers, opened as a connection with the given settings opens them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from router_trio.errors import LinkError, UnexpectedError
from router_trio.nats.link import Dialer, NatsLink
from router_trio.nats.transport import BeforeWrite
from router_trio.protocol.framing import payload
from router_trio.settings import ConnectionSettings
from tests.support.eventually import eventually
from tests.support.recorder import INBOX, Recorder, operation
from tests.support.servers import NatsServer

DIAL_WITHIN = 10.0
CONNECT_TIMEOUT = "8s"
"""Unless a test is about the timeout: on a busy machine a server may take longer than the default."""

LONGEST_ERROR = 600
SECRET = "s3cr3t-of-the-test"
USERS = f'authorization {{ users: [ {{ user: router, password: "{SECRET}" }} ] }}\n'


@asynccontextmanager
async def link_to(
    url: str, listener: Recorder | None = None, *, before_write: BeforeWrite | None = None, **options: Any
) -> AsyncIterator[NatsLink]:
    """Yield a link, as a connection with these settings opens it."""
    config = ConnectionSettings(servers=[url], **{"connect_timeout": CONNECT_TIMEOUT} | options)
    server = str(config.servers[0])
    with trio.CancelScope(deadline=trio.current_time() + DIAL_WITHIN) as dialling:
        async with Dialer(config, "main", before_write)(server, INBOX, listener or Recorder()) as link:
            dialling.deadline = math.inf
            yield link
    assert not dialling.cancelled_caught, f"neither connected nor refused within {DIAL_WITHIN:g} s"


async def works(url: str, **options: Any) -> None:
    """Connect, and send a message over TCP and back."""
    received = Recorder()
    async with link_to(url, **options) as link:
        await link.subscribe("echo", received)
        assert list(await link.send([operation(1, b"echo", b"hello")])) == []
        await link.fence()
        assert [payload(raw) for raw in received.messages] == [b"hello"]
        assert link.server == url.rpartition("@")[2].rpartition("://")[2]


async def refusal(url: str, **options: Any) -> LinkError:
    """Try to connect; return the error, which must be expected, printable and short, and contain no secret."""
    with pytest.raises(LinkError) as caught:
        async with link_to(url, **options):
            pass
    error = caught.value
    assert not isinstance(error, UnexpectedError), error
    assert SECRET not in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < LONGEST_ERROR
    return error


async def refused(kind: type[LinkError], url: str, **options: Any) -> LinkError:
    """Try to connect; return the error as `refusal` does, which must be of exactly this kind."""
    error = await refusal(url, **options)
    assert type(error) is kind, repr(error)
    return error


INFO = b'INFO {"server_id":"x","version":"2.10.0","proto":1,"headers":true,"max_payload":1048576}\r\n'


async def until_no_client(server: NatsServer) -> None:
    """Wait until no client is connected."""

    async def none_connected() -> bool:
        return bool((await server.varz())["connections"] == 0)

    await eventually(none_connected)
