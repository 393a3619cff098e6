"""FastStream's NATS broker: a subscriber that publishes, with a filter if the job has one.

`faststream_core.py URL core|handler|waiting|header|body`; `waiting` is `handler` after 10 ms, 64 at a time.
"""

from __future__ import annotations

import asyncio
import json
import sys

from faststream import FastStream  # type: ignore[import-not-found]
from faststream.nats import NatsBroker, NatsMessage  # type: ignore[import-not-found]

url, workload = sys.argv[1:3]
broker = NatsBroker(url, logger=None)


subscriber = broker.subscriber("in.*", max_workers=64 if workload == "waiting" else 1)


async def passes(message: NatsMessage) -> bool:
    """Return True if the filter of the workload accepts the message."""
    if workload == "header":
        return bool(message.headers.get("class") == "c4")
    return workload != "body" or json.loads(message.body)["total"] > 100.0


@subscriber(filter=passes)  # type: ignore[untyped-decorator]
async def forward(body: bytes, message: NatsMessage) -> None:
    """Forward `in.TOKEN` to `out.TOKEN`."""
    if workload == "waiting":
        await asyncio.sleep(0.01)
    payload = body.upper() if workload in ("handler", "waiting") else body
    await broker.publish(payload, "out." + message.raw_message.subject[3:], headers=message.raw_message.headers)


if __name__ == "__main__":
    asyncio.run(FastStream(broker, logger=None).run())
