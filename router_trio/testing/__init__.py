"""Test routes without a server: an in-memory broker with streams, consumers and fault injection.

Pass `FakeBroker.connect` to a router, which opens the links of a connection with it. The broker runs on Trio only,
without sockets and without real time: with the autojump clock of `trio.testing` an outage of an hour takes a
millisecond, and every run has the same result. It passes the same contract tests as the links to a real nats-server.

It has no clusters, accounts, TLS or request limits, no stream limit except a number of messages, and only those parts
of the JetStream API that `link.Link` offers.
"""

from __future__ import annotations

from router_trio.testing.broker import FakeBroker
from router_trio.testing.streams import StoredMessage
from router_trio.testing.watch import PublishedMessage

__all__ = ["FakeBroker", "PublishedMessage", "StoredMessage"]
