"""Programs that publish through the router in their process, and are cancelled at random."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio

from router_trio.client.receipt import Receipt
from router_trio.errors import PublishError
from router_trio.states import CONNECTED
from router_trio.testing.links import SOCKET_BUFFER
from tests.simulation.faults import SLOW
from tests.simulation.schedule import KEYS, Step

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.simulation import Simulation

AT_ONCE = 1e-6
"""Seconds within which a cancelled publish has ended: its cleanup must not wait."""


HAS_ROOM_WITHIN = 1.0
"""Seconds within which a publish returns on an established connection, whatever is wrong with other subjects.

A reload that replaces the connection adds the shutdown timeout, in which accepted publishes are settled. Each message
that alone fills the socket's buffer adds the way to the broker: those in front are sent one after another.
"""


class Programs:
    """Starts programs in the current process, and passes their results to the oracles."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._published = 0
        self._is_quick = not SLOW & set(simulation.schedule.faults)

    def begin(self, step: Step) -> None:
        """Start a program in the running process; do nothing if there is none."""
        process = self._simulation.process
        if process is None or process.programs is None or process.dead:
            return
        if step.what["outlives"]:
            self._simulation.nursery.start_soon(self._outlive, process, step)
        else:
            process.programs.start_soon(self._run, process, step)

    async def _outlive(self, process: Process, step: Step) -> None:
        """Run a program beyond the end of the router: its publishes fail within a second of that end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bound, process, nursery.cancel_scope)
            await self._run(process, step)
            nursery.cancel_scope.cancel()

    async def _bound(self, process: Process, scope: trio.CancelScope) -> None:
        await process.over.wait()
        await trio.sleep(1.0)
        if not process.dead:
            self._simulation.oracles.broken("told", "a program still waits a second after the router's end")
        scope.cancel()

    async def _run(self, process: Process, step: Step) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(step.what["count"]):
                self._published += 1
                if step.what["together"]:
                    nursery.start_soon(self._publish, process, step, self._published)
                else:
                    await self._publish(process, step, self._published)

    async def _publish(self, process: Process, step: Step, number: int) -> None:
        what, live, oracles = step.what, process.live, self._simulation.oracles
        assert live is not None
        began = trio.current_time()
        deadline = began + what["cancel"] if what["cancel"] else inf
        connection = live.connections[what["broker"]]
        state = connection.state
        sent = self._simulation.brokers[what["broker"]].published
        before = len(sent)
        lost = state.lost if state.state == CONNECTED else -1
        key = KEYS[number % len(KEYS)]
        receipt: Receipt | None = None
        with trio.CancelScope(deadline=deadline) as scope:
            try:
                if what["with_ack"]:
                    receipt = await live.publish_with_ack(
                        f"pub.{key}", b"%d" % number, None, what["broker"], timeout=what["timeout"]
                    )
                else:
                    receipt = await live.publish(f"said.{key}", b"%d" % number, None, what["broker"])
            except PublishError as error:
                if not process.dead:
                    self._simulation.trace.add(f"publish {number} failed: {error.reason}")
        if process.dead:
            return
        if scope.cancelled_caught and trio.current_time() > deadline + AT_ONCE:
            oracles.broken("cancel", f"a cancelled publish ended {trio.current_time() - deadline:g} s too late")
        waited = trio.current_time() - began
        within = HAS_ROOM_WITHIN
        if live.connections.get(what["broker"]) is not connection:
            within += self._simulation.schedule.shutdown_timeout
        large = sum(len(one.payload) > SOCKET_BUFFER for one in sent[before:])
        within += large * self._simulation.schedule.latency[what["broker"]]
        if not what["with_ack"] and waited > within and state.lost == lost and self._is_quick:
            oracles.broken("room", f"a publish to a subject that nothing is wrong with took {waited:.1f} s")
        if receipt is not None:
            self._simulation.trace.add(f"publish {number}: {receipt.status}")
            oracles.published(process, what["broker"], number, what["with_ack"], receipt)
