"""Add the name of the customer to each order, with an async handler that queries a database.

    python examples/enrich_from_database.py nats://127.0.0.1:4222 customers.db

The SQLite driver blocks, so it is called in a thread. The database is opened before the router and closed after it. An
order of an unknown customer is given up at once; an order that finds the database locked is retried.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from contextlib import closing
from functools import partial

import trio

from router_trio import Message, Reject, Retry, Router, Settings

LOCKED_FOR = 5.0
"""Seconds until an order that found the database locked is retried."""


class Customers:
    """The table `customers`, with the columns `id` and `name`. It runs one query at a time."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._one = trio.CapacityLimiter(1)

    async def name(self, customer: str) -> str | None:
        """Return the name of a customer; None if the customer is unknown. Can be cancelled."""
        return await trio.to_thread.run_sync(partial(self._name, customer), limiter=self._one)

    def _name(self, customer: str) -> str | None:
        row = self._database.execute("select name from customers where id = ?", (customer,)).fetchone()
        return None if row is None else str(row[0])


def settings(server: str) -> Settings:
    """Return the connection and the streams, which could also be in a file."""
    return Settings(
        telemetry={"listen": ""},
        connections={"main": {"servers": [server]}},
        streams=[
            {"name": "ORDERS", "subjects": ["orders.*"]},
            {"name": "ENRICHED", "subjects": ["enriched.*"]},
            {"name": "DEAD", "subjects": ["dead.*"]},
        ],
    )


async def run(server: str, database: sqlite3.Connection) -> None:
    """Route until a signal arrives, then drain."""
    customers = Customers(database)
    router = Router(settings(server), log=True)

    @router.route(
        stream="ORDERS",
        durable="enrich",
        filter="orders.*",
        to={"subject": "enriched.{{wildcard(1)}}", "jetstream": True},
        retry={"attempts": 5},  # of an order that is not JSON, for example
        dead_letter={"subject": "dead.{{wildcard(1)}}"},
    )
    async def enrich(message: Message) -> Message:
        order = json.loads(message.payload)
        try:
            name = await customers.name(order["customer"])
        except sqlite3.OperationalError as error:
            raise Retry(after=LOCKED_FOR, detail=str(error)) from error
        if name is None:
            raise Reject("unknown customer")
        return message.replace(payload=json.dumps(order | {"name": name}).encode())

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with router.open():
            await anext(signals)


def main() -> None:
    """Run the router with the server and the database of the command line."""
    server, path = sys.argv[1:]
    with closing(sqlite3.connect(path, check_same_thread=False, timeout=1)) as database:
        trio.run(run, server, database)


if __name__ == "__main__":
    main()
