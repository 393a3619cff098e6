"""The plan of `router-trio partitions --change`, and what is printed while it is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from router_trio.cli.command_line import DONE
from router_trio.cli.output import show

if TYPE_CHECKING:
    from router_trio.nats.command_link import CommandLink
    from router_trio.nats.partitions_change import Standing
    from router_trio.settings import RouteSettings
    from router_trio.subjects.partitions import Partitioning


async def change(link: CommandLink, route: RouteSettings, *, apply: bool) -> int:
    """Print how the partitions of a route are changed to those of its settings, or change them with `apply`."""
    from router_trio.nats.partitions_change import PartitionsChange
    from router_trio.routing.stream.consumer.limits import consumer_spec

    there = PartitionsChange(link, route.source, consumer_spec(route.source))
    now = await there.standing()
    show(f"route {route.name}, stream {now.stream}: {_described(now.found.partitioning)}")
    if now.is_done:
        show("these are the partitions of the configuration: nothing to do")
        return DONE
    if not apply:
        show(*plan(now))
        return DONE
    await there.apply(lambda text: show(text, flush=True))
    show(f"done: {_described(now.wanted)}")
    return DONE


def plan(now: Standing) -> Iterator[str]:
    """Yield the plan as lines of text."""
    yield f"wanted: {_described(now.wanted)}"
    if now.found.changing is not None:
        yield "a change was interrupted, and is continued"
    yield from (f"{number}. {step}" for number, step in enumerate(_steps(now), 1))
    if not now.has_wanted:
        old, new = now.found.partitioning.count, now.wanted.count
        yield (
            f"The processes with {old} partitions must run until their messages are settled, and are refused then; "
            f"those with {new} can be started at any time, and wait. Nothing is lost or overtaken. After an "
            "interruption run the command again."
        )
    yield "Nothing was changed: --apply does it."


def _steps(now: Standing) -> Iterator[str]:
    stream, source = now.stream, now.source
    settled = f"settle what {stream} has, {now.unsettled:,} messages now"
    if not now.has_wanted and source:
        if now.found.changing is None:
            yield f"{stream} stops to copy {source}; what is published from then on waits in {source}"
        yield settled
        yield f"empty {stream}, whose messages are all settled then"
        yield f"{stream} copies {source} again, from the message at which it stopped, with the new partitions"
    elif not now.has_wanted:
        yield f"before: stop everything that publishes to {stream}"
        yield settled
        yield f"change the transform of {stream}; its publishers can be started again"
    if now.paused:
        yield f"resume {len(now.paused)} durables that were paused by the change"
    if now.unneeded:
        yield f"delete {len(now.unneeded)} durables that do not fit the new partitions"


def _described(partitioning: Partitioning) -> str:
    by = ", ".join(map(str, partitioning.by))
    made_of = f"wildcard{'s' * (len(partitioning.by) > 1)} {by}" if by else "the entire subject"
    number = partitioning.count
    patterns = ", ".join(partitioning.patterns)
    return f"{number} partition{'s' * (number != 1)} of {patterns}, by {made_of}"
