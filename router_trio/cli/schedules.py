"""`router-trio schedules`: list, cancel or publish what a route has stored for later."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError, did_you_mean, number, one_of
from router_trio.cli.stored_routes import add_route

if TYPE_CHECKING:
    from router_trio.nats.command_link import CommandLink
    from router_trio.nats.jetstream.api import StoredMessage
    from router_trio.nats.stored import StoredMessages
    from router_trio.routing.route_plans import Destination
    from router_trio.settings import RouteSettings, Settings

Action = Literal["list", "cancel", "fire"]
ACTIONS = get_args(Action)

PURGES_SINCE = (2, 14)
"""The version of nats-server since which a message can be published and its schedule deleted in one step."""


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

    cancel deletes schedules: they are never published. A retry that is
    cancelled is lost, because its source was acked. fire publishes them
    now, in one step with the deletion of the schedule, so that none is
    published twice; it needs nats-server 2.14, and so does cancel for a
    retry. Both need SEQUENCE or --all. The exit code is 1 if a schedule
    was not found, for example because it is published by now.

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

    job = partial(_job, places, _of_others(settings, route), action, frozenset(sequence), limit, stream, json)
    return trio.run(over_links, settings, "schedules", [one.connection for one in places], job, lambda number: True)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where schedules of a route are: in the stream that takes `prefix.*`, if its name is not configured.

    `cancelled` is the subject that records cancellations of retries; None for delayed copies.
    """

    connection: str
    stream: str | None
    prefix: str
    cancelled: str | None = None


def _places(settings: Settings, name: str) -> list[_Place]:
    for route in settings.routes:
        if route.name == name:
            return list(dict.fromkeys(_places_of(route)))
    raise UsageError(f"there is no route {name!r}{did_you_mean(name, [route.name for route in settings.routes])}")


def _places_of(route: RouteSettings) -> list[_Place]:
    found = [
        _Place(to.connection, to.kind_for(route.source.kind).stream(to), to.schedule_prefix)
        for to in route.to
        if to.delay is not None and to.schedule_prefix is not None
    ]
    if route.retry is not None and (schedule := route.retry.schedule) is not None:
        names = schedule.names(route.name)
        cancelled = names.cancelled
        found.append(_Place(route.source.connection, schedule.stream, names.schedules, cancelled))
    return found


def _of_others(settings: Settings, name: str) -> Sequence[Destination]:
    """Return the destinations with a delay of all routes but this one: they may have its `schedule_prefix`."""
    from router_trio.routing.route_plans import compile_routes

    others = [one for one in settings.routes if one.name != name and any(to.delay is not None for to in one.to)]
    plans = compile_routes(settings.model_copy(update={"routes": others}))
    return [to for plan in plans for to in plan.destinations if to.schedule_prefix is not None]


async def _job(
    places: Sequence[_Place],
    others: Sequence[Destination],
    action: Action,
    wanted: frozenset[int],
    limit: int | None,
    stream: str | None,
    json: bool,
    links: Mapping[str, CommandLink],
) -> int:
    left, seen, failed = limit, set[int](), 0
    for place in places:
        link = links[place.connection]
        names = [place.stream] if place.stream is not None else await link.link.find_streams(f"{place.prefix}.*")
        for name in names:
            if stream not in (None, name):
                continue
            stored = link.stored(name)
            async for message in _schedules(stored, place, others):
                if (wanted and message.sequence not in wanted) or left == 0:
                    continue
                left = None if left is None else left - 1
                seen.add(message.sequence)
                done = action == "list" or await _change(link, stored, place, action, message)
                failed += not done
                print(_line(name, message, action, json, done=done))
    for missing in sorted(wanted - seen):
        failed += 1
        print(f"router-trio: {missing}: there is no schedule with this sequence", file=sys.stderr)
    return FAILED if failed else DONE


async def _schedules(
    stored: StoredMessages, place: _Place, others: Sequence[Destination]
) -> AsyncIterator[StoredMessage]:
    """Yield the schedules that are there when the command starts, in the order in which they were stored.

    Those of `others` are left out, as far as their ids show it: a handler may have chosen another id.
    """
    from router_trio.protocol import headers
    from router_trio.protocol.schedules import SCHEDULE
    from router_trio.subjects.patterns import matches

    info, pattern = await stored.info(), f"{place.prefix}.*"
    async with aclosing(stored.batches(max(info.first_sequence, 1), info.last_sequence, pattern)) as batches:
        async for batch in batches:
            for message in batch:
                is_schedule = headers.find(message.headers, SCHEDULE) is not None
                if matches(pattern, message.subject) and is_schedule and not _is_of(others, message.headers):
                    yield message


def _is_of(destinations: Sequence[Destination], block: bytes) -> bool:
    """Return True if a schedule with this header block is that of a copy for one of these destinations."""
    from router_trio.protocol import headers, schedules

    copy_id = headers.find(block, schedules.COPY_ID) or b""
    target = headers.find(block, schedules.TARGET) or b""
    return any(copy_id.endswith(one.copy_id(target)) for one in destinations)


async def _change(
    link: CommandLink, stored: StoredMessages, place: _Place, action: Action, message: StoredMessage
) -> bool:
    """Cancel or publish a schedule. Return False if it is not there any more."""
    from router_trio.errors import SourceError, reasons
    from router_trio.nats.jetstream.pubacks import Refused, read_puback
    from router_trio.protocol import framing, headers, schedules

    if action == "cancel" and place.cancelled is None:
        return await stored.deleted(stored.delete(message.sequence))
    version = link.link.info.major_minor
    if version is not None and version < PURGES_SINCE:
        raise SourceError(f"{action} needs nats-server 2.14 here", reason=reasons.SERVER_TOO_OLD)
    if action == "fire":
        target = headers.find(message.headers, schedules.TARGET) or b""
        subject, block, payload = target, schedules.fired(message.headers), message.payload
    else:
        subject, block, payload = framing.wire(place.cancelled or ""), b"", b""
    block = schedules.purging(block, message.subject, message.sequence)
    try:
        read_puback(await link.requests.send(subject, payload, block).answered())
    except Refused as error:
        if error.reason == reasons.WRONG_EXPECTATION:
            return False
        raise SourceError(f"{message.sequence} was refused: {error}", reason=error.reason) from error
    return True


def _line(stream: str, message: StoredMessage, action: Action, json: bool, *, done: bool) -> str:
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
    results = {"list": "waits", "cancel": "cancelled", "fire": "published"}
    fields["result"] = results[action] if done else "not there any more"
    if json:
        return dumps(fields)
    shown = [str(fields[name]) for name in ("sequence", "due", "stream", "subject")]
    if attempts is not None:
        shown.append(f"after {attempts} attempts" if attempts != 1 else "after 1 attempt")
    return "  ".join([*shown, *([] if action == "list" else [fields["result"]])])
