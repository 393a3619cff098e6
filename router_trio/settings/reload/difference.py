"""Compare two configurations: what would a reload from one to the other do? Pure.

Routes and connections are identified by name. One with the same values is unchanged, whether they are in the file or
defaults. A route is also changed if a connection changed that it reads from or sends to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from router_trio.errors import Problem
from router_trio.settings.checks.flow import may_schedule
from router_trio.settings.content import without_keys
from router_trio.settings.routes import RouteSettings
from router_trio.settings.routes.sources.partitioned import partitioning_of
from router_trio.settings.sections import Section
from router_trio.settings.settings import Settings
from router_trio.settings.streams import StreamSettings

S = TypeVar("S", bound=Section)

_TAP = ("tap", "tap_payloads")

AT_ONCE = frozenset({"router.shutdown_timeout", *(f"telemetry.{key}" for key in _TAP)})
"""Keys outside connections, routes and streams that a reload applies; the others need a restart."""

_HOLD_CREDENTIALS = frozenset({"password", "token", "servers", "proxy", "websocket_headers"})

_NOT_SET = "not set"
_HIDDEN = "not shown"


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key that differs, by its path, with both values as text. Credentials are not shown."""

    path: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path}: {self.old} -> {self.new}"

    @property
    def needs_restart(self) -> bool:
        """Return True for a key of the process that only a restart applies."""
        return self.path not in AT_ONCE


@dataclass(frozen=True, slots=True)
class Change:
    """An item of both configurations that differs: in these keys, or because `connections` of a route differ."""

    name: str
    keys: tuple[KeyChange, ...]
    connections: tuple[str, ...] = ()
    keeps_subscription: bool = False
    """True for a route that keeps its core subscription, so that no message is lost or duplicated."""
    keeps_messages: bool = False
    """True for a core route of the same subscription, perhaps on another link: it keeps messages that wait."""


@dataclass(frozen=True, slots=True)
class Names:
    """The differences of one kind of item: the names that only one side has, those that differ, and the others."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[Change, ...] = ()
    unchanged: tuple[str, ...] = ()

    @property
    def changed_names(self) -> tuple[str, ...]:
        """The names of the items that differ."""
        return tuple(one.name for one in self.changed)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True)
class _Durable:
    """A durable, or those of the partitions of one name."""

    connection: str
    stream: str
    name: str
    has_partitions: bool

    def __str__(self) -> str:
        partitions = " with its partitions" if self.has_partitions else ""
        return f"durable {self.name}{partitions} of stream {self.stream} on connection {self.connection}"


@dataclass(frozen=True, slots=True)
class Difference:
    """All differences. `process` are the keys of the sections `router` and `telemetry`.

    `left` is what routes leave behind on servers, by route.
    """

    connections: Names
    routes: Names
    streams: Names
    process: tuple[KeyChange, ...]
    left: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def needs_restart(self) -> tuple[str, ...]:
        """The paths of differing keys that only a restart applies."""
        return tuple(one.path for one in self.process if one.needs_restart)

    def lines(self) -> Iterator[str]:
        """Yield each key that differs, after the name of its item, with both values."""
        yield from map(str, self.process)
        for kind, names in (("connection", self.connections), ("stream", self.streams), ("route", self.routes)):
            for change in names.changed:
                yield from (f"{kind} {change.name}: {key}" for key in change.keys)

    def __bool__(self) -> bool:
        return bool(self.connections or self.routes or self.streams or self.process)


def difference(old: Settings, new: Settings) -> Difference:
    """Return what a reload from `old` to `new` would do."""
    connections = _names(old.connections, new.connections)
    routes = _routes(_by_name(old.routes), _by_name(new.routes), connections)
    streams = _names(_streams(old.streams), _streams(new.streams))
    process = tuple(_keys(old.router, new.router, "router.")) + tuple(_keys(old.telemetry, new.telemetry, "telemetry."))
    return Difference(connections, routes, streams, process + tuple(_positions(old, new)), _left(old, new))


def other_partitions(old: Settings, new: Settings) -> Iterator[Problem]:
    """Yield a problem for each route that keeps its durable and gets other partitions, which no reload can change.

    Messages in the old ones would be left unsettled, and overtaken.
    """
    before = _by_name(old.routes)
    for index, route in enumerate(new.routes):
        source, was = route.source, None if route.name not in before else before[route.name].source
        if was is None or was.connection != source.connection or was.kind.consumer(was) != source.kind.consumer(source):
            continue
        had, has = partitioning_of(was), partitioning_of(source)
        if had == has:
            continue
        if had is None or has is None:
            text = "can't be added or removed while the route keeps its durable; use another durable"
        else:
            text = (
                "can't be changed by a reload, and neither can what determines them: run `router-trio partitions "
                f"CONFIG {route.name} --change --apply` (without --apply it prints the plan), and then restart the "
                "processes"
            )
        yield Problem(f"routes[{index}].from.partitions", text)


def _left(old: Settings, new: Settings) -> dict[str, tuple[str, ...]]:
    """Return what routes of the old settings leave behind on servers, by route."""
    after = _by_name(new.routes)
    read = {durable for route in new.routes if (durable := _durable_of(route)) is not None}
    found = {}
    for route in old.routes:
        durable, retries = _durable_of(route), _left_retries(route, after.get(route.name))
        lines = [] if durable is None or durable in read else [f"{durable} stays on the server"]
        lines += [] if retries is None else [retries]
        if lines:
            found[route.name] = tuple(lines)
    return found


def _durable_of(route: RouteSettings) -> _Durable | None:
    """Return the durable that a route reads; None if it reads none."""
    source = route.source
    consumer = source.kind.consumer(source)
    return None if consumer is None else _Durable(source.connection, *consumer, source.partitions is not None)


def _left_retries(route: RouteSettings, now: RouteSettings | None) -> str | None:
    """Return what becomes of retries that a route has scheduled and does not schedule `now`; None of none."""
    place = _scheduled_in(route)
    if place is None or (now is not None and place == _scheduled_in(now)):
        return None
    connection, stream, prefix = place
    drains = now is not None and now.source.connection == connection and may_schedule(route.retry, now)
    what = "are received until none is left" if drains else "are not received any more"
    return f"retries that wait in {stream} below {prefix} {what}"


def _scheduled_in(route: RouteSettings) -> tuple[str, str, str] | None:
    """Return the connection, stream and prefix in which retries of a route are scheduled; None if they are not."""
    schedule = None if route.retry is None else route.retry.schedule
    return None if schedule is None else (route.source.connection, schedule.stream, schedule.prefix)


def connections_of(route: RouteSettings) -> Sequence[str]:
    """Return the names of the connections that a route reads from or sends to, each once."""
    dead_letters = [] if route.dead_letter is None else [route.dead_letter.connection]
    return tuple(dict.fromkeys((route.source.connection, *(to.connection for to in route.to), *dead_letters)))


def _same_subscription(old: RouteSettings, new: RouteSettings) -> bool:
    """Return True if both are core routes with the same subscription."""
    before, after = old.source, new.source
    kept = before.kind.subscription(before)
    return kept is not None and (before.connection, kept) == (after.connection, after.kind.subscription(after))


def in_effect(old: Settings, new: Settings) -> Settings:
    """Return the settings of a process after a reload: keys that need a restart keep their old values."""
    router = old.router.model_copy(update={"shutdown_timeout": new.router.shutdown_timeout})
    telemetry = old.telemetry.model_copy(update={key: getattr(new.telemetry, key) for key in _TAP})
    kept = {"router": router, "telemetry": telemetry, "positions": old.positions}
    return new.model_copy(update=kept)


def _positions(old: Settings, new: Settings) -> Iterator[KeyChange]:
    """Yield a key for `[[positions]]` if they differ."""
    if {one.key: one for one in old.positions} != {one.key: one for one in new.positions}:
        before, after = (", ".join(f"{one.consumer} of {one.route}" for one in s.positions) for s in (old, new))
        yield KeyChange("positions", before or _NOT_SET, after or _NOT_SET)


def _by_name(routes: Sequence[RouteSettings]) -> dict[str, RouteSettings]:
    return {route.name: route for route in routes}


def _streams(streams: Sequence[StreamSettings]) -> dict[str, StreamSettings]:
    return {stream.label: stream for stream in streams}


def _names(old: Mapping[str, S], new: Mapping[str, S]) -> Names:
    found = {name: tuple(_keys(old[name], section)) for name, section in new.items() if name in old}
    return Names(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(Change(name, keys) for name, keys in found.items() if keys),
        unchanged=tuple(name for name, keys in found.items() if not keys),
    )


def _routes(old: Mapping[str, RouteSettings], new: Mapping[str, RouteSettings], connections: Names) -> Names:
    touched = {*connections.changed_names}
    names = _names(old, new)
    keys = {one.name: one.keys for one in names.changed}
    changed, unchanged = [], []
    for name in (name for name in new if name in old):
        through = tuple(sorted(touched & {*connections_of(old[name]), *connections_of(new[name])}))
        if name in keys or through:
            same = _same_subscription(old[name], new[name])
            stays = same and new[name].source.connection not in touched
            changed.append(Change(name, keys.get(name, ()), through, stays, same))
        else:
            unchanged.append(name)
    return Names(names.added, names.removed, tuple(changed), tuple(unchanged))


# --- one section ---


def _keys(old: Section, new: Section, prefix: str = "") -> Iterator[KeyChange]:
    """Yield the keys that differ, in the order of the sections."""
    if old == new:
        return  # the usual case, made fast: a router may have a thousand routes
    before, after = _Flat(old), _Flat(new)
    for path in dict.fromkeys((*before.given, *after.given)):
        if before.values.get(path) != after.values.get(path):
            one, other = before.shown.get(path, _NOT_SET), after.shown.get(path, _NOT_SET)
            # Values that look equal differ in a hidden credential.
            yield KeyChange(prefix + path, *((one, other) if one != other else (_HIDDEN, _HIDDEN)))


class _Flat:
    """The values of a section by the paths of their keys, in the form of a file: those that were `given`, and all."""

    def __init__(self, section: Section) -> None:
        self.given: list[str] = [
            path for path, _ in _flat(section.model_dump(mode="json", by_alias=True, exclude_unset=True))
        ]
        as_text = dict(_flat(section.model_dump(mode="json", by_alias=True)))
        # As text, all credentials look equal.
        as_they_are = dict(_flat(section.model_dump(by_alias=True)))
        self.values: dict[str, Any] = as_text | {
            path: value for path, value in as_they_are.items() if not _HOLD_CREDENTIALS.isdisjoint(path.split("."))
        }
        self.shown: dict[str, str] = {
            path: json.dumps(without_keys(value), ensure_ascii=False)
            for path, value in as_text.items()
            if value is not None
        }


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _flat(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for index, one in enumerate(value):
            yield from _flat(one, f"{path}[{index}]")
    else:
        yield path, value or None if isinstance(value, dict | list) else value
