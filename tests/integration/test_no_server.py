"""Links to peers that are no server, or that answer too late."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from router_trio.errors import LinkError
from router_trio.nats.handshake import HANDSHAKE_SHARE
from tests.integration.dial import INFO, refused
from tests.support.eventually import eventually
from tests.support.impostors import impostor, saying
from tests.support.settings import settings
from tests.support.watch import watched


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "protocol"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], "protocol"),
        ([b"\x00\xff\n" * 1000], "protocol"),
        ([b"INFO {\r\n"], "protocol"),
        ([b"INFO null\r\n"], "protocol"),
        ([b"INFO " + b"[" * 100_000 + b"\r\n"], "protocol"),
        ([b'INFO {"connect_urls": 7}\r\n'], "protocol"),
        ([b"-ERR 'maximum connections exceeded'\r\n"], "max_connections"),
        ([b"INFO {}\r\n", b"WHAT\r\n"], "protocol"),
        ([b"x" * 2_000_000], "protocol"),
        ([INFO, b"-ERR 'Authentication Timeout'\r\n"], "timeout"),
        ([INFO, b"-ERR 'Something New'\r\n"], "handshake"),
        ([INFO, b"PONG\r\n", b"PONG\r\nGARBAGE\r\n"], "protocol"),
        ([INFO, b"PONG\r\n", b"PONG\r\nMSG x 1000001 z\r\n"], "protocol"),
        ([INFO, b"PONG\r\n", b"PONG\r\nINFO []\r\n"], "protocol"),
        ([INFO, b"PONG\r\n", b"-ERR 'Stale Connection'\r\n"], "stale"),
    ],
)
async def test_a_peer_that_sends_garbage_is_no_server(lines: Sequence[bytes], reason: str) -> None:
    async with impostor(saying(*lines)) as bad, watched(settings(bad.url, connect_timeout="2s")) as watch:
        await eventually(lambda: any(hasattr(event, "reason") for event in watch.events))
        assert next(event.reason for event in watch.events if hasattr(event, "reason")) == reason


@pytest.mark.parametrize("lines", [[b""], [INFO]])
async def test_a_server_that_hangs_up_in_the_handshake(lines: Sequence[bytes]) -> None:
    async with impostor(saying(*lines, then_close=True)) as bad:
        error = await refused(LinkError, bad.url)
        assert error.reason == "closed"


@pytest.mark.parametrize("lines", [[], [INFO], [b"INF"], [INFO, b"PONG\r\n"]])
async def test_a_silent_server_is_given_up_in_time(lines: Sequence[bytes]) -> None:
    async with impostor(saying(*lines)) as bad:
        began = trio.current_time()
        async with watched(settings(bad.url, connect_timeout="300ms")) as watch:
            (failed,) = watch.of("NATS_CONNECTION_FAILED")
            assert failed.reason == "timeout"
            assert HANDSHAKE_SHARE * 0.3 <= failed.at - began < 1.5
