"""A process of the router: from its start to its orderly end, or to its crash."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import trio

from router_trio import Live, Router
from router_trio.errors import AuthorizationError, LinkError
from router_trio.events import Event
from router_trio.link import Connect, LinkListener
from router_trio.settings import ConnectionSettings
from router_trio.testing.links import FakeLink
from tests.simulation.configuration import destinations_of, failing_of
from tests.simulation.handlers import FAIL, MAKE, SLEEP, SLOW
from tests.simulation.keyed import Calls

if TYPE_CHECKING:
    from router_trio.router.options import DestinationOptions
    from tests.simulation.simulation import Simulation

REFUSED_AT_THE_START = 1.0
"""Seconds until a router that ended because its credentials were refused is started again."""


class Process:
    """A running router. After `crash` nothing that it does has any effect outside of it."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self.number = number
        self.live: Live | None = None
        self.dead = False
        self.ending = trio.Event()
        self.over = trio.Event()
        self.up = trio.Event()
        self.programs: trio.Nursery | None = None
        self._simulation = simulation
        self._scope = trio.CancelScope()
        self._links: list[FakeLink] = []

    @property
    def lost_links(self) -> int:
        """Return how many links it has lost, and left, in all."""
        assert self.live is not None
        return sum(one.state.lost for one in self.live.connections.values())

    async def run(self) -> None:
        """Run until `ending` is set, or it crashes."""
        simulation = self._simulation
        try:
            with self._scope:
                while not self.ending.is_set():
                    try:
                        await self._open()
                    except AuthorizationError:
                        # As a service manager would. Only a router that was never connected ends for this reason.
                        self.live = None
                        simulation.trace.add("refused at the start")
                        await trio.sleep(REFUSED_AT_THE_START)
        except Exception as error:
            if not self.dead:
                simulation.oracles.broken("end", f"the router ended: {error!r}")
        finally:
            self.over.set()

    async def _open(self) -> None:
        router = Router(
            self._simulation.settings,
            observers=[self._observe],
            connect=self._connect,
            platform=self._simulation.platform,
            log=False,
        )
        self._add_handlers(router)
        async with router.open() as live:
            self.live = live
            self.up.set()
            async with trio.open_nursery() as self.programs:
                await self.ending.wait()
                self.programs.cancel_scope.cancel()
            self.programs = None
        self._simulation.oracles.closed(self)

    def _add_handlers(self, router: Router) -> None:
        for plan in self._simulation.schedule.routes:
            if plan.handler is not None:
                source, to = dict(plan.source), cast("list[DestinationOptions]", destinations_of(plan))
                subject = source.pop("subject", None)
                failing = failing_of(plan)
                failing |= {"key": plan.key, "concurrency": plan.concurrency, "loop": plan.loop}
                add = router.route(subject, to=to, name=plan.name, connection=plan.broker, **failing, **source)
                handler = (MAKE | FAIL | SLOW)[plan.handler](self._simulation.handled, plan.name, SLEEP[plan.loop])
                add(Calls(plan, self._broken).watched(handler))

    def _broken(self, promise: str, detail: str) -> None:
        if not self.dead:
            self._simulation.oracles.broken(promise, detail)

    def crash(self) -> None:
        """Kill the process: its sockets are gone, and none of its exit paths has any effect."""
        self._simulation.trace.add(f"process {self.number} is killed")
        self.dead = True
        for link in self._links:
            link.die(LinkError("the process was killed", reason="killed"))
        self._scope.cancel()

    def _observe(self, event: Event) -> None:
        if not self.dead:
            self._simulation.trace.add(repr(event))
            self._simulation.oracles.observe(self, event)

    def _connect(self, name: str, _: ConnectionSettings) -> Connect:
        broker = self._simulation.brokers[name[0]]

        @asynccontextmanager
        async def connect(server: str, inbox: bytes, listener: LinkListener) -> AsyncIterator[FakeLink]:
            if self.dead:
                await trio.sleep_forever()
            async with broker.connect(server, inbox, listener) as link:
                self._links.append(link)
                if self.dead:
                    link.die(LinkError("the process was killed", reason="killed"))
                try:
                    yield link
                finally:
                    self._links.remove(link)

        return connect
