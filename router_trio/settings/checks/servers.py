"""Find settings that need a newer nats-server than the oldest supported one, 2.10."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from router_trio.errors import Problem
from router_trio.settings.routes import RouteSettings
from router_trio.settings.streams import StreamSettings
from router_trio.subjects.functions import parse

_FUNCTIONS = {"random": "2.12", "left": "2.15", "right": "2.15"}
_PARTITION_OF_ALL = "2.12"
_FOR_SCHEDULES = "needs nats-server 2.12, and a stream with allow_msg_schedules and without limits"


def newer_mapping(destination: str, source: str) -> str | None:
    """Return which function of a valid mapping the mappings of older servers lack; None if they have all."""
    wildcards = "*" in source.split(".")
    for token in destination.split("."):
        call = parse(token)
        if call is None:
            continue
        whole = call.name == "partition" and (not call.indexes or not wildcards)
        since = _PARTITION_OF_ALL if whole else _FUNCTIONS.get(call.name)
        if since is not None:
            what = "partition of a whole subject" if whole else call.name
            return (
                f"{what} needs nats-server {since} in a mapping of the server's own; "
                "here the router computes it, with every server"
            )
    return None


def newer_servers(routes: Sequence[RouteSettings], streams: Sequence[StreamSettings]) -> Iterator[Problem]:
    """Yield a note about each key that needs a newer server, with its path."""
    for index, route in enumerate(routes):
        path = f"routes[{index}]"
        if route.source.standby:
            yield Problem(f"{path}.from.standby", "needs nats-server 2.11, for pinned consumers")
        if route.source.partitions is not None:
            needed = "needs nats-server 2.11, for pinned consumers"
            if route.source.partition_by is None:
                needed = "needs nats-server 2.12, for partitions of entire subjects; 2.11 with partition_by"
            yield Problem(f"{path}.from.partitions", needed)
        if route.retry is not None and route.retry.schedule is not None:
            yield Problem(f"{path}.retry.schedule", _FOR_SCHEDULES)
        for number, to in enumerate(route.to):
            kind = to.kind_for(route.source.kind)
            if text := newer_mapping(kind.template(to), route.source.pattern):
                yield Problem(f"{path}.to[{number}].{kind.key}", text)
            if to.ttl:
                yield Problem(f"{path}.to[{number}].ttl", "needs nats-server 2.11, and a stream with allow_msg_ttl")
            if to.delay is not None:
                yield Problem(f"{path}.to[{number}].delay", _FOR_SCHEDULES)
        if route.dead_letter is not None and (text := newer_mapping(route.dead_letter.subject, route.source.pattern)):
            yield Problem(f"{path}.dead_letter.subject", text)
    for index, stream in enumerate(streams):
        if stream.partitions is not None and stream.partition_by is None:
            text = "needs nats-server 2.12, for partitions of entire subjects; 2.10 with partition_by"
            yield Problem(f"streams[{index}].partitions", text)
        if stream.allow_message_ttl:
            yield Problem(f"streams[{index}].allow_message_ttl", "needs nats-server 2.11")
        if stream.allow_message_schedules:
            yield Problem(f"streams[{index}].allow_message_schedules", "needs nats-server 2.12")
        if stream.allow_batched:
            yield Problem(f"streams[{index}].allow_batched", "needs nats-server 2.14")
