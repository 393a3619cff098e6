"""FastStream's NATS broker: a subscriber that publishes. `faststream_core.py URL core|handler`"""

from __future__ import annotations

import asyncio
import sys

from faststream import FastStream  # type: ignore[import-not-found]
from faststream.nats import NatsBroker, NatsMessage  # type: ignore[import-not-found]

url, workload = sys.argv[1:3]
broker = NatsBroker(url, logger=None)


@broker.subscriber("in.*")  # type: ignore[untyped-decorator]
async def forward(body: bytes, message: NatsMessage) -> None:
    """`in.TOKEN` -> `out.TOKEN`."""
    payload = body.upper() if workload == "handler" else body
    await broker.publish(payload, "out." + message.raw_message.subject[3:])


if __name__ == "__main__":
    asyncio.run(FastStream(broker, logger=None).run())
