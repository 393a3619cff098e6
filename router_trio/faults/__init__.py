"""Faults on demand: a link around a link, for tests and for rehearsals of an outage.

    faults = Faults()
    router = Router(settings, connect=faults.around_factory(real_network))
    faults.inject("publish", error("overloaded"), probability=0.1, seed=7)
    faults.inject("ack", close_connection(), times=1)
    faults.clear()

Operations: `connect`, `publish`, `publish_with_ack`, `ack`, `nak`, `subscribe`. Nothing else of the router knows of
this package: what it meets are errors of the kind that real links raise, and it counts, logs and settles them as such.
"""

from __future__ import annotations

from router_trio.faults.kinds import Fault, close_connection, delay, error, timeout
from router_trio.faults.registry import OPERATIONS, Faults, Injection

__all__ = ["OPERATIONS", "Fault", "Faults", "Injection", "close_connection", "delay", "error", "timeout"]
