"""Execution of a schedule of several routers: a broker, processes that come and go, and a client that publishes."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from math import inf
from random import Random
from typing import Any

import trio

from router_trio.errors import LinkError, SourceError
from router_trio.events import Event
from router_trio.link import Announced, Group, StreamConfig
from router_trio.routing.stream.partitions.unled import LONGEST
from router_trio.states import RUNNING
from router_trio.subjects.partitions import Partitioning
from router_trio.testing import FakeBroker
from router_trio.testing.streams import Stored, Stream
from router_trio.testing.watch import Watch
from tests.simulation import claims, sums
from tests.simulation.handlers import number_of
from tests.simulation.partitions import steps
from tests.simulation.partitions.history import Change, Copy, History, Look, Published
from tests.simulation.partitions.judges import JUDGES, LED_AGAIN
from tests.simulation.partitions.process import DURABLE, FILTER, ROUTE, SINK, SOURCE, Process
from tests.simulation.partitions.schedule import Schedule
from tests.simulation.schedule import Step
from tests.simulation.trace import Trace

LIVELY_WITHIN = 60.0
"""Seconds after the last fault within which everything is stored, besides the ack wait of what was delivered to none.
"""

PROBED_WITHIN = 10.0
"""Seconds within which a message of each key is stored when all is well, besides its time in handlers."""

SETTLED_AFTER = 12.0
"""Seconds after the last change in which shares are looked at once more."""

UNFORGED_WITHIN = LONGEST + 20.0
"""Seconds within which shares are fair after the end of forged members: until then others may stand in for them."""

PAUSE_SEEN_WITHIN = 8.0
"""Seconds within which a process notices that its durables are paused: it looks every 5 s."""

NOTICED_WITHIN = 20.0
"""Seconds after a power failure until processes have noticed that a stream was rolled back, and it is copied again."""

COPIED_AGAIN_WITHIN = 30.0
"""Seconds after a stream that is copied was rolled back in which its new messages are copied again."""

LOOK_EVERY = 0.5

UNLED_LEAST = 4.0
"""Seconds without a leader after which a partition may be reported: processes wait for twice that."""

CAUSES = {
    "durables paused": "durable paused",
    "restart": "election",
    "sink without leader": "election",
    "stream without leader": "election",
}
"""Kinds of steps by which a judge of `claims` explains an event, and their names there."""

ON_THE_WAY = 5
"""How often something is on the way for a message: a request, the message, its copy, the PubAck, the ack."""

MOST_SHOWN = 5
"""Broken promises of a run that are kept."""


class World(Watch):
    """A single run."""

    def __init__(self, schedule: Schedule, trace: Trace) -> None:
        self.schedule: Schedule = schedule
        self.trace = trace
        self.wrong: list[tuple[str, str]] = []
        self.codes: Counter[str] = Counter()
        self.history = History(schedule.partitions, schedule.window)
        self.broker = FakeBroker()
        self.broker.trouble.watch(self)
        self.broker.trouble.travel(lambda: schedule.latency)
        self.partitioned: str = SOURCE if schedule.own_token else f"{SOURCE}-{DURABLE}"
        """The name of the stream that has the partitions."""
        self._partitioning = Partitioning(schedule.partitions, (1,) if schedule.by_key else (), (FILTER,))
        self.broker.add_stream(SINK, ["out.>"], duplicate_window=schedule.window)
        transform = self._partitioning.transforms[0] if schedule.own_token else None
        config = StreamConfig(SOURCE, (FILTER,), transform=transform)
        self.broker._server.add_stream(
            SOURCE, config.subjects, duplicate_window=120.0, max_messages=None, config=config
        )
        self._nursery: trio.Nursery
        self._began = 0
        self._living: list[Process] = []
        self._failed: set[int] = set()
        self._moves: dict[int, str] = {}
        self._stored: set[int] = set()
        self._in_sink: list[Copy] = []
        self._holds_until = -inf
        self._losses_left: dict[str, int] = {}
        self._rollbacks = 0
        self._unled_since: dict[int, float] = {}
        self._unled_until: dict[int, float] = {}
        """When partitions without a leader, for a while then, were last seen."""
        self._claims = claims.World(
            lambda _: self.broker,
            {ROUTE: ("a", self.partitioned, DURABLE)},
            [replace(one, kind=CAUSES[one.kind], what={}) for one in schedule.steps if one.kind in CAUSES],
            rollbacks=lambda _: inf if self._rollbacks else 0,
            unled=self._unled,
            is_calm=self._is_calm,
        )
        self.paused_since: float = inf
        """When the durables of all partitions were paused; infinite if they are not."""

    async def run(self) -> None:
        """Execute the schedule from start to end."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._look_regularly)
            for _ in range(self.schedule.members):
                self.join()
            async with trio.open_nursery() as lasting:
                for step in self.schedule.steps:
                    await trio.sleep_until(step.at)
                    self.trace.add(str(step))
                    lasting.start_soon(self._publish if step.kind == "publish" else self._take, step)
            await self._until_all_is_well()
            await self._end()
            nursery.cancel_scope.cancel()
        for promise, judge in JUDGES.items():
            for detail in judge(self.history):
                self.broken(promise, detail)

    def broken(self, promise: str, detail: str) -> None:
        """Record a broken promise."""
        if len(self.wrong) < MOST_SHOWN:
            self.wrong.append((promise, detail))
        self.trace.add(f"BROKEN {promise}: {detail}")

    # --- processes ---

    def join(self) -> None:
        """Start another process."""
        self._began += 1
        process = Process(self, self._began)
        self._living.append(process)
        self.changed(f"process {process.number} joined")
        process.begin(self._nursery)

    def pick(self, which: int) -> Process | None:
        """Return one of the living processes; None if there is none."""
        return self._living[which % len(self._living)] if self._living else None

    def kill(self, process: Process) -> None:
        """Kill a process."""
        self._living.remove(process)
        process.kill()
        self.changed(f"process {process.number} was killed")

    def restart_all(self) -> None:
        """Kill all processes, and start as many new ones."""
        for process in [*self._living]:
            self.kill(process)
            self.join()

    def leave(self, process: Process) -> None:
        """End a process in good order, as soon as it can act."""
        self._living.remove(process)
        self.changed(f"process {process.number} leaves")
        self._nursery.start_soon(self._left, process)

    async def _left(self, process: Process) -> None:
        process.ending.set()
        bound = self.schedule.shutdown_timeout + 5.0
        with trio.move_on_after(bound) as waiting:
            await process.over.wait()
        if waiting.cancelled_caught:
            if not process.is_suspended:
                self.broken("shutdown", f"process {process.number} did not end within {bound:g} s")
            process.kill()
        self.changed(f"process {process.number} has left")

    def move(self, partition: int, which: int) -> None:
        """Move a partition by hand to one of the living processes."""
        process = self.pick(which)
        if process is not None and process.partitions is not None:
            self._moves[partition] = process.partitions.member
            self._nursery.start_soon(self._moved, dict(self._moves))

    async def _moved(self, moves: dict[int, str]) -> None:
        with suppress(LinkError, SourceError):
            async with self.broker.machine().connect("nats://by-hand:4222", b"_INBOX.by-hand", _Deaf()) as link:
                members = await link.members(Group(SOURCE, DURABLE, "f" * 16))
                await members.move(moves)
        self.changed(f"moved {moves}")

    def forge(self, step: Step) -> None:
        """Announce members that do not exist, for as long as the step lasts, and others of them now and then."""
        self._nursery.start_soon(self._forged, step, Random(f"forged {self.schedule.seed} {step.at}"))

    async def _forged(self, step: Step, dice: Random) -> None:
        until = trio.current_time() + step.seconds
        within = step.seconds + UNFORGED_WITHIN
        what = f"{step.what['count']} members were forged"
        self.history.changes.append(Change(trio.current_time(), what, within, within, forged=True))
        while (left := until - trio.current_time()) > 0:
            self.trace.add(what)
            with suppress(LinkError, SourceError):
                async with self.broker.machine().connect("nats://forger:4222", b"_INBOX.forger", _Deaf()) as link:
                    for _ in range(step.what["count"]):
                        members = await link.members(Group(SOURCE, DURABLE, dice.randbytes(8).hex()))
                        await members.announce(Announced("", "", (0,)), left)
            await trio.sleep(step.what["every"] or left)

    def changed(self, what: str, for_seconds: float = 0.0) -> None:
        """Record an event after which shares or leads may change, also `for_seconds` later."""
        self.trace.add(what)
        more = self._drained_within()
        self.history.changes.append(
            Change(trio.current_time(), what, 10.0 + for_seconds + more, 10.0 + for_seconds + more)
        )

    def _drained_within(self) -> float:
        """Return the seconds in which what a process has in hand of a partition is settled."""
        each = self.schedule.slow * min(self.schedule.max_in_flight, 20)
        return min(each, self.schedule.ack_wait)

    # --- the load ---

    async def _take(self, step: Step) -> None:
        end = steps.begin(self, step)
        await trio.sleep(step.seconds)
        end()

    async def _publish(self, step: Step) -> None:
        count = step.what["count"]
        for _ in range(count):
            await trio.sleep_until(max(self._holds_until, trio.current_time()))
            self._publish_next()
            if step.seconds:
                await trio.sleep(step.seconds / count)

    def _publish_next(self) -> None:
        if trio.current_time() < self.broker._server.streams[SOURCE].leaderless_until:
            return  # nothing confirms it, so it is not published
        number = len(self.history.published) + 1
        subject = f"in.k{number % self.schedule.keys}.{'ab'[number % 3 == 0]}"
        partition = self._partitioning.partition_of(subject)
        published = Published(number, self.key_of(subject), partition, trio.current_time())
        self.history.published.append(published)
        self.broker.publish(subject, b"%d" % number)

    def key_of(self, subject: str) -> str:
        """Return the key of a message."""
        return subject.split(".")[1] if self.schedule.by_key else subject

    def seconds_for(self, number: int) -> float:
        """Return how long the handler takes for a message."""
        return self.schedule.slow * Random(number).random()

    def fails(self, number: int) -> bool:
        """Return True if the handler fails for this message now: at the first attempt of some."""
        every = self.schedule.fails_every
        if not every or number % every or number in self._failed:
            return False
        self._failed.add(number)
        return True

    def forget(self, name: str, count: int) -> None:
        """Let a stream lose its last messages, as a power failure does. What no other stream has is gone.

        The source loses none twice before it was copied again, and gets new ones only then: processes can't see that
        what was copied and not delivered was lost, if the source has as many messages again. Nor does it lose any while
        no process runs, which then would not be noticed.
        """
        streams, now = self.broker._server.streams, trio.current_time()
        is_new = any(one.at > self._holds_until for one in self.history.published)
        if name == SOURCE and not (is_new and any(not process.is_suspended for process in self._living)):
            return
        self.broker.cut()
        self.broker.trouble.forget(name, count)
        self._rollbacks += name != SINK
        self.changed(f"{name} has lost {count} messages")
        if name == SOURCE:
            self._holds_until = now + NOTICED_WITHIN
        if name == SINK:
            left = len(streams[SINK].stored)
            for copy in self._in_sink[left:]:
                copy.lost_at = now
            del self._in_sink[left:]
            return
        # The server may copy new messages before earlier ones; what the copy had delivered is delivered again.
        self.history.without_order.append((now, now + COPIED_AGAIN_WITHIN) if name == SOURCE else (0.0, now))
        there = {number_of(one.publish.payload) for one in (*streams[SOURCE].stored, *streams[self.partitioned].stored)}
        self.history.gone |= {one.number for one in self.history.published} - there - self._stored

    # --- what happens ---

    def stored(self, stream: Stream, stored: Stored, now: float) -> None:
        """Record a copy in the destination."""
        if stream.name == SINK:
            number = number_of(stored.publish.payload)
            self._stored.add(number)
            self._in_sink.append(Copy(number, now))
            self.history.stored.append(self._in_sink[-1])
            self.trace.add(f"stored {number}")

    def observe(self, process: Process, event: Event) -> None:
        """Check that ledgers add up at an event."""
        self.codes[event.code] += 1
        self.trace.add(f"process {process.number}: {event!r}")
        for detail in claims.wrong(event, self._claims):
            self.broken("claim", f"at {event.at:.3f} s, process {process.number}: {detail}")
        if process.live is not None:
            for detail in sums.ledgers(process.live):
                self.broken("ledger", f"process {process.number} at {event.code}: {detail}")

    def closed(self, process: Process) -> None:
        """Check a process that ended in good order: nothing is left without a fate."""
        assert process.live is not None
        for name, entry in process.live.ledger().items():
            if entry["pending"] or entry["in_flight"]:
                self.broken("shutdown", f"process {process.number}, {name} after the end: {entry}")
        self._check_ledgers(process)
        for route in process.live.routes:
            if route.in_hand:
                self.broken("shutdown", f"process {process.number} has {route.in_hand} in hand after the end")

    def _check_ledgers(self, process: Process) -> None:
        assert process.live is not None
        for detail in (*sums.ledgers(process.live), *sums.route_ledgers(process.live)):
            self.broken("ledger", f"process {process.number}: {detail}")

    async def _look_regularly(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            led: dict[int, frozenset[int]] = {}
            apart = frozenset(one.number for one in self._living if one.is_apart)
            for process in self._living:
                if not process.is_suspended:
                    partitions = process.partitions
                    led[process.number] = frozenset(() if partitions is None else partitions.led)
                    if process.live is not None:
                        self._check_ledgers(process)
            self._check_pause()
            self._note_losses()
            self._see_leads(trio.current_time())
            missing = self._missing()
            busy = frozenset(one.partition for one in self.history.published if one.number in missing)
            self.history.looks.append(Look(trio.current_time(), led, busy, moved=bool(self._moves), apart=apart))
            self.trace.add(f"led: {led}")

    def _see_leads(self, now: float) -> None:
        """Note which partitions have messages and no leader, for a while."""
        for number in range(self.schedule.partitions):
            durable = self.broker._server.consumers.get((self.partitioned, f"{DURABLE}-{number}"))
            if durable is None or not durable.lead_state(now).unled:
                self._unled_since.pop(number, None)
            elif now - self._unled_since.setdefault(number, now) >= UNLED_LEAST:
                self._unled_until[number] = now

    def _unled(self) -> int:
        """Return how many partitions had no leader for a while, and not long ago."""
        now = trio.current_time()
        return sum(now - until <= claims.KNOWN_FOR for until in self._unled_until.values())

    def _is_calm(self) -> bool:
        """Return True if nothing has happened lately that changes leads."""
        now = trio.current_time()
        return not any(one.at <= now <= one.at + one.led_within for one in self.history.changes)

    def _check_pause(self) -> None:
        """Check that no process is ready while messages wait that are paused, whichever partitions it leads, if any.

        One that starts or reconnects during a pause has to look first.
        """
        now = trio.current_time()
        if now - self.paused_since <= PAUSE_SEEN_WITHIN or not self._missing():
            return
        noticed = now - PAUSE_SEEN_WITHIN - 2 * self.schedule.liveness
        hindered = {one.process for one in self.history.spells if one.ended > noticed}
        for process in self._living:
            sees = process.number not in hindered and None not in hindered and not process.is_suspended
            if process.live is None or not sees or now - process.linked_at <= PAUSE_SEEN_WITHIN:
                continue
            if any(route.state == RUNNING for route in process.live.routes):
                self.broken("paused", f"all durables are paused, and process {process.number} is ready")

    def _note_losses(self) -> None:
        """Record what was lost or delayed since the last look: its consequences begin then, and not with the step."""
        left = dict(self.broker._server.losses.left)
        for kind, before in self._losses_left.items():
            if left.get(kind, 0) < before and kind in steps.NOTICED_WITHIN:
                self.changed(f"{kind} lost or late", steps.NOTICED_WITHIN[kind])
        self._losses_left = left

    async def _keep_time(self) -> None:
        """Let the server do what is due even if no process has a link that wakes up."""
        machine = self.broker.machine()
        while True:
            with suppress(LinkError):
                async with machine.connect("nats://time:4222", b"_INBOX.time", _Deaf()):
                    await trio.sleep_forever()
            await trio.sleep(0.1)

    # --- the end ---

    async def _until_all_is_well(self) -> None:
        """Heal the world, and wait until everything is stored, and messages of all keys pass at once."""
        self.broker.up()
        self.broker.trouble.mend()
        self.broker.trouble.travel(lambda: self.schedule.latency)
        for process in self._living:
            process.resume()
            process.machine.release()
            process.machine.travel(None)
            process.machine.half_open = False
        if not self._living:
            self.join()
        self.changed("healed")
        healed_at = trio.current_time()
        await self._until_stored(LIVELY_WITHIN + self.schedule.ack_wait, "liveness")
        await trio.sleep_until(healed_at + SETTLED_AFTER + self._drained_within())
        for _ in range(3 * self.schedule.keys):
            self._publish_next()
        # Messages that were requested by a lost pull are requested again when the consumer is silent.
        kinds = {step.kind for step in self.schedule.steps}
        more = (steps.NOTICED_WITHIN["pull"] if "pull lost" in kinds else 0.0) + (
            LED_AGAIN if "forge" in kinds else 0.0
        )
        await self._until_stored(PROBED_WITHIN + more, "probe")
        await trio.sleep(LOOK_EVERY)

    async def _until_stored(self, seconds: float, promise: str) -> None:
        missing = self._missing()
        # One process may have all of them in its handler, one after the other, and some a second time.
        seconds += 2 * sum(map(self.seconds_for, missing))
        # With few in flight, each waits until earlier ones were requested, delivered, stored and acked.
        seconds += len(missing) * ON_THE_WAY * self.schedule.latency / self.schedule.max_in_flight
        with trio.move_on_after(seconds) as waiting:
            while missing := self._missing():
                await trio.sleep(0.25)
        if waiting.cancelled_caught:
            shown = sorted(missing)[:5]
            self.broken(promise, f"{len(missing)} messages were not stored within {seconds:g} s: {shown}")

    def _missing(self) -> set[int]:
        return {one.number for one in self.history.published} - self._stored - self.history.gone

    async def _end(self) -> None:
        for process in [*self._living]:
            self.leave(process)
        for process in [*self._living]:
            await process.over.wait()
        await trio.sleep(self.schedule.shutdown_timeout + 6.0)


class _Deaf:
    """A link listener for a client that publishes nothing, and so gets no answers."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None
