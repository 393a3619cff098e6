"""nats-py on a link that is closed: answers that arrive at that moment end nothing else."""

from __future__ import annotations

import re
from contextlib import suppress

import nats.errors
import pytest
import trio

from router_trio.errors import LinkError
from router_trio.nats.control_plane.client import RunningClient, WireTransport, open_client
from router_trio.nats.info import parse_info

REQUESTS = 3
NO_RESPONDERS = b"HMSG %b %b 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"


@pytest.mark.parametrize("turns", range(8))
async def test_requests_without_responders_end_no_link_that_is_closed_then(turns: int) -> None:
    """`turns`: those of the event loop between the answers and the end."""
    written = bytearray()
    transport = WireTransport(parse_info(b'{"headers": true, "version": "2.15.1"}'), written.extend, lambda: None)
    ended = 0

    async def request(running: RunningClient) -> None:
        nonlocal ended
        with suppress(nats.errors.NoRespondersError, LinkError):
            await running.request("$JS.hub.API.INFO", b"", 3600.0)
        ended += 1

    async def answered_and_lost(nursery: trio.Nursery) -> None:
        async with open_client(transport, "_INBOX") as running:
            for _ in range(REQUESTS):
                nursery.start_soon(request, running)
            while written.count(b"PUB ") < REQUESTS:
                await trio.lowlevel.checkpoint()
            ((sid),) = re.findall(rb"SUB \S+ +(\d+)\r\n", bytes(written))
            for inbox in re.findall(rb"PUB \S+ (\S+) ", bytes(written)):
                transport.feed(NO_RESPONDERS % (inbox, sid))
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            raise LinkError("lost", reason="network")

    async with trio.open_nursery() as nursery:
        with pytest.raises(BaseExceptionGroup) as caught:
            await answered_and_lost(nursery)
    _, others = caught.value.split(LinkError)
    assert others is None
    assert ended == REQUESTS
