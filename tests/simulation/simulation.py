"""Execution of a schedule: brokers, the router on them, strangers and programs that publish, and the faults."""

from __future__ import annotations

from collections import deque
from random import Random

import trio

from router_trio.connection.destinations import DENIED_LOOK_EVERY
from router_trio.connection.platform import Platform
from router_trio.routing.policy.retry import LONGEST_SPREAD
from router_trio.routing.stream.pulling.checks import DENIED_CHECK_EVERY
from router_trio.routing.stream.pulling.pull_loop import SILENCE
from router_trio.testing import FakeBroker
from router_trio.testing.streams import EPOCH
from tests.simulation.configuration import changed, settings_of
from tests.simulation.content import Sent
from tests.simulation.failing import left_waiting
from tests.simulation.faults import FAULTS, LOSES
from tests.simulation.forger import FORGED, Forger
from tests.simulation.handlers import Handled
from tests.simulation.oracles import Oracles
from tests.simulation.process import Process
from tests.simulation.programs import Programs
from tests.simulation.schedule import KEYS, Schedule, Step
from tests.simulation.trace import Trace
from tests.support.asyncio_on_trio import open_loop

LIVELY_WITHIN = 60.0
"""Seconds after the last fault within which everything is delivered or accounted for."""

BACKED_OFF_FOR = 2 * LONGEST_SPREAD
"""Additional seconds if a message has failed so often that its next attempt is late: see `RetryPolicy.delay`.

If none has, the additional seconds are those in which the messages that are still to fail are retried, up to this.
"""

PROBED_WITHIN = 10.0
PROBED_LATE_WITHIN = 45.0
"""Seconds until a probe arrives; the second applies where a server has lost something that no one else can detect,
which takes an ack wait or the silence of a pull request, where another process has settled a message that is waited
for, which is looked up after an ack wait, or where many messages fail each time and use half of the time of a slow
handler.
"""
CHECKED_LATE = frozenset({"second process", "durable deleted", "requests refused"})
"""Kinds that together make a probe later still: after a refused check of its durable, a route that requests nothing
notices the deletion only at the next check. Messages that another process has settled are waited for again from then
on.
"""
LOOKED_UP_WITHIN = 8.0
"""Seconds within which a router completes its lookups: one every 5 s, for 2 s at most. Where a server has lost
something, a route may notice only after the silence of a pull request.
"""

LOOK_EVERY = 1.0

STREAMS = {"IN": ["in.>"], "OUT": ["out.>"], "PUB": ["pub.>"], "DEAD": ["dead.>"]}
"""The streams of each broker: read by routes, written by routes, written by programs, and for dead letters."""


def probed_within(schedule: Schedule) -> float:
    """Return the seconds until a probe arrives."""
    kinds = {step.kind for step in schedule.steps}
    if kinds >= CHECKED_LATE:
        return PROBED_LATE_WITHIN + DENIED_CHECK_EVERY
    found_late = (LOSES | {"half-open", "second process"}) & kinds
    return PROBED_LATE_WITHIN if found_late or "small max_payload" in schedule.faults else PROBED_WITHIN


class Simulation:
    """A single run."""

    def __init__(self, schedule: Schedule, trace: Trace) -> None:
        self.schedule = schedule
        self.trace = trace
        self.brokers = {
            name: FakeBroker(epoch=epoch, max_payload=schedule.max_payload[name])
            for name, epoch in schedule.brokers.items()
        }
        self.handled = Handled()
        self.oracles = Oracles(schedule, self.brokers, self.handled, trace)
        for name, broker in self.brokers.items():
            broker.trouble.watch(self.oracles.watch_of(name))
            self.be_as_usual(name)
            for stream, subjects in STREAMS.items():
                broker.add_stream(stream, subjects, duplicate_window=schedule.windows[stream])
        dice = Random(f"platform {schedule.seed}")
        self.platform = Platform(
            lambda: EPOCH + trio.current_time(),
            dice,
            lambda count: dice.randbytes(count).hex(),
            trio.current_time,
            watch_loop=False,
            open_asyncio_loop=open_loop,  # on the same thread and the same clock
        )
        forgers = {step.what["broker"] for step in schedule.steps if step.kind == FORGED}
        self.forgers = {name: Forger(broker) for name, broker in self.brokers.items() if name in forgers}
        self.settings = settings_of(schedule)
        self.process: Process | None = None
        self._second: Process | None = None
        self.programs = Programs(self)
        self._processes = 0
        self._messages = 0
        self._last_fault_over = 0.0

    async def run(self) -> None:
        """Execute the schedule from start to end."""
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            self._begin_process()
            async with trio.open_nursery() as steps:
                steps.start_soon(self._look_regularly, steps.cancel_scope)
                async with trio.open_nursery() as lasting:
                    for step in self.schedule.steps:
                        await trio.sleep_until(step.at)
                        self.trace.add(str(step))
                        self._take(step, lasting)
                        self.oracles.check(self.process)
                await self._until_all_is_well()
                steps.cancel_scope.cancel()
            if self.process is not None:
                await self._end_well(self.process)
            self.oracles.check_end(self._processes)
            nursery.cancel_scope.cancel()

    # --- the router's processes ---

    def _begin_process(self) -> None:
        self._processes += 1
        self.process = Process(self, self._processes)
        self.oracles.process_begins(self.process)
        self.nursery.start_soon(self.process.run)

    def crash(self, after: float) -> None:
        """Kill the router, see `faults.Scene`."""
        if self.process is not None:
            self.process.crash()
            self.process = None
            self.nursery.start_soon(self._begin_later, after)

    def begin_second(self) -> None:
        """Start a second process, see `faults.Scene`."""
        if self._second is None:
            self._processes += 1
            self._second = Process(self, self._processes)
            self.oracles.process_begins(self._second)
            self.nursery.start_soon(self._second.run)

    def end_second(self) -> None:
        """End the second process, see `faults.Scene`."""
        if self._second is not None:
            self.nursery.start_soon(self._end, self._second)
            self._second = None

    def restart(self, after: float) -> None:
        """Restart the router, see `faults.Scene`."""
        if self.process is not None:
            self.nursery.start_soon(self._restart, self.process, after)
            self.process = None

    def reload(self, routes: int, way: int) -> None:
        """Reload the configuration, see `faults.Scene`."""
        process = self.process
        if process is not None and process.live is not None and process.programs is not None:
            process.programs.start_soon(process.live.reload, changed(self.schedule, routes, way))

    async def _restart(self, process: Process, after: float) -> None:
        await self._end(process)
        await self._begin_later(after)

    async def _begin_later(self, after: float) -> None:
        await trio.sleep(after)
        self._begin_process()

    async def _end(self, process: Process) -> None:
        process.ending.set()
        bound = self.schedule.shutdown_timeout + 5.0
        with trio.move_on_after(bound) as waiting:
            await process.over.wait()
        if waiting.cancelled_caught:
            self.oracles.broken("shutdown", f"leaving Router.open() took more than {bound:g} s")
            process.crash()

    # --- steps ---

    def _take(self, step: Step, nursery: trio.Nursery) -> None:
        if step.kind == "strangers publish":
            nursery.start_soon(self._strangers_publish, step)
        elif step.kind == "a program publishes":
            self.programs.begin(step)
        else:
            nursery.start_soon(self._fault, step)

    async def _fault(self, step: Step) -> None:
        fault = FAULTS[step.kind]
        fault.begin(self, step.what)
        await trio.sleep(step.seconds)
        fault.end(self, step.what)
        self.trace.add(f"over: {step.kind}")

    async def _strangers_publish(self, step: Step) -> None:
        what = step.what
        for _ in range(what["count"]):
            self.publish(what["broker"], what["subject"], what["headers"], what["size"], keys=what["keys"])
            if step.seconds:
                await trio.sleep(step.seconds / what["count"])

    def be_as_usual(self, broker: str) -> None:
        """Restore the normal speed of the network to a broker."""
        latency = self.schedule.latency[broker]
        self.brokers[broker].trouble.travel(lambda: latency)

    def publish(
        self,
        broker: str,
        subject: str,
        headers: str = "",
        size: int = 0,
        key: str | None = None,
        keys: int = len(KEYS),
    ) -> int:
        """Publish the next message as a stranger, to `key` or to one of `keys` keys in turn; return its number."""
        self._messages += 1
        number = self._messages
        key = key or KEYS[number % keys]
        self.oracles.sizes[number] = size
        self.oracles.sent[number] = Sent(key, headers, size)
        self.oracles.published_at[number] = trio.current_time()
        self.oracles.held_back.published(broker, subject, number)
        payload = b"%d" % number + (b" " + b"x" * size) * bool(size)
        fields = {
            "": None,
            "plain": {"X-Kind": "test"},
            "id": {"Nats-Msg-Id": f"sender-{number}"},
            "same id": {"Nats-Msg-Id": f"sender-{number % 5}"},
        }[headers]
        self.brokers[broker].publish(f"{subject}.{key}", payload, fields)
        return number

    def publish_too_long(self, broker: str, subject: str) -> None:
        """Publish to a subject that is too long, see `faults.Scene`."""
        number = self.publish(broker, subject, key="k" * (4096 - len(f"{subject}. 99")))
        self.oracles.fails_for_what_it_is.add(number)

    # --- the end ---

    async def _look_regularly(self, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            self.oracles.check(self.process)

    async def _until_all_is_well(self) -> None:
        """Heal the world, and wait until everything is delivered or accounted for, as promised within a minute."""
        for broker in self.brokers.values():
            broker.up()
            broker.trouble.mend()
        for name in self.brokers:
            self.be_as_usual(name)
        self.trace.add("healed")
        self.oracles.links.healed()
        missing: list[str] = []
        backed_off = self.oracles.is_backed_off
        patience = LIVELY_WITHIN + (BACKED_OFF_FOR if backed_off else min(self.oracles.retried_for, BACKED_OFF_FOR))
        if "half-open" in {step.kind for step in self.schedule.steps}:
            # Until then, deliveries to a link that the server believes alive are neither redelivered nor retried here.
            patience += max((plan.source.get("ack_wait", 0.0) for plan in self.schedule.routes), default=0.0)
        with trio.move_on_after(patience):
            # A loss of this moment is detected shortly.
            await trio.sleep(LOOK_EVERY)
            while missing := self.oracles.missing(self.process):
                await trio.sleep(0.5)
        if missing:
            self.oracles.broken("liveness", f"{patience:g} s after the last fault: {missing[:5]}")
        elif self.process is not None:
            await self._probe(self.process)
            await self._until_all_is_routed(self.process)

    async def _probe(self, process: Process) -> None:
        """Check that a router that reports ready routes a message at once.

        A breaker may be open until its destination receives something: here, until the message has arrived. One that
        no stream keeps may be lost with a link that the router leaves meanwhile, for a server that is no lame duck.
        """
        await self._until_ready(process, but_breakers=True)
        patience = probed_within(self.schedule)
        plans = deque(self.schedule.routes)
        while plans:
            plan = plans.popleft()
            lost = process.lost_links
            key = KEYS[0] if plan.filter == "*" else plan.filter
            number = self.publish(plan.broker, "in" if plan.stream else f"core.{plan.name}", key=key)
            with trio.move_on_after(patience):
                # A message whose handler failed is given up, or waits for its turn among other failed ones.
                while not (
                    self.oracles.arrived_everywhere(plan, number)
                    or self.handled.raised[plan.name, number]
                    or self.oracles.waits_without_end(process, plan, number)
                ):
                    await trio.sleep(0.05)
                if self.oracles.arrived_everywhere(plan, number):
                    # The message may be for other destinations than the one with the breaker.
                    passes_by = plan.strategy != "all" or any(target.when for target in plan.targets)
                    await self._until_ready(process, of=plan.name, but_breakers=passes_by)
                continue
            if not plan.stream and process.lost_links > lost:
                plans.appendleft(plan)
            else:
                self.oracles.broken("probe", f"/readyz says ok, and a message of {plan.name} did not arrive in time")

    async def _until_all_is_routed(self, process: Process) -> None:
        """Wait until nothing is in the way of a shutdown. A probe that goes nowhere has not been waited for."""
        unrouted: list[str] = []
        with trio.move_on_after(LIVELY_WITHIN):
            await trio.sleep(LOOK_EVERY)  # such a probe may be on its way to the router
            while unrouted := self.oracles.unrouted(process):
                await trio.sleep(0.5)
        if unrouted:
            self.oracles.broken("liveness", f"{LIVELY_WITHIN:g} s after the probes: {unrouted}")

    async def _until_ready(self, process: Process, of: str | None = None, *, but_breakers: bool = False) -> None:
        problem = self.oracles.unready(process, of, but_breakers=but_breakers)
        kinds = {step.kind for step in self.schedule.steps}
        patience = LOOKED_UP_WITHIN + SILENCE * bool(LOSES & kinds)
        if "requests refused" in kinds:
            patience += DENIED_LOOK_EVERY  # earlier findings are not updated until the next lookup
        with trio.move_on_after(patience):
            while problem is not None:
                await trio.sleep(0.5)
                problem = self.oracles.unready(process, of, but_breakers=but_breakers)
        if problem is not None:
            self.oracles.broken("readiness", f"all is well, and /readyz says {problem}")

    async def _end_well(self, process: Process) -> None:
        self.process = None
        routes = self.schedule.routes
        in_reloads = 0 if process.live is None else left_waiting(process.live, routes)
        await self._end(process)
        if process.live is not None and process.live.unsettled != left_waiting(process.live, routes) - in_reloads:
            self.oracles.broken("shutdown", f"{process.live.unsettled} unsettled at the end, with nothing in the way")
