"""natsio: a callback that publishes. `natsio_core.py URL core|handler`"""

from __future__ import annotations

import asyncio
import sys

from natsio.client import ClientConfig, NATSCore  # type: ignore[import-not-found]
from natsio.messages import CoreMsg  # type: ignore[import-not-found]


async def main(url: str, with_handler: bool) -> None:
    """`in.TOKEN` -> `out.TOKEN`."""
    async with NATSCore(ClientConfig(servers=[url])) as client:

        async def forward(message: CoreMsg) -> None:
            payload = message.payload.upper() if with_handler else message.payload
            await client.publish("out." + message.subject[3:], payload)

        await client.subscribe("in.*", callback=forward)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "handler"))
