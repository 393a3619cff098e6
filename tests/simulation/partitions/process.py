"""A process of the group: a router with its machine, which may be suspended or killed."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import trio

from router_trio import Live, Message, Retry, Router, Settings
from router_trio.connection.platform import Platform
from router_trio.events import ConnectionEstablished, ConnectionRestored, Event
from router_trio.states import Partitions
from router_trio.testing.machine import Machine
from router_trio.testing.streams import EPOCH
from tests.simulation.handlers import number_of
from tests.simulation.partitions.history import Call
from tests.support.suspension import Suspendable

if TYPE_CHECKING:
    from tests.simulation.partitions.world import World

ROUTE, DURABLE, SOURCE, SINK = "route", "router", "IN", "OUT"
FILTER = "in.*.*"


class Process:
    """A running router. After `kill` nothing that it does has any effect outside of it."""

    def __init__(self, world: World, number: int) -> None:
        self.number = number
        self.machine: Machine = world.broker.machine()
        self.machine.sends_on = world.schedule.sends_on
        self.live: Live | None = None
        self.dead = False
        self.linked_at: float = trio.current_time()
        """When it started, or last connected."""
        self.ending = trio.Event()
        self.over = trio.Event()
        self._world = world
        self._tasks = Suspendable()
        self._scope = trio.CancelScope()
        self._calls: list[Call] = []

    def begin(self, nursery: trio.Nursery) -> None:
        """Start the process in this nursery."""
        with self._tasks.inside():
            nursery.start_soon(self._run)

    @property
    def is_suspended(self) -> bool:
        """True between `suspend` and `resume`."""
        return self._tasks.is_suspended

    @property
    def is_apart(self) -> bool:
        """True while the server hears nothing from it, or it hears nothing from the server."""
        return not (self.machine.sends() and self.machine.receives())

    @property
    def partitions(self) -> Partitions | None:
        """The partitions of the route as this process sees them; None before it has any."""
        if self.live is None or not self.live.routes:
            return None
        return self.live.routes[0].partitions

    def suspend(self) -> None:
        """Let it do nothing until `resume`, as SIGSTOP does."""
        self._world.trace.add(f"process {self.number} is suspended")
        self._tasks.suspend()

    def resume(self) -> None:
        """Let it go on."""
        if self.is_suspended:
            self._world.trace.add(f"process {self.number} goes on")
            self._tasks.resume()

    def kill(self) -> None:
        """Kill the process: its sockets are gone, and none of its exit paths has any effect."""
        self._world.trace.add(f"process {self.number} is killed")
        self.dead = True
        for call in self._calls:
            call.ended = trio.current_time()
        self.machine.kill()
        self._tasks.resume()
        self._scope.cancel()

    async def _run(self) -> None:
        world = self._world
        try:
            with self._scope:
                router = Router(
                    self._settings(),
                    observers=[self._observe],
                    connect=lambda name, _: self.machine.connect,
                    platform=self._platform(),
                    log=False,
                )
                self._add_route(router)
                async with router.open() as self.live:
                    await self.ending.wait()
                world.closed(self)
        except Exception as error:
            if not self.dead:
                world.broken("end", f"process {self.number} ended: {error!r}")
        finally:
            self.over.set()

    def _settings(self) -> Settings:
        schedule = self._world.schedule
        connection = {
            "servers": ["nats://one:4222"],
            "reconnect_delay": 0.1,
            "max_reconnect_delay": 1.0,
            "connect_timeout": 2.0,
            "liveness_interval": schedule.liveness,
        }
        return Settings(
            router={"shutdown_timeout": schedule.shutdown_timeout},
            telemetry={"listen": "", "handler_errors": "type"},
            connections={"a": connection},
        )

    def _platform(self) -> Platform:
        dice = Random(f"process {self._world.schedule.seed} {self.number}")
        return Platform(
            lambda: EPOCH + trio.current_time(),
            dice,
            lambda count: dice.randbytes(count).hex(),
            trio.current_time,
            watch_loop=False,
        )

    def _add_route(self, router: Router) -> None:
        schedule = self._world.schedule
        add = router.route(
            to={"connection": "a", "subject": "out.{{wildcard(1)}}.{{wildcard(2)}}", "jetstream": True},
            name=ROUTE,
            connection="a",
            stream=SOURCE,
            durable=DURABLE,
            filter=FILTER,
            partitions=schedule.partitions,
            partition_by=[1] if schedule.by_key else None,
            concurrency=schedule.concurrency,
            max_in_flight=schedule.max_in_flight,
            ack_wait=schedule.ack_wait,
            retry={"initial": 0.1},
        )
        add(self._handle)

    async def _handle(self, message: Message) -> Message:
        world, number = self._world, number_of(message.payload)
        call = Call(self.number, world.key_of(message.subject), number, trio.current_time())
        if not self.dead:
            world.history.calls.append(call)
            self._calls.append(call)
        try:
            await trio.sleep(world.seconds_for(number))
            if world.fails(number):
                raise Retry(after=0.2)
        finally:
            if not self.dead:
                call.ended = trio.current_time()
                self._calls.remove(call)
        return message

    def _observe(self, event: Event) -> None:
        if not self.dead:
            if isinstance(event, ConnectionEstablished | ConnectionRestored):
                self.linked_at = event.at
            self._world.observe(self, event)
