"""The metadata of what a router creates (ADR-33): who has created it, and the thresholds for monitoring. Pure.

It is set at creation only. A stream or consumer that exists is neither refused nor changed because of its metadata, so
routers of several versions can share it, and an administrator can change it. Pauses have a record of their own: see
`nats.pause`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache

ROUTE = "router-trio.route"
VERSION = "router-trio.version"
CONFIG = "router-trio.config"
"""Keys of the route, the version of the router, and the hash of its configuration, all at the time of creation."""

SENDS = "router-trio.sends"
"""Key in a durable: where its route sends, at the time of creation. See `sends`."""

MOST_SENDS = 2048
"""Bytes of it, in all."""

CONTINUES = "router-trio.continues"
"""Key in a durable that continues where a deleted one was: its start is not where the route started."""

MONITOR = "io.nats.monitor."
"""The prefix of the keys that `nats server check` and `nats audit` read; the rest of each is the name of a flag."""

MANY = 1000
"""Undelivered messages, or redelivered ones, that are critical; `max_in_flight` if that is more."""

PEER_SEEN_CRITICAL = "10s"
"""Silence of a replica that is critical: the default of `nats server check stream`."""

Metadata = Callable[[], Mapping[str, str]]
"""Return the metadata of what is created now. The hash of a configuration is computed only if something is created."""


@cache
def package_version() -> str:
    """Return the version of the installed distribution, `0` if the router runs from a source tree."""
    # Imported here because routing does not need it.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("router-trio")
    except PackageNotFoundError:
        return "0"


def created_by(config_hash: str) -> dict[str, str]:
    """Return the metadata that identifies the router that creates something."""
    return {VERSION: package_version(), CONFIG: config_hash}


def sends(ends: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return where a route sends, as metadata: servers, `""` for that of its source, and subjects.

    Those that do not fit into `MOST_SENDS` are left out.
    """
    kept: list[tuple[str, str]] = []
    for end in ends:
        if len(json.dumps([*kept, end])) > MOST_SENDS:
            break
        kept.append(end)
    return {SENDS: json.dumps(kept)} if kept else {}


def sends_of(text: str) -> tuple[tuple[str, str], ...]:
    """Return the servers and subjects of the metadata; none if another client has written something else."""
    try:
        found = json.loads(text) if 0 < len(text) <= MOST_SENDS else []
    except (ValueError, RecursionError):
        return ()
    if not isinstance(found, list) or not all(isinstance(one, list) and len(one) == 2 for one in found):
        return ()
    pairs = tuple((server, subject) for server, subject in found)
    return pairs if all(type(one) is str and one.isprintable() for pair in pairs for one in pair) else ()


def monitored_consumer(max_ack_pending: int, max_in_flight: int) -> dict[str, str]:
    """Return the thresholds for the durable of a route.

    At `max_ack_pending` unacked messages, its server delivers nothing new. `max_in_flight` undelivered messages, or
    redelivered ones, are as many as a process has in hand. Times since the last delivery or ack have no threshold: they
    are long if there is nothing to route. Nor has a pinned client: there is none before the first message.
    """
    many = str(max(MANY, max_in_flight))
    return {
        f"{MONITOR}enabled": "true",
        f"{MONITOR}outstanding-ack-critical": str(max_ack_pending),
        f"{MONITOR}unprocessed-critical": many,
        f"{MONITOR}redelivery-critical": many,
    }


def monitored_stream(replicas: int) -> dict[str, str]:
    """Return the thresholds for a stream. Without replicas there is nothing to compare."""
    replicated = {f"{MONITOR}peer-expect": str(replicas), f"{MONITOR}peer-seen-critical": PEER_SEEN_CRITICAL}
    return {f"{MONITOR}enabled": "true"} | (replicated if replicas > 1 else {})
