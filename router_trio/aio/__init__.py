"""A router in a program of asyncio, in the same thread.

    import asyncio
    from router_trio import Router, Settings, aio

    async def main() -> None:
        async with aio.open(Router(Settings.load("router.toml"))) as live:
            receipt = await live.publish("orders.7.created", b"hello")
            print(await receipt.settled())

    asyncio.run(main())

The program keeps its event loop, and its policy. Trio runs as a guest of the loop.
"""

from __future__ import annotations

from router_trio.aio.live import Live, Receipt
from router_trio.aio.opened import open

__all__ = ["Live", "Receipt", "open"]
