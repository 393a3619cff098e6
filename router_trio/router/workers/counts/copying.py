"""Copies the counts of a worker's router into its shared block, before anything counted is acked.

`write` is called before bytes leave. The acks and publishes in these bytes were counted in this turn of the event loop
or earlier, so they are in the block by then. It copies the ledgers of connections, and those of routes that have had
messages in hand since the last time. Counts that are not part of a ledger follow four times a second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import compress
from operator import attrgetter, ne
from typing import Protocol

import trio

from router_trio.connection.supervisor import ConnectionCounts
from router_trio.router.workers.counts.block import Block, Record
from router_trio.router.workers.counts.numbers import (
    CONNECTION,
    LEDGER,
    MOST_REMOVED,
    PROCESS,
    ROUTE,
    Counts,
    Key,
    ledger_numbers,
    nonzero,
    rest_of_connection,
    route_fields,
    route_numbers,
)
from router_trio.router.workers.counts.process_numbers import processor_microseconds
from router_trio.states import Histogram, RouteState
from router_trio.telemetry.metrics.lag import LAG_BOUNDS
from router_trio.telemetry.metrics.metric import Sources

COPY_EVERY = 0.25
"""Seconds between two copies of counts that are not part of a ledger."""

_received = attrgetter("received")
_duplicates = attrgetter("duplicates")


class Past(Protocol):
    """The counts of connections and routes that reloads have removed."""

    def connection(self, name: str) -> ConnectionCounts | None:
        """Return the counts of a removed connection; None if there is none of that name."""
        ...

    def route(self, name: str) -> RouteState | None:
        """Return the counts of a removed route; None if there is none of that name."""
        ...


class _NoPast:
    """A `Past` without removed connections and routes."""

    def connection(self, name: str) -> ConnectionCounts | None:
        return None

    def route(self, name: str) -> RouteState | None:
        return None


NO_PAST = _NoPast()


class Counting:
    """Copies the counts of a router into a block. `write` does nothing before `watch`."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._sources: Sources | None = None
        self._past: Past = NO_PAST
        self._ledgers: dict[str, tuple[Record, tuple[int, ...]]] = {}
        self._records: dict[str, Record] = {}
        self._states: dict[str, RouteState] = {}
        self._rest: dict[Key, dict[str, tuple[Record, int]]] = {}
        self._removed: dict[Key, None] = {}
        """Keys that reloads have removed and not added again, the oldest first."""
        self._routes: Sequence[RouteState] = ()
        self._last_received: tuple[list[int], list[int]] = [], []
        """The numbers of received and redelivered messages of each route at the last copy."""
        self._active: set[int] = set()
        self._touched: set[int] = set()
        self.lags: Histogram = Histogram(LAG_BOUNDS)

    def watch(self, sources: Sources, past: Past = NO_PAST) -> None:
        """Copy the counts of this router from now on."""
        self._sources, self._past = sources, past
        self.write_all()

    def write(self) -> None:
        """Copy the ledgers that may have changed."""
        if self._sources is None:
            return
        view = self._sources.view
        for name, connection in view.connections.items():
            self._write_ledger(name, ledger_numbers(connection.outbox.ledger))
        routes = view.routes
        # This is most of the cost of a write with a thousand routes, so it runs no line of Python for each of them.
        received = list(map(_received, routes)), list(map(_duplicates, routes))
        if routes is not self._routes:
            self._write_removed(view.connections, routes)
            # The routes have changed, or the counts of an earlier generation are added to one each time it is read.
            self._active = set(range(len(routes)))
        elif received != self._last_received:
            for now, before in zip(received, self._last_received, strict=True):
                self._active.update(compress(range(len(now)), map(ne, now, before)))
        self._routes, self._last_received = routes, received
        if self._active:
            self._touched |= self._active
            for at in tuple(self._active):
                self._write_route(routes[at])
                if not routes[at].in_hand:
                    self._active.discard(at)

    def write_all(self) -> Counts:
        """Copy all counts. Returns those that are not 0."""
        self.write()
        assert self._sources is not None
        self._write_removed(self._sources.view.connections, self._routes)
        found: Counts = {}
        for name, connection in self._sources.view.connections.items():
            rest = rest_of_connection(connection.state, connection.outbox.counters)
            self._write_rest((CONNECTION, name), rest)
            found[CONNECTION, name] = nonzero(LEDGER, ledger_numbers(connection.outbox.ledger))
            found[CONNECTION, name] |= nonzero(rest, rest.values())
        for state in self._routes:
            numbers, rest = self._write_route(state), state.rest()
            self._write_rest((ROUTE, state.name), rest)
            found[ROUTE, state.name] = nonzero(self._records[state.name].fields, numbers)
            found[ROUTE, state.name] |= nonzero(rest, rest.values())
        found[PROCESS] = self._write_process(self._sources)
        return found

    async def write_regularly(self) -> None:
        """Regularly copy the counts that belong to no ledger, of routes that received messages, until cancelled."""
        while True:
            await trio.sleep(COPY_EVERY)
            self.write()
            if self._sources is None:
                continue
            for name, connection in self._sources.view.connections.items():
                self._write_rest((CONNECTION, name), rest_of_connection(connection.state, connection.outbox.counters))
            for at in self._touched:
                if at < len(self._routes):
                    self._write_rest((ROUTE, self._routes[at].name), self._routes[at].rest())
            self._touched = set(self._active)
            self._write_process(self._sources)

    # --- internals ---

    def _write_removed(self, connections: Collection[str], routes: Sequence[RouteState]) -> None:
        """Copy the last counts of what a reload has removed, which is settled by then.

        The last `MOST_REMOVED` of them stay in the block.
        """
        for name in self._ledgers.keys() - connections:
            self._removed.setdefault((CONNECTION, name))
            connection = self._past.connection(name)
            if connection is not None:
                self._write_ledger(name, ledger_numbers(connection.ledger))
                self._write_rest((CONNECTION, name), rest_of_connection(connection.state, connection.counters))
        present = {state.name for state in routes}
        for name in {state.name for state in self._routes} - present:
            self._removed.setdefault((ROUTE, name))
            state = self._past.route(name)
            if state is not None:
                self._write_route(state)
                self._write_rest((ROUTE, name), state.rest())
        for key in [key for key in self._removed if key[1] in (connections if key[0] == CONNECTION else present)]:
            del self._removed[key]
        while len(self._removed) > MOST_REMOVED:
            self._forget(next(iter(self._removed)))

    def _forget(self, key: Key) -> None:
        """Free the records of a removed connection or route."""
        kind, name = key
        del self._removed[key]
        records = [record for record, _ in self._rest.pop(key, {}).values()]
        if kind == CONNECTION and name in self._ledgers:
            records.append(self._ledgers.pop(name)[0])
        elif kind == ROUTE and name in self._records:
            records.append(self._records.pop(name))
            self._states.pop(name, None)
        for record in records:
            self._block.free(record)

    def _write_ledger(self, name: str, numbers: tuple[int, ...]) -> None:
        known = self._ledgers.get(name)
        if known is None:
            self._ledgers[name] = self._block.new_record((CONNECTION, name), LEDGER, numbers), numbers
        elif known[1] != numbers:
            known[0].write(numbers)
            self._ledgers[name] = known[0], numbers

    def _write_route(self, state: RouteState) -> tuple[int, ...]:
        numbers = route_numbers(state)
        record = self._records.get(state.name)
        # A reload may have changed the destinations, even without changing their number.
        if record is None or len(record.fields) != len(numbers) or self._states[state.name] is not state:
            self._states[state.name] = state
            fields = route_fields(state)
            if record is None or record.fields != fields:
                self._records[state.name] = self._block.new_record((ROUTE, state.name), fields, numbers)
                if record is not None:
                    self._block.free(record)  # not earlier: its numbers must not be missing for a moment
                return numbers
        record.write(numbers)
        return numbers

    def _write_rest(self, key: Key, numbers: dict[str, int]) -> None:
        rest = self._rest.setdefault(key, {})
        for name in rest.keys() - numbers.keys():  # for instance those of a destination removed long ago
            self._block.free(rest.pop(name)[0])
        for name, number in numbers.items():
            known = rest.get(name)
            if known is None:
                if number:
                    rest[name] = self._block.new_record(key, (name,), (number,)), number
            elif known[1] != number:
                known[0].write((number,))
                rest[name] = known[0], number

    def _write_process(self, sources: Sources) -> dict[str, int]:
        numbers = {
            "log_lines_dropped": sources.log_lines_dropped(),
            "spans_dropped": sources.spans_dropped(),
            "traces_not_followed": sources.traces_not_followed(),
            "traces_not_begun": sources.traces_not_begun(),
            "listener_errors": sources.listener_errors(),
            "processor_us": processor_microseconds(),
            **self.lags.numbers("lag"),
        }
        self._write_rest(PROCESS, numbers)
        return nonzero(numbers, numbers.values())
