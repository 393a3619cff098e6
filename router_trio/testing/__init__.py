"""Test your routes without a server: a fake broker in memory, with streams, consumers and trouble on demand.

`FakeBroker.connect` is what a connection uses to open its links. It runs on Trio alone, without sockets and without
real time: under the autojump clock of `trio.testing` an outage of an hour takes a millisecond, and every run is like
the last. It passes the same contract tests as the links to a real nats-server.

What it leaves out: clusters, accounts, TLS, request limits, stream limits other than a number of messages, and every
JetStream API but the one that `link.Link` offers.
"""

from __future__ import annotations

from router_trio.testing.broker import FakeBroker
from router_trio.testing.streams import StoredMessage
from router_trio.testing.watch import PublishedMessage

__all__ = ["FakeBroker", "PublishedMessage", "StoredMessage"]
