"""Chaos among processes that share the partitions of a route: `router-trio run` on real servers, killed and suspended.

    python -m tests.resilience.chaos --kind partitions --seed 7               one server
    python -m tests.resilience.chaos --kind partitions --seeds 20 --nodes 3   three servers, streams with three replicas

`trial` draws what happens when, `group` does it to servers and `member`s while it publishes, and `verdict` reads the
streams, the calls of handlers and the logs, and holds them against the promises of the simulation.
"""
