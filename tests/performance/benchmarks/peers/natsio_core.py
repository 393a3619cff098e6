"""natsio: a callback that publishes. `natsio_core.py URL core|handler`"""

from __future__ import annotations

import asyncio
import sys

import natsio  # type: ignore[import-not-found]


async def main(url: str, with_handler: bool) -> None:
    """Route `in.TOKEN` to `out.TOKEN`."""
    async with await natsio.connect(url) as client:

        async def forward(message: natsio.Msg) -> None:
            payload = message.payload.upper() if with_handler else message.payload
            await client.publish("out." + message.subject[3:], payload)

        client.subscribe("in.*", cb=forward)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "handler"))
