"""Carries out a reload: changes a run from its settings to others, while messages are routed.

Unchanged parts are not touched. Each route that ends, and each that starts, waits only for what it needs: a route
starts once its predecessor has ended and its connections exist; a connection ends once the routes that used it have.

A route that keeps its messages stays if it goes on with the same source: only its settings change. One that keeps none
hands its subscription to its successor at once, so that there is no gap. If its connection ends, it hands over what it
has not started once it receives nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

import trio

from router_trio.connection.latch import Latch
from router_trio.connection.session import STREAMS_FIRST_WITHIN
from router_trio.connection.supervisor import Connection
from router_trio.events import RestartNeeded, RouteRetriesLeft, RouterReloaded
from router_trio.router.generations import ConnectionGeneration, RouteGeneration
from router_trio.router.run import Run
from router_trio.routing.core.batch_route import BatchRoute
from router_trio.routing.route import Route
from router_trio.routing.route_plans import RoutePlan
from router_trio.routing.source import Source
from router_trio.settings import Settings
from router_trio.settings.reload.difference import Change, Difference, connections_of, in_effect


class Reload:
    """A reload. Call `carry_out` once."""

    def __init__(self, run: Run, settings: Settings, found: Difference) -> None:
        """`found` is the difference between the settings of the run and the new ones."""
        self._run = run
        self._settings = settings
        self._found = found
        routes, connections = self._found.routes, self._found.connections
        ending = {*routes.removed, *routes.changed_names}
        self._before: dict[str, RouteGeneration] = {name: run.routes[name] for name in run.routes if name in ending}
        self._route_ended: dict[str, trio.Event] = {name: trio.Event() for name in self._before}
        old_routes = [route for route in run.settings.routes if route.name in ending]
        self._users: dict[str, list[str]] = {
            name: [route.name for route in old_routes if name in connections_of(route)]
            for name in (*connections.removed, *connections.changed_names)
        }
        """For each connection that ends, the routes that end before it."""
        self._new_connections: dict[str, ConnectionGeneration] = {}
        self._connection_up: dict[str, trio.Event] = {}
        self._streams_tried: dict[str, Latch] = {}
        self._handed_over: dict[str, RouteGeneration] = {}
        self._plans: Mapping[str, RoutePlan] = {}
        self._deadline = 0.0
        self._unsettled = 0

    async def carry_out(self) -> None:
        """Carry out the reload. If cancelled, what has not started is left as it is, because the router ends.

        The shutdown then reports what this reload has left unsettled.
        """
        try:
            await self._carry_out()
        except BaseException:
            self._run.live.unsettled += self._unsettled
            raise
        self._emit_reloaded()

    async def _carry_out(self) -> None:
        run, found = self._run, self._found
        fresh = {*found.routes.added, *found.routes.changed_names}
        changed = [route for route in self._settings.routes if route.name in fresh]
        self._plans = {plan.name: plan for plan in run.plans(self._settings, changed)}
        for name in (*found.connections.added, *found.connections.changed_names):
            self._new_connections[name] = ConnectionGeneration(
                run.make_connection(name, self._settings, refusal_ends=False)
            )
            self._connection_up[name] = trio.Event()
        run.put_in_force(in_effect(run.settings, self._settings))
        for generation in run.connections.values():
            # What kept it from its server may have been mended with the reload, such as a file with credentials.
            generation.connection.try_at_once()
        self._deadline = trio.current_time() + run.settings.router.shutdown_timeout
        self._change_streams()
        for change in found.routes.changed:
            self._hand_over(change)
        async with trio.open_nursery() as nursery:
            for name in (*found.routes.removed, *found.routes.changed_names, *found.routes.added):
                nursery.start_soon(self._change_route, name)
            for name in (*self._users, *found.connections.added):
                nursery.start_soon(self._change_connection, name)
        await self._streams_first(self._streams_tried)
        run.registry.put_in_order([route.name for route in self._settings.routes])
        run.emit_ignored(changed)
        await run.tried(
            [generation.connection for generation in self._new_connections.values()],
            [run.routes[name].route for name in self._plans],
        )

    # --- routes ---

    def _hand_over(self, change: Change) -> None:
        """Replace a route that keeps no messages by one of the same subject, which gets what it has not started.

        If it keeps its subscription, messages that arrive from now on go there as well.
        """
        run, before = self._run, self._before[change.name]
        if not (change.keeps_messages and isinstance(before.route, BatchRoute)):
            return
        here = self._connections() | {name: generation.connection for name, generation in self._new_connections.items()}
        route = run.build(self._plans[change.name], here, before.route)
        before.route.hand_over(route)
        run.leaving[before] = self._deadline
        self._handed_over[change.name] = self._put(RouteGeneration(route))

    async def _change_route(self, name: str) -> None:
        """End a removed or changed route of that name, and start its successor, if there is one."""
        run, before = self._run, self._before.get(name)
        left: list[RouteRetriesLeft] = []
        plan = self._plans.get(name)
        if before is not None and plan is not None and self._stays(before, plan):
            await self._change_settings(before.route, plan)
            return
        if before is not None:
            left = await self._end_route(name, before)
        if plan is None:
            self._emit_left(left)
            return
        for needed in connections_of(plan.settings):
            if needed in self._connection_up:
                await self._connection_up[needed].wait()
        generation = self._handed_over.get(name)
        if generation is None:
            await self._streams_first(connections_of(plan.settings))
            route = run.build(plan, self._connections(), None if before is None else before.route)
            run.registry.continue_counts(route.state)
            generation = self._put(RouteGeneration(route))
        generation.begin_routing()
        self._emit_left(left, generation.route.source)

    def _stays(self, before: RouteGeneration, plan: RoutePlan) -> bool:
        """Return True if a route need not end to have other settings."""
        source = before.route.source
        if not before.begun or plan.connection != source.connection.name:
            return False
        needed = connections_of(plan.settings)
        reconnects = self._loses_connection(plan.name) or not self._connection_up.keys().isdisjoint(needed)
        return source.stays(plan, reconnects=reconnects)

    def _loses_connection(self, route: str) -> bool:
        """Return True if a connection ends that a route uses now."""
        return any(route in users for users in self._users.values())

    async def _change_settings(self, route: Route, plan: RoutePlan) -> None:
        """Have a route use other settings, as soon as its source and its connections are there.

        If a connection ends, it begins with no message in between: what it sent before is settled there first.
        """
        from router_trio.routing.kept_route import KeptRoute  # only for routes that keep their messages

        assert isinstance(route, KeptRoute), "its source stays"
        source, hanging = route.source, 0
        with ExitStack() as stack:
            if self._loses_connection(plan.name) or source.settles_first(plan):
                stack.enter_context(route.paused())
            if source.connection.name in self._users:
                source.close()
            await self._streams_first(connections_of(plan.settings))
            with trio.CancelScope(deadline=self._deadline):
                await (source.over() if source.closed else source.make_way())
            if route.is_paused:
                hanging = await route.settled(self._deadline)
            left = await self._retries_left(plan.name, source)
            if source.closed:
                source.retire()
            self._route_ended[plan.name].set()
            for needed in connections_of(plan.settings):
                if needed in self._connection_up:
                    await self._connection_up[needed].wait()
            started = self._run.change(route, plan, self._connections(), self._deadline)
        self._run.registry.put_route(route.state)
        route.source.connection.attach(route.source)
        self._emit_left(left, route.source)
        try:
            hanging += await route.ended(started)
        finally:
            self._count_unsettled(route.take_unsettled())
        state = started.routing.state
        self._run.emit_left_behind(state, hanging + sum(map(len, state.left_behind)))
        self._run.forget_route(state)

    def _put(self, generation: RouteGeneration) -> RouteGeneration:
        run, state = self._run, generation.route.state
        run.routes[state.name] = generation
        run.registry.put_route(state)
        generation.route.source.connection.attach(generation.route.source)
        run.run_generation(generation)
        return generation

    async def _end_route(self, name: str, generation: RouteGeneration) -> list[RouteRetriesLeft]:
        """End a route. Return which retries may be left behind, counted while their connection exists."""
        run = self._run
        run.leaving[generation] = self._deadline
        if run.routes.get(name) is generation:
            del run.routes[name]
        if name not in self._plans:
            run.registry.remove_route(name)
        await run.end_leaving(generation, self._count_unsettled)
        left = await self._retries_left(name, generation.route.source)
        self._route_ended[name].set()
        return left

    async def _retries_left(self, name: str, source: Source) -> list[RouteRetriesLeft]:
        """Return where a route that has ended leaves scheduled retries, unless it goes on to schedule them there."""
        plan, connection = self._plans.get(name), source.connection.name
        stays = None if plan is None or plan.connection != connection else plan.retry_schedule
        left = []
        for place in source.scheduled_in:
            if (stays is None or place != stays.place) and (waiting := await source.count_scheduled(place)) != 0:
                now, (stream, prefix) = trio.current_time(), place
                left.append(
                    RouteRetriesLeft(
                        at=now, route=name, connection=connection, stream=stream, prefix=prefix, waiting=waiting
                    )
                )
        return left

    def _emit_left(self, left: Iterable[RouteRetriesLeft], successor: Source | None = None) -> None:
        """Emit an event for the retries that the successor of a route does not receive."""
        for one in left:
            goes_on = successor is not None and successor.connection.name == one.connection
            if successor is None or not goes_on or (one.stream, one.prefix) not in successor.scheduled_in:
                self._run.emit(one)

    # --- connections ---

    async def _change_connection(self, name: str) -> None:
        """End a removed or changed connection of that name once it is unused, and start its successor, if any."""
        run = self._run
        before, successor = run.connections.get(name), self._new_connections.get(name)
        if before is not None:
            for route in self._users[name]:
                await self._route_ended[route].wait()
            # Not earlier: a handler of these routes may publish on the connection before it returns.
            run.registry.hold_publishers(name)
            await before.end_connection(self._deadline, self._count_unsettled)
            run.forget_connection(before.connection)
        if successor is None:
            run.remember_connection(run.connections.pop(name).connection)
            run.registry.remove_connection(name)
            return
        past = before.connection.counts if before is not None else run.past_connections.pop(name, None)
        if past is not None:
            successor.connection.continue_counts(past)
        run.connections[name] = successor
        run.registry.put_connection(name, successor.connection, successor.publisher)
        run.run_generation(successor)
        self._connection_up[name].set()

    def _connections(self) -> dict[str, Connection]:
        return {name: generation.connection for name, generation in self._run.connections.items()}

    async def _streams_first(self, connections: Iterable[str]) -> None:
        """Wait until the creation of each new stream on these connections was tried, for a bounded time."""
        with trio.move_on_after(STREAMS_FIRST_WITHIN):
            for name in connections:
                if name in self._streams_tried:
                    await self._streams_tried[name].wait()

    def _change_streams(self) -> None:
        """Create new streams on connections that remain."""
        staying = {*self._found.connections.unchanged}
        wanted = {(stream.connection, stream.name) for stream in self._settings.streams if not stream.is_copy}
        for stream in self._run.streams - wanted:
            connection, name = stream
            if connection in staying:
                self._run.connections[connection].connection.streams.leave_alone(name)
        self._run.streams = wanted
        named = {*self._found.streams.added, *self._found.streams.changed_names}
        touched: dict[str, None] = {}
        for one in self._settings.streams:
            if one.label in named and one.connection in staying and not one.is_copy:
                self._run.connections[one.connection].connection.streams.add(one.config)
                touched[one.connection] = None
        for name in touched:
            tried = self._run.connections[name].connection.make_streams()
            if tried is not None:
                self._streams_tried[name] = tried

    def _count_unsettled(self, count: int) -> None:
        self._unsettled += count

    # --- events ---

    def _emit_reloaded(self) -> None:
        run, found = self._run, self._found
        kinds = (("connection", found.connections), ("stream", found.streams), ("route", found.routes))
        run.emit(
            RouterReloaded(
                at=trio.current_time(),
                added=tuple(f"{kind} {name}" for kind, names in kinds for name in names.added),
                removed=tuple(f"{kind} {name}" for kind, names in kinds for name in names.removed),
                changed=tuple(f"{kind} {name}" for kind, names in kinds for name in names.changed_names),
                unchanged=len(found.connections.unchanged) + len(found.routes.unchanged),
                unsettled=self._unsettled,
                keys=tuple(found.lines()),
                left=tuple(f"route {name}: {one}" for name, left in found.left.items() for one in left),
            )
        )
        if found.needs_restart:
            run.emit(RestartNeeded(at=trio.current_time(), keys=found.needs_restart))
