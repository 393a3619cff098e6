"""`router-trio schedules`: list, cancel or publish what a route has stored for later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError, number, one_of
from router_trio.cli.output import show, to_stderr
from router_trio.cli.stored_routes import add_route

if TYPE_CHECKING:
    from router_trio.nats.command_link import CommandLink
    from router_trio.nats.jetstream.api import StoredMessage
    from router_trio.nats.stored import StoredMessages
    from router_trio.routing.route_plans import Destination
    from router_trio.settings import Settings
    from router_trio.settings.retry import RetryNames

Action = Literal["list", "cancel", "fire"]
ACTIONS = get_args(Action)

PURGES_SINCE = (2, 14)
"""The version of nats-server since which a message can be published and its schedule deleted in one step."""

CANCELLED = "cancelled"
PUBLISHED = "published"
DONE_RESULTS = ("waits", CANCELLED, PUBLISHED)

GONE = "not there any more"
NOT_COVERED = "left to its stream: a handler chose its subject, which no destination covers"
NOT_OF_ROUTE = "they are no schedules, or not of this route as it is configured"


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `schedules`."""
    add_route(parser, "the name of the route")
    parser.add_argument(
        "action", type=one_of(*ACTIONS), choices=ACTIONS, metavar="ACTION", help=f"one of {', '.join(ACTIONS)}"
    )
    parser.add_argument(
        "sequence", nargs="*", type=number(1), metavar="SEQUENCE", help="only these, by the SEQUENCE that list prints"
    )
    parser.add_argument("--all", action="store_true", help="cancel or fire all schedules of the route")
    parser.add_argument("--limit", type=number(1), metavar="N", help="at most N schedules, the oldest first")
    parser.add_argument("--stream", metavar="NAME", help="only schedules in this stream")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each schedule")


def schedules(
    config: Path,
    route: str,
    action: Action,
    sequence: Sequence[int],
    *,
    all: bool,
    limit: int | None,
    stream: str | None,
    json: bool,
) -> int:
    """List, cancel or publish what a route has stored for later.

    These are the copies of destinations with delay, and the messages that
    wait for an attempt in the stream of [routes.retry] schedule. list
    prints one line for each: its sequence, when it is due, its stream, and
    the subject under which it will be published or, for a retry, routed.
    What others have stored there, and what the route stored with another
    template, is counted and left alone.

    cancel deletes schedules: they are never published. A retry that is
    cancelled is lost, because its source was acked. fire publishes them
    now, in one step with the deletion of the schedule, so that none is
    published twice; it needs nats-server 2.14, and so does cancel for a
    retry. A copy for which a handler has chosen a subject that the
    destination does not cover is left to its stream. Both need SEQUENCE
    or --all. The exit code is 1 if a schedule was not found, for example
    because it is published by now.

    For example:

        router-trio schedules router.toml orders list
        router-trio schedules router.toml orders fire 17 18
        router-trio schedules router.toml orders cancel --all
    """
    import trio

    from router_trio.cli.configuration import load

    if action != "list" and not sequence and not all:
        raise UsageError(f"{action} needs a SEQUENCE, as list prints it, or --all")
    settings = load(config)
    settings.require_servers()
    places = [one for one in _places(settings, route) if stream is None or one.stream in (None, stream)]
    if not places:
        what = "stores nothing for later: it has neither `delay` nor `schedule` in [routes.retry]"
        raise UsageError(f"route {route} {what if stream is None else f'uses no stream {stream!r} for schedules'}")
    from router_trio.cli.over_links import over_links

    job = partial(_job, places, route, action, frozenset(sequence), limit, stream, json)
    return trio.run(over_links, settings, "schedules", [one.connection for one in places], job, lambda number: True)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where schedules of a route are: in the stream that takes `prefix.*`, if its name is not configured.

    They are copies for `destinations`, or retries with these `names` if the route reads the stream `source`.
    """

    connection: str
    stream: str | None
    prefix: str
    destinations: tuple[Destination, ...] = ()
    names: RetryNames | None = None
    source: str | None = None

    def has(self, route: str, message: StoredMessage) -> bool:
        """Return True if the route has stored a message, as what is stored proves. Others may publish there."""
        if self.names is None:
            return any(one.has_scheduled(message.subject, message.headers) for one in self.destinations)
        from router_trio.protocol.framing import wire
        from router_trio.routing.stream.retries.origin import place_of

        place = place_of(message.headers, message.subject, self.names, route)
        return place is not None and message.subject != self.names.target and place.stream == wire(self.source or "")

    def covers(self, target: str) -> bool:
        """Return True if the route itself sends to this subject, and not a handler's choice."""
        return self.names is not None or any(one.covers(target) for one in self.destinations)


def _places(settings: Settings, name: str) -> list[_Place]:
    from router_trio.routing.route_plans import compile_routes

    for route in settings.routes:
        if route.name == name:
            (plan,) = compile_routes(settings.model_copy(update={"routes": [route]}))
            found: dict[tuple[str, str | None, str], list[Destination]] = {}
            for to in plan.destinations:
                if to.schedule_prefix is not None:
                    found.setdefault((to.connection, to.stream, to.schedule_prefix), []).append(to)
            places = [_Place(*where, tuple(destinations)) for where, destinations in found.items()]
            if (retries := plan.retry_schedule) is not None:
                names = retries.names
                places.append(_Place(plan.connection, retries.stream, names.schedules, (), names, plan.stream))
            return places
    from router_trio.settings.problems import no_route

    raise UsageError(no_route(name, [route.name for route in settings.routes]))


async def _job(
    places: Sequence[_Place],
    route: str,
    action: Action,
    wanted: frozenset[int],
    limit: int | None,
    stream: str | None,
    json: bool,
    links: Mapping[str, CommandLink],
) -> int:
    left, seen, failed, others = limit, set[int](), 0, dict[str, int]()
    for place in places:
        link = links[place.connection]
        names = [place.stream] if place.stream is not None else await link.link.find_streams(f"{place.prefix}.*")
        for name in names:
            if stream not in (None, name):
                continue
            stored = link.stored(name)
            async for message in _below(stored, place):
                if not place.has(route, message):
                    others[name] = others.get(name, 0) + 1
                    continue
                if (wanted and message.sequence not in wanted) or left == 0:
                    continue
                left = None if left is None else left - 1
                seen.add(message.sequence)
                result = "waits" if action == "list" else await _change(link, stored, place, action, message)
                failed += result not in DONE_RESULTS
                show(_line(name, message, action, json, result))
    for missing in sorted(wanted - seen):
        failed += 1
        to_stderr(f"router-trio: {missing}: route {route} has no schedule with this sequence")
    for name, count in others.items():
        to_stderr(f"router-trio: {count:,} messages in {name} are left alone: {NOT_OF_ROUTE}")
    return FAILED if failed else DONE


async def _below(stored: StoredMessages, place: _Place) -> AsyncIterator[StoredMessage]:
    """Yield the messages that are there when the command starts, in the order in which they were stored."""
    from router_trio.subjects.patterns import matches

    info, pattern = await stored.info(), f"{place.prefix}.*"
    async with aclosing(stored.batches(max(info.first_sequence, 1), info.last_sequence, pattern)) as batches:
        async for batch in batches:
            for message in batch:
                if matches(pattern, message.subject):
                    yield message


async def _change(
    link: CommandLink, stored: StoredMessages, place: _Place, action: Action, message: StoredMessage
) -> str:
    """Cancel or publish a schedule of the route. Return what became of it: one of `DONE_RESULTS`, or why nothing."""
    from router_trio.errors import SourceError, reasons
    from router_trio.nats.jetstream.pubacks import Refused, read_puback
    from router_trio.protocol import framing, schedules

    if action == "cancel" and place.names is None:
        return CANCELLED if await stored.deleted(stored.delete(message.sequence)) else GONE
    version = link.link.info.major_minor
    if version is not None and version < PURGES_SINCE:
        raise SourceError(f"{action} needs nats-server 2.14 here", reason=reasons.SERVER_TOO_OLD)
    if action == "fire":
        subject, _ = schedules.wanted(message.headers)
        if not place.covers(framing.text(subject)):
            return NOT_COVERED
        block, payload = schedules.fired(message.headers, stored.stream), message.payload
    else:
        assert place.names is not None, "a retry is cancelled by a record"
        subject, block, payload = framing.wire(place.names.cancelled), b"", b""
    block = schedules.purging(block, message.subject, message.sequence)
    try:
        read_puback(await link.requests.send(subject, payload, block).answered())
    except Refused as error:
        if error.reason == reasons.WRONG_EXPECTATION:
            return GONE
        raise SourceError(f"{message.sequence} was refused: {error}", reason=error.reason) from error
    return PUBLISHED if action == "fire" else CANCELLED


def _line(stream: str, message: StoredMessage, action: Action, json: bool, result: str) -> str:
    from json import dumps

    from router_trio.audit.outcomes import shown_time
    from router_trio.protocol import headers, schedules
    from router_trio.routing.stream.retries.origin import PREFIX

    due = schedules.due_ns(headers.find(message.headers, schedules.SCHEDULE) or b"")
    origin = headers.find(message.headers, f"{PREFIX}Subject".encode())
    target = origin or headers.find(message.headers, schedules.TARGET) or b""
    attempts = headers.find_number(message.headers, f"{PREFIX}Attempts".encode())
    fields: dict[str, Any] = {
        "sequence": message.sequence,
        "due": None if due is None else shown_time(due),
        "stream": stream,
        "subject": target.decode("utf-8", "replace"),
        "attempts": attempts,
        "bytes": len(message.payload),
    }
    fields["result"] = result
    if json:
        return dumps(fields)
    shown = [str(fields[name]) for name in ("sequence", "due", "stream", "subject")]
    if attempts is not None:
        shown.append(f"after {attempts} attempts" if attempts != 1 else "after 1 attempt")
    return "  ".join([*shown, *([] if action == "list" else [fields["result"]])])
