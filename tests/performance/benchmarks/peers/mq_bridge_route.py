"""mq-bridge, whose core is Rust: a route from `in.*`. It maps no subjects, so all messages are sent to `out.0000`.

`mq_bridge_route.py URL core|handler|stream|header|first-match [TO]`; by a header it uses a switch. TO is the URL of the
destination server, if it is another one.
"""

from __future__ import annotations

import sys
from typing import Any

from mq_bridge import Message, Route  # type: ignore[import-not-found]

BATCH = 128


def shout(message: Message) -> Message:
    """Return the payload in upper case."""
    return message.with_payload(message.payload.upper())


def main(url: str, workload: str, to: str = "") -> None:
    """Route until the process is terminated."""
    source: dict[str, Any] = {"url": url, "subject": "in.*", "stream": "IN"}
    target: dict[str, Any] = {"url": to or url, "subject": "out.0000", "stream": "OUT"}
    if workload != "stream":
        # A core subscription must be given a stream all the same; in subscriber mode it has no meaning.
        source |= {"no_jetstream": True, "subscriber_mode": True}
        target |= {"no_jetstream": True}
    output: dict[str, Any] = {"nats": target}
    if workload in ("header", "first-match"):
        values = ["c4"] if workload == "header" else [f"c{number}" for number in range(10)]
        output = {"switch": {"metadata_key": "class", "cases": {value: {"nats": target} for value in values}}}
    route = Route.from_config({"input": {"nats": source}, "output": output, "batch_size": BATCH})
    if workload == "handler":
        route = route.with_handler(shout)
    route.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
