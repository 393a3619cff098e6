"""The end of a router's start: what serves HTTP is imported while it already routes.

That import counts for no publish, neither in time nor in memory.
"""

from __future__ import annotations

import trio

from router_trio import Live


async def pages_are_there(live: Live) -> None:
    """Wait until the router answers."""
    assert live.http_address is not None
    async with await trio.open_tcp_stream(*live.http_address) as stream:
        await stream.send_all(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert await stream.receive_some()
