"""A complete and checked configuration.

A `Settings` that exists can be used: every value has its type, every route's connections exist and its mappings
compile. All problems are reported at once, each with the path of its key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from operator import is_
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from router_trio.errors import ConfigurationError, Problem
from router_trio.settings.checks.configuration import RouteParts, check, check_shared
from router_trio.settings.checks.partitions import check_partitions
from router_trio.settings.checks.resolve import Connections, resolve_connection
from router_trio.settings.checks.streams import check_streams
from router_trio.settings.examples import ExampleSettings
from router_trio.settings.positions import PositionSettings, check_positions
from router_trio.settings.problems import keys_of, problems_from
from router_trio.settings.reading.document import Document
from router_trio.settings.reading.files import Files
from router_trio.settings.reading.load import parse_document, read_document, reading
from router_trio.settings.retry import DeadLetterSettings, RetrySettings
from router_trio.settings.routes import DestinationSettings, LimitSettings, RouteSettings, SourceSettings, Strategy
from router_trio.settings.sections import ConnectionSettings, RouterSettings, Section, TelemetrySettings
from router_trio.settings.streams import StreamSettings

S = TypeVar("S", bound=Section)


class _HashOfMessages:
    """Cache the expensive part of `Settings.content_hash`, for the objects that it was computed from.

    All caches are equal, so that settings compare equal whether or not their hash was computed.
    """

    def __init__(self) -> None:
        self._known: tuple[tuple[object, ...], str] = ((), "")

    def of(self, settings: Settings) -> str:
        """Return the hash, computed unless it is known. May be called by several threads."""
        from router_trio.settings.content import hash_of_messages

        parts, known = self._known
        here = (settings.connections, settings.routes, settings.streams)
        if len(parts) == len(here) and all(map(is_, parts, here)):
            return known
        routes, streams = {one.name: one for one in settings.routes}, {one.label: one for one in settings.streams}
        known = hash_of_messages(settings.connections, routes, streams)
        self._known = here, known
        return known

    def put(self, settings: Settings, known: str) -> None:
        """Set the hash of these settings, regardless of their content."""
        self._known = (settings.connections, settings.routes, settings.streams), known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _HashOfMessages)

    __hash__ = None  # type: ignore[assignment]


class Settings(Section, init=False):
    """All settings of a router, from code or from a file.

    In code, sections may be plain dicts with the keys and texts of the file: `Settings(connections={"main": {"servers":
    ["nats://127.0.0.1:4222"], "reconnect_delay": "2s"}})`. Relative paths are then relative to the working directory.
    Raises ConfigurationError with every problem found.
    """

    router: RouterSettings = Field({}, validate_default=True, description="The process as a whole.")
    telemetry: TelemetrySettings = Field({}, validate_default=True, description="HTTP server, logs and traces.")
    connections: dict[str, ConnectionSettings] = Field(
        default={}, description="Connections to NATS, by name; at least one."
    )
    routes: list[RouteSettings] = Field(default=[], description="Routes: the source and the destinations of messages.")
    streams: list[StreamSettings] = Field(
        default=[], description="Streams that are created if they do not exist, before the routes start."
    )
    positions: list[PositionSettings] = Field(
        default=[],
        description="Consumers of sources whose positions are kept at the destinations; a change needs a restart.",
    )
    tests: list[ExampleSettings] = Field(
        default=[],
        description="Examples that `router-trio test` runs: a message, and what the router must send for it.",
    )

    _source: str = PrivateAttr("settings")
    _files: Files | None = PrivateAttr(None)
    _ignored: tuple[Problem, ...] = PrivateAttr(())
    _messages: _HashOfMessages = PrivateAttr(default_factory=_HashOfMessages)

    def __init__(self, /, **values: Any) -> None:
        try:
            BaseModel.__init__(self, **values)
        except ValidationError as error:
            parts = _usable_parts(values)
            streams = _usable_streams(values)
            router = _usable(RouterSettings, values.get("router", {}))
            workers = 1 if router is None else router.workers
            problems = problems_from(error, type(self)) + check(*parts, workers, streams)
            problems += check_streams(streams, parts[0])
            problems += check_partitions([route.source for route in parts[1]], streams, parts[0])
            raise ConfigurationError(problems) from None
        routes = [RouteParts.of(route) for route in self.routes]
        problems = check(self.connections, routes, self.tests, self.router.workers, self.streams)
        problems += check_streams(self.streams, self.connections)
        problems += check_partitions([route.source for route in self.routes], self.streams, self.connections)
        problems += check_positions(self.positions, self.routes)
        if problems:
            raise ConfigurationError(problems)
        # Frozen for everyone but this constructor.
        object.__setattr__(self, "routes", [_resolved(route, self.connections) for route in self.routes])
        object.__setattr__(self, "streams", [_with_connection(stream, self.connections) for stream in self.streams])

    @classmethod
    def load(
        cls,
        path: str | Path,
        *more: str | Path,
        environ: Mapping[str, str] | None = None,
        workers: int | None = None,
    ) -> Settings:
        """Read TOML files and apply the variables `ROUTER_TRIO_...` of `environ` (by default os.environ) to them.

        For a folder, all files with names in `.toml` are read, in the order of their names. Several files make one
        configuration: tables are merged, routes, streams and tests are joined, and a key that is given twice is
        refused. Relative paths are relative to the folder of their file. `workers` overrides `[router] workers` of
        files and variables. Blocks while reading. Raises ConfigurationError with every problem found.
        """
        paths = [Path(path), *map(Path, more)]
        with reading(str(path)):
            document = read_document(paths, os.environ if environ is None else environ, cls)
            return cls._of(document, str(path), workers)
        raise AssertionError("unreachable: the block returns or raises")

    @classmethod
    def parse(
        cls,
        content: bytes,
        name: str = "<stdin>",
        *,
        environ: Mapping[str, str] | None = None,
        workers: int | None = None,
    ) -> Settings:
        """Return the settings in a TOML text in UTF-8, with the variables applied to them; see `load`.

        `name` is the name of the text in errors. Relative paths are relative to the working directory. Raises
        ConfigurationError with every problem found.
        """
        given = os.environ if environ is None else environ
        with reading(name):
            return cls._of(parse_document(content, name, Path.cwd(), given, cls), name, workers)
        raise AssertionError("unreachable: the block returns or raises")

    @classmethod
    def _of(cls, document: Document, name: str, workers: int | None) -> Settings:
        if workers is not None:
            _put_workers(document.data, workers)
        problems = [document.attribute(problem) for problem in document.problems]
        settings: Settings | None = None
        try:
            settings = cls(**document.data)
        except ConfigurationError as error:
            problems += [document.attribute(problem) for problem in error.problems]
        if settings is None or problems:
            raise ConfigurationError(problems, name)
        document.files.forget_values()
        settings._source, settings._files, settings._ignored = name, document.files, tuple(document.ignored)
        return settings

    @property
    def source(self) -> str:
        """The name of the file that these settings were read from, as errors give it."""
        return self._source

    @property
    def without_effect(self) -> tuple[Problem, ...]:
        """Values that were given and have no effect: misspelled variables, and options."""
        return self._ignored

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of the files that these settings were read from, as errors give them; none if from code."""
        return () if self._files is None else tuple(self._files.places)

    @property
    def content_hash(self) -> str:
        """Return 12 hexadecimal digits that identify these settings, as `/status` and `/metrics` show them.

        They do not depend on credentials, `[[tests]]`, `workers` of `[router]`, and `listen` and `allowed_hosts` of
        `[telemetry]`. The first call takes about 50 ms for a thousand routes.
        """
        # Imported here, because only processes that serve pages need it.
        from router_trio.settings.content import content_hash

        positions = {one.key: one for one in self.positions}
        return content_hash(self.router, self.telemetry, positions, self._messages.of(self))

    def with_changes(self, **values: Any) -> Settings:
        """Return settings with these values changed, checked, and from the same files. Raises ConfigurationError."""
        known = {name: getattr(self, name) for name in Settings.model_fields}
        settings = Settings(**known | values)
        settings._source, settings._files, settings._ignored = self._source, self._files, self._ignored
        return settings

    def adapted(self, **values: Any) -> Settings:
        """Return a copy adapted to one process, unchecked. It keeps the `content_hash` of these settings."""
        copy = self.model_copy(update=values)
        copy._messages = _HashOfMessages()
        copy._messages.put(copy, self._messages.of(self))
        return copy

    def with_ignored(self, problem: Problem) -> Settings:
        """Return a copy of these settings with one more value that has no effect."""
        copy = self.model_copy()
        copy._ignored = (*self._ignored, problem)
        return copy

    def located(self, problem: Problem) -> Problem:
        """Return a problem of these settings with the place of its key, if they were read from files."""
        return problem if self._files is None else self._files.located(problem)

    def refused(self, *problems: Problem) -> ConfigurationError:
        """Return the error of these problems, with the file of these settings and the places of the keys."""
        return ConfigurationError(list(map(self.located, problems)), self._source)

    def require_servers(self) -> None:
        """Check that each connection has servers, needed without an embedded server. Raises ConfigurationError."""
        cure = "missing; list the servers as ['nats://127.0.0.1:4222'], or run with --embedded-nats; other commands "
        cure += "then need the URL of that server, which is the first line that run prints"
        problems = [
            Problem(f"connections.{name}.servers", cure)
            for name, connection in self.connections.items()
            if not connection.servers
        ]
        if problems:
            raise self.refused(*problems)

    def with_workers(self, workers: int) -> Settings:
        """Return these settings for `workers` workers. Raises ConfigurationError if they can't share the routes."""
        problems = [
            problem
            for index, route in enumerate(self.routes)
            for problem in check_shared(f"routes[{index}]", route.source, route.limit, workers)
        ]
        if problems:
            raise self.refused(*problems)
        return self.model_copy(update={"router": self.router.model_copy(update={"workers": workers})})

    def require_loopback(self, why: str) -> None:
        """Check that only this machine reaches the HTTP server. `why` names the need. Raises ConfigurationError."""
        if self.telemetry.listens_beyond_loopback:
            cure = f"other machines reach {self.telemetry.listen!r}, and {why}; listen on 127.0.0.1, [::1] or localhost"
            raise self.refused(Problem("telemetry.listen", cure))


def _put_workers(data: dict[str, Any], workers: int) -> None:
    """Set `[router] workers`, unless `router` is no table, which the checks refuse."""
    router = data.setdefault("router", {})
    if isinstance(router, dict):
        router["workers"] = workers


def _resolved(route: RouteSettings, connections: Mapping[str, ConnectionSettings]) -> RouteSettings:
    """Fill in the keys of a route whose defaults depend on the rest of the file: `connection` and `jetstream`."""
    source = _with_connection(route.source, connections)
    kind = source.kind
    to = [
        end.compact(
            connection=resolve_connection(end.connection, connections), jetstream=end.kind_for(kind).waits_for_puback
        )
        for end in route.to
    ]
    update: dict[str, Any] = {"source": source, "to": to}
    if route.dead_letter is not None and not route.dead_letter.connection:
        update["dead_letter"] = route.dead_letter.model_copy(update={"connection": source.connection})
    return route.compact(**update)


def _with_connection(section: Any, connections: Mapping[str, ConnectionSettings]) -> Any:
    return section.compact(connection=resolve_connection(section.connection, connections))


def _usable_streams(values: Mapping[str, Any]) -> list[StreamSettings | None]:
    streams = values.get("streams", [])
    return [_usable(StreamSettings, one) for one in streams] if isinstance(streams, list | tuple) else []


def _usable_parts(
    values: Mapping[str, Any],
) -> tuple[Connections | None, list[RouteParts], list[ExampleSettings | None]]:
    """Return the usable parts of an invalid configuration."""
    connections = values.get("connections", {})
    routes = values.get("routes", [])
    examples = values.get("tests", [])
    return (
        {str(name): _usable(ConnectionSettings, raw) for name, raw in connections.items()}
        if isinstance(connections, Mapping)
        else None,
        [_usable_route(route) for route in routes] if isinstance(routes, list | tuple) else [],
        [_usable(ExampleSettings, one) for one in examples] if isinstance(examples, list | tuple) else [],
    )


def _usable_route(raw: Any) -> RouteParts:
    if isinstance(raw, RouteSettings):
        return RouteParts.of(raw)
    if not isinstance(raw, Mapping):
        return RouteParts(None, None, (), None)
    to = raw.get("to")

    def text(key: str) -> str | None:
        value = raw.get(key)
        return value if isinstance(value, str) and value else None

    strategy = text("strategy") or "all"
    return RouteParts(
        text("name"),
        _usable(SourceSettings, raw.get("from", raw.get("source"))),
        [_usable(DestinationSettings, end) for end in to] if isinstance(to, list | tuple) else (),
        text("handler"),
        text("when"),
        text("key"),
        strategy if strategy in get_args(Strategy) else None,
        _usable(RetrySettings, raw.get("retry")),
        _usable(DeadLetterSettings, raw.get("dead_letter")),
        limit=_usable(LimitSettings, raw.get("limit")),
        # Any value counts: a circle that it was meant to end needs no second problem.
        hop_limit=None if raw.get("hop_limit") in (None, 0) else 1,
        respond=raw.get("respond") is True,
        has_to=to is not None and to != [],
    )


def _usable(model: type[S], raw: Any) -> S | None:
    """Return the section without its unknown keys, or None if even then it is not valid."""
    if isinstance(raw, model):
        return raw
    if not isinstance(raw, Mapping):
        return None
    known = keys_of(model).keys() | model.model_fields.keys()
    try:
        return model.model_validate({key: value for key, value in raw.items() if key in known})
    except ValidationError:
        return None
