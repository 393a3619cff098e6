"""Run every finding over the facts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from router_trio.online import circles, destinations, partitions, servers, sources, streams
from router_trio.online.facts import NOTE, Facts, Finding, ServerFacts, Severity, UnaskedError, Unknown
from router_trio.online.parts import Server, Source, declared_in, destinations_of, sources_of


class Part(Protocol):
    """A part of a configuration."""

    @property
    def path(self) -> str:
        """The path of its key."""
        ...


P = TypeVar("P", bound=Part)

SYNC_INTERVAL = "sync_interval of the servers: how much a power failure can lose; no account can look it up"

UNLISTED = "circles over other routers and over streams that copy, on connection {}: {}"

UNTESTED = "permissions to publish of connection {}: {}"


class Named(NamedTuple):
    """A finding with its name, which is that of its function."""

    name: str
    severity: Severity
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Findings that are missing because a fact could not be asked: the path of a key, the cause, and their names."""

    path: str
    why: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """The result of an online check."""

    findings: Sequence[Named] = ()
    missing: Sequence[Missing] = ()
    unseen: Sequence[str] = ()
    """Facts that no request can find out, as texts."""

    @property
    def is_bad(self) -> bool:
        """Return True if a finding is worse than a note."""
        return any(one.severity != NOTE for one in self.findings)


def report_of(facts: Facts) -> Report:
    """Return every finding, and what is missing."""
    run = _Run(facts)
    settings = facts.settings
    for name, server in facts.servers.items():
        if isinstance(server, Unknown):
            run.without_server(name, server)
    asked = {name for name, server in facts.servers.items() if not isinstance(server, Unknown)}
    run.each(servers.FINDINGS, (Server(one) for one in facts.servers if one in asked))
    run.each(servers.DECLARED, (one for one in declared_in(settings) if one.connection in asked))
    for source in sources_of(settings):
        if source.connection in asked:
            run.source(source)
    run.each(destinations.FINDINGS, (one for one in destinations_of(settings) if one.connection in asked))
    run.each(circles.FINDINGS, circles.circulating(facts))
    run.each(streams.FINDINGS, streams.used_streams(facts, run.without_stream))
    return run.report()


class _Run:
    """Collects findings once each, and the names of missing ones by path and cause."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._found: dict[Named, None] = {}
        self._missing: dict[tuple[str, str], dict[str, None]] = {}

    def each(self, findings: Sequence[Finding[P]], parts: Iterable[P]) -> None:
        """Run these findings for each of these parts."""
        for part in parts:
            for find in findings:
                try:
                    self._found |= {Named(find.__name__, *found): None for found in find(self._facts, part)}
                except UnaskedError as error:
                    self._leave_out(part.path, error.unknown, find.__name__)

    def source(self, source: Source) -> None:
        """Run the findings about a source and its durables."""
        if source.route.source.partitions is None:
            self.each(sources.FINDINGS, [source])
            return
        self.each((*sources.STREAM, *partitions.FINDINGS), [source])
        try:
            durables = self._facts.durables(source)
        except UnaskedError as error:
            for find in sources.DURABLE:
                self._leave_out(source.path, error.unknown, find.__name__)
        else:
            self.each(sources.DURABLE, durables)

    def without_server(self, connection: str, unknown: Unknown) -> None:
        """Record that every finding about a connection is missing."""
        of_sources = (*sources.FINDINGS, *partitions.FINDINGS)
        for find in (*servers.FINDINGS, *servers.DECLARED, *of_sources, *destinations.FINDINGS, *circles.FINDINGS):
            self._leave_out(f"connections.{connection}", unknown, find.__name__)
        self.without_stream(f"connections.{connection}", unknown)

    def without_stream(self, path: str, unknown: Unknown) -> None:
        """Record that every finding about the stream of a source or destination is missing."""
        for find in streams.FINDINGS:
            self._leave_out(path, unknown, find.__name__)

    def _leave_out(self, path: str, unknown: Unknown, name: str) -> None:
        if not unknown.reported:
            self._missing.setdefault((path, unknown.why), {})[name] = None

    def report(self) -> Report:
        """Return the result."""
        untested = [
            UNTESTED.format(name, server.untested)
            for name, server in self._facts.servers.items()
            if isinstance(server, ServerFacts) and server.untested is not None
        ]
        unlisted = [
            UNLISTED.format(name, server.flows.why)
            for name, server in self._facts.servers.items()
            if isinstance(server, ServerFacts) and isinstance(server.flows, Unknown) and not server.flows.reported
        ]
        return Report(tuple(self._found), tuple(self._left_out()), (SYNC_INTERVAL, *untested, *unlisted))

    def _left_out(self) -> Iterator[Missing]:
        for (path, why), names in self._missing.items():
            yield Missing(path, why, tuple(names))
