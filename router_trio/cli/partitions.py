"""`router-trio partitions`: which process leads which partition of a route, one moved by hand, or all changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError, number
from router_trio.cli.configuration import load
from router_trio.cli.output import show, show_json
from router_trio.cli.stored_routes import add_route, consumer_of, stored_route

if TYPE_CHECKING:
    from router_trio.link import Announced
    from router_trio.nats.command_link import CommandLink
    from router_trio.nats.partitions import RoutePartitions, Seen
    from router_trio.settings import RouteSettings

NOT_A_STREAM = "so it has no partitions; it needs a stream"

LED_WITHIN = 20.0
"""Seconds for a partition to be led by the process that it was moved to.

The other process notices the move within a second, waits for another one, and settles what it has in hand. Both
announce what they lead every 1.5 s.
"""

LOOK_EVERY = 0.5

SHOWN_OF_ID = 8
"""Characters of the id of a process that are shown, unless two have the same."""

_ROW = "{:>9}  {:<{width}}  {:30}  {:>9}  {:>9}  {}"
_MEMBER_ROW = "{:<{width}}  {:>3}  {:>5}  {}"


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `partitions`."""
    add_route(parser)
    parser.add_argument("--move", type=number(0), metavar="N", help="move this partition by hand, with --to or --back")
    parser.add_argument("--to", metavar="MEMBER", help="to this process: its id, or the beginning of it")
    parser.add_argument("--back", action="store_true", help="back to the process whose share it is")
    parser.add_argument("--change", action="store_true", help="show how the partitions become those of CONFIG")
    parser.add_argument("--apply", action="store_true", help="with --change, change them")
    parser.add_argument("--json", action="store_true", help="print JSON")


def partitions(
    config: Path, route: str, *, move: int | None, to: str | None, back: bool, change: bool, apply: bool, json: bool
) -> int:
    """Show which process leads which partition of a route, move one, or change their number.

    Prints a line for each partition: the process that leads it, since
    when it has its lead, how many messages were not delivered yet, and
    how many are unacked. A partition that had no message for a while is
    idle, and has no leader. Below are the processes: how many partitions
    each leads, and how many are its share. A process is named by the id
    that it draws at its start and shows in /status as member.

    With --move and --to, a partition becomes the share of that process,
    until it ends or the partition is moved again; the others share the
    rest. --back undoes this. The process that leads it settles what it
    has in hand first, so that the order of each key holds. The command
    waits for that, for 20 s at most. The exit code is 1 if the partition
    is not led by that process then; the move stays.

    With --change the plan is printed by which the partitions become those
    of the configuration, after a change of partitions, partition_by or
    filter: nothing new is delivered until the processes with the old
    partitions have settled all that they have, so they must run. --apply
    carries it out, and prints what it waits for. When it is interrupted,
    the same command continues.

    For example:

        router-trio partitions router.toml orders
        router-trio partitions router.toml orders --move 3 --to 5f2c
        router-trio partitions router.toml orders --move 3 --back
        router-trio partitions router.toml orders --change --apply
    """
    import trio

    settings = load(config)
    found = stored_route(settings, route, NOT_A_STREAM, any_partitions=True)
    count = found.source.partitions
    if count is None:
        raise UsageError(f"route {route} has no partitions; give their number as `partitions` in its source")
    _check_move(route, count, move, to, back)
    _check_change(change, apply, move is not None, json)
    settings.require_servers()
    from router_trio.cli.over_links import over_links

    job = partial(_change, found, apply) if change else partial(_job, found, count, move, to, json)
    return trio.run(over_links, settings, "partitions", [found.source.connection], job, lambda number: True)


def _check_move(route: str, count: int, move: int | None, to: str | None, back: bool) -> None:
    if move is None:
        if to is not None or back:
            raise UsageError(f"{'--back' if to is None else '--to'} needs --move N, the partition to move")
    elif (to is not None) is back:
        raise UsageError("--move needs either --to or --back; router-trio partitions --help shows an example")
    elif move >= count:
        raise UsageError(f"--move {move}: route {route} has the partitions 0 to {count - 1}")


def _check_change(change: bool, apply: bool, moves: bool, json: bool) -> None:
    if apply and not change:
        raise UsageError("--apply needs --change")
    if change and (moves or json):
        raise UsageError(f"--change and {'--move' if moves else '--json'} exclude each other")


async def _change(route: RouteSettings, apply: bool, links: Mapping[str, CommandLink]) -> int:
    from router_trio.cli.partitions_change import change

    return await change(links[route.source.connection], route, apply=apply)


async def _job(
    route: RouteSettings, count: int, move: int | None, to: str | None, json: bool, links: Mapping[str, CommandLink]
) -> int:
    from router_trio.nats.partitions import RoutePartitions
    from router_trio.settings.routes.sources.partitioned import derived_stream

    stream, durable = consumer_of(route)
    there = RoutePartitions(links[route.source.connection], stream, durable, derived_stream(stream, durable))
    code = DONE if move is None else await _move(there, route, count, move, to)
    shown = await _look(there, route, count)
    if json:
        show_json(shown.as_json())
    else:
        show(*shown.lines())
    return code


async def _move(there: RoutePartitions, route: RouteSettings, count: int, partition: int, to: str | None) -> int:
    """Move a partition, and wait until the process whose share it is then leads it. Return the exit code."""
    import trio

    seen = await there.seen()
    member = None if to is None else _member(to, seen.members)
    await there.move(partition, member, seen.members)
    with trio.move_on_after(LED_WITHIN):
        while True:
            shown = await _look(there, route, count)
            one = shown.partitions[partition]
            is_there = one.member == one.share or (one.member is None and one.is_idle)
            if is_there and (member is None or member == one.share):
                return DONE
            await trio.sleep(LOOK_EVERY)
    return FAILED


def _member(text: str, members: Mapping[str, Announced]) -> str:
    """Return the member with this id, or whose id begins with it. Raises `UsageError`."""
    found = [one for one in sorted(members) if one.startswith(text)]
    if len(found) == 1:
        return found[0]
    if not members:
        raise UsageError(f"--to {text}: no process shares the partitions of the route now")
    known = ", ".join(found or sorted(members))
    raise UsageError(f"--to {text}: {'several processes begin so' if found else 'there is no such process'}: {known}")


def _shares(count: int, seen: Seen) -> Mapping[int, str]:
    """Return the member whose share each partition is; nothing without members."""
    from router_trio.routing.stream.partitions.shares import owners

    return dict(enumerate(owners(count, seen.members.keys(), seen.moved))) if seen.members else {}


async def _look(there: RoutePartitions, route: RouteSettings, count: int) -> Shown:
    from router_trio.settings.routes.sources.partitioned import durables

    stream, known = await there.stream()
    consumers = await there.consumers(stream, durables(route.source))
    seen = await there.seen()
    shares = _shares(count, seen)
    leaders = {partition: member for member, one in sorted(seen.members.items()) for partition in one.led}
    found = [
        Partition(
            partition=partition,
            member=leaders.get(partition),
            share=shares.get(partition),
            moved=seen.moved.get(partition) in seen.members,
            since=None if consumer is None else consumer.pinned_at or None,
            lag=None if consumer is None else consumer.num_pending,
            unacked=None if consumer is None else consumer.num_ack_pending,
        )
        for partition, consumer in enumerate(consumers)
    ]
    return Shown(route.name, stream, known.lag, found, seen.members)


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition: `member` leads it, `share` should. None for what is not known, or does not exist."""

    partition: int
    member: str | None
    share: str | None
    moved: bool
    since: str | None
    lag: int | None
    unacked: int | None

    @property
    def is_idle(self) -> bool:
        """True if it has nothing to deliver, so that no process needs its lead."""
        return not self.lag and not self.unacked


@dataclass(frozen=True, slots=True)
class Shown:
    """The partitions of a route and its members. `uncopied` messages are not in `stream` yet."""

    route: str
    stream: str
    uncopied: int
    partitions: Sequence[Partition]
    members: Mapping[str, Announced]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as data."""
        return {
            "route": self.route,
            "stream": self.stream,
            "uncopied": self.uncopied,
            "count": len(self.partitions),
            "partitions": [
                {
                    "partition": one.partition,
                    "member": one.member,
                    "share": one.share,
                    "moved": one.moved,
                    "since": one.since,
                    "lag": one.lag,
                    "unacked": one.unacked,
                }
                for one in self.partitions
            ],
            "members": {
                member: {"name": one.name, "host": one.host, "led": list(one.led)}
                for member, one in sorted(self.members.items())
            },
        }

    def lines(self) -> Iterator[str]:
        """Yield all of it as text."""
        unled = sum(one.member is None and not one.is_idle for one in self.partitions)
        parts = [
            _counted(len(self.partitions), "partition"),
            _counted(len(self.members), "process", "processes"),
            *([f"{unled:,} without a leader"] if unled else []),
            *([f"{_counted(self.uncopied, 'message')} not copied yet"] if self.uncopied else []),
        ]
        yield f"route {self.route}, stream {self.stream}: {', '.join(parts)}"
        width = max([len("LED BY"), *(len(self._short(one)) for one in self.members)])
        yield _ROW.format("PARTITION", "LED BY", "SINCE", "LAG", "UNACKED", "", width=width).rstrip()
        for one in self.partitions:
            led_by = "-" if one.member is None else self._short(one.member)
            numbers = ("-" if count is None else f"{count:,}" for count in (one.lag, one.unacked))
            yield _ROW.format(one.partition, led_by, one.since or "-", *numbers, self._note(one), width=width).rstrip()
        if self.members:
            yield _MEMBER_ROW.format("PROCESS", "LED", "SHARE", "ROUTER", width=max(width, len("PROCESS")))
        for member, announced in sorted(self.members.items()):
            share = sum(one.share == member for one in self.partitions)
            where = f"{announced.name} on {announced.host}" if announced.name else "unknown"
            led = len(announced.led)
            yield _MEMBER_ROW.format(self._short(member), led, share, where, width=max(width, len("PROCESS")))

    def _note(self, one: Partition) -> str:
        """Return what is special about a partition, as text."""
        notes = ["moved by hand"] if one.moved else []
        if one.member is None and one.is_idle:
            notes.append("idle")
        if one.share not in (None, one.member):
            notes.append(f"share of {self._short(one.share)}")
        return ", ".join(notes)

    def _short(self, member: str) -> str:
        """Return the beginning of an id that no other member has."""
        length = SHOWN_OF_ID
        while any(one != member and one.startswith(member[:length]) for one in self.members):
            length += 1
        return member[:length]


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"
