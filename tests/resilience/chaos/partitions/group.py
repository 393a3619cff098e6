"""Servers, members, a client that publishes, and what a trial does to them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from router_trio.subjects.partitions import Partitioning
from tests.resilience.chaos.load import TROUBLE
from tests.resilience.chaos.partitions.member import Member, write_configuration
from tests.resilience.chaos.partitions.trial import FEWEST, MOST, Step, Trial
from tests.simulation.partitions.history import Change, Look, Spell
from tests.support.proxy import background
from tests.support.raw_jetstream import JetStream, JetStreamError
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, cluster, nats_server

SOURCE, SINK, DURABLE = "IN", "OUT", "router"
FILTER = "in.*.*"
WINDOW = 120.0
"""Seconds of the duplicate window of the destination: the default of a server."""

LOOK_EVERY = 0.5
PUBLISH_EVERY = 0.1
ATTEMPT_WITHIN = 2.0
TRY_AGAIN_AFTER = 0.1
PIN_LOST_FOR = 6.0
"""Seconds after the loss of a pin in which the process that had it may not know that, and another one has the next."""

ELECTED_WITHIN = 10.0
"""Seconds in which a server that is gone or back has changed the leaders of streams and consumers."""

STORED_WITHIN = 90.0
"""Seconds after the last step in which all is stored, if nothing has been stored for this long."""

JOINED, LEFT, OTHERS = 5.0, 5.0, 10.0
"""Seconds after which shares are fair: one has joined, one has left, or anything else has happened."""

STARTS_WITHIN = 20.0
"""Seconds in which a process has started, before it joins."""

SHARED_WITHIN = 120.0
"""Seconds until the first members have their shares."""


@dataclass(eq=False)
class Group:
    """All that a trial runs, and what was seen of it. Times are seconds since 1970."""

    trial: Trial
    folder: Path
    servers: Sequence[NatsServer]
    partitioning: Partitioning
    slack: float = 0.0
    """Additional seconds for each bound, for a busy machine."""
    members: list[Member] = field(default_factory=list)
    """All members that were started."""
    living: list[Member] = field(default_factory=list)
    published_at: dict[int, float] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    codes: list[tuple[Member, int]] = field(default_factory=list)
    """Exit codes of members that were terminated."""

    # --- members ---

    def start(self) -> None:
        """Start another member."""
        member = Member(len(self.members) + 1, self.folder)
        self.members.append(member)
        self.living.append(member)
        # The process takes a second or two to import what it needs, on a busy machine longer.
        self.changed("start", STARTS_WITHIN + OTHERS)

    def pick(self, place: int) -> Member | None:
        """Return one of the living members that are not suspended, if enough are left."""
        free = [member for member in self.living if member.is_up and not member.is_suspended]
        return free[place % len(free)] if len(free) > FEWEST else None

    def changed(self, what: str, within: float = OTHERS) -> None:
        """Record an event after which other processes lead partitions."""
        self.changes.append(Change(time.time(), what, OTHERS + self.slack, within + self.slack))

    async def take(self, step: Step) -> None:
        """Take a step, until it is over."""
        if step.kind == "start":
            if len(self.living) < MOST:
                self.start()
        elif step.kind in ("kill", "suspend", "terminate"):
            member = self.pick(step.place)
            if member is not None:
                await getattr(self, step.kind)(member, step)
        elif step.kind == "step down":
            await self._step_down(step)
        else:
            server = self.servers[step.place % len(self.servers)]
            if server.is_running:
                await self._without(server, step)

    async def kill(self, member: Member, step: Step) -> None:
        """Kill a member."""
        self.living.remove(member)
        member.kill()
        self.changed("kill")

    async def suspend(self, member: Member, step: Step) -> None:
        """Suspend a member for some seconds."""
        member.suspend()
        began = time.time()
        self.changed("suspend")
        self.spells.append(Spell(began, began + step.seconds, member.number, suspended=True))
        await trio.sleep(step.seconds)
        self.changed("resume")
        member.resume()

    async def terminate(self, member: Member, step: Step | None = None) -> None:
        """Terminate a member, and wait for its end."""
        self.living.remove(member)
        self.changed("terminate", OTHERS)
        member.terminate()
        self.codes.append((member, await member.ended()))
        self.changed("left", LEFT)

    # --- servers ---

    async def _without(self, server: NatsServer, step: Step) -> None:
        kind = step.kind if self.trial.nodes > 1 else step.kind.replace("a server", "the server")
        began = time.time()
        self.changed(kind, step.seconds + ELECTED_WITHIN + OTHERS)
        if step.kind.startswith("stop"):
            server.stop()
            await trio.sleep(step.seconds)
            if server.is_running:  # else a later step has killed it, and starts it again
                server.cont()
        else:
            await server.kill()
            await trio.sleep(step.seconds)
            await server.restart()
        self.spells.append(Spell(began, time.time() + ELECTED_WITHIN + PIN_LOST_FOR))
        self.changed(f"after: {kind}", ELECTED_WITHIN + OTHERS)

    async def _step_down(self, step: Step) -> None:
        """Have the leader of a durable hand over, and that of the bucket."""
        began = time.time()
        self.changed("step down", ELECTED_WITHIN + OTHERS)
        self.spells.append(Spell(began, began + ELECTED_WITHIN + PIN_LOST_FOR))
        durable = f"{DURABLE}-{step.place % self.trial.partitions}"
        try:
            async with connect(self.a_server.url) as client:
                for asked in (
                    f"CONSUMER.LEADER.STEPDOWN.{self.partitioned}.{durable}",
                    "STREAM.LEADER.STEPDOWN.KV_router-trio-members",
                ):
                    await JetStream(client).api(asked)
        except (*TROUBLE, JetStreamError):
            pass  # a server that is away at the moment; the trial goes on

    @property
    def partitioned(self) -> str:
        """The stream that has the partitions."""
        return SOURCE if self.trial.own_token else f"{SOURCE}-{DURABLE}"

    @property
    def a_server(self) -> NatsServer:
        """A server that runs."""
        return next((server for server in self.servers if server.is_running), self.servers[0])

    # --- load ---

    def subject(self, number: int) -> str:
        """Return the subject of a message, before a stream puts its partition in front."""
        return f"in.k{number % self.trial.keys}.{number % 3}"

    async def publish(self, until: float) -> None:
        """Publish to the source, `rate` messages a second, until that time of Trio: each until its PubAck arrives."""
        each = max(1, round(self.trial.rate * PUBLISH_EVERY))
        at = trio.current_time()
        while at < until:
            at += PUBLISH_EVERY
            await trio.sleep_until(at)
            first = len(self.published_at) + 1
            await self._publish(range(first, first + each))

    async def _publish(self, numbers: range) -> None:
        batch = [(self.subject(n), b"%d" % n, [("Nats-Msg-Id", f"id-{n}")]) for n in numbers]
        server = 0
        while True:
            try:
                with trio.fail_after(ATTEMPT_WITHIN):
                    async with connect(self.servers[server % len(self.servers)].url) as client:
                        await JetStream(client).publish_many(batch)
                break
            except (*TROUBLE, JetStreamError):
                server += 1
                await trio.sleep(TRY_AGAIN_AFTER)
        self.published_at.update(dict.fromkeys(numbers, time.time()))

    async def shared(self) -> None:
        """Wait until all members lead their share."""
        with trio.fail_after(SHARED_WITHIN):
            while True:
                led = [await member.led() for member in self.living]
                shares = [len(one or ()) for one in led]
                if sum(shares) == self.trial.partitions and max(shares) - min(shares) <= max(self.trial.workers, 1):
                    return
                await trio.sleep(0.2)

    async def look(self) -> None:
        """Look regularly who leads what, until cancelled."""
        while True:
            await trio.sleep(LOOK_EVERY)
            asked = [member for member in self.living if not member.is_suspended]
            began, led = time.time(), dict[int, frozenset[int] | None]()
            async with trio.open_nursery() as nursery:
                for member in asked:
                    nursery.start_soon(self._ask, member, led)
            # A member that is too busy to answer leads something that is not seen.
            known = {number: partitions for number, partitions in led.items() if partitions is not None}
            if len(known) == len(asked) == len([one for one in asked if one in self.living and not one.is_suspended]):
                self.looks.append(Look(began, known, frozenset()))

    async def _ask(self, member: Member, led: dict[int, frozenset[int] | None]) -> None:
        led[member.number] = await member.led()

    async def until_stored(self) -> None:
        """Wait until the destination has all messages, or nothing more has been stored for `STORED_WITHIN`."""
        last, since = -1, trio.current_time()
        while last < len(self.published_at) and trio.current_time() - since < STORED_WITHIN:
            await trio.sleep(0.5)
            try:
                with trio.fail_after(ATTEMPT_WITHIN):
                    async with connect(self.a_server.url) as client:
                        now = int((await JetStream(client).stream_info(SINK))["state"]["messages"])
            except (*TROUBLE, JetStreamError):
                continue
            if now != last:
                last, since = now, trio.current_time()


@asynccontextmanager
async def group(trial: Trial, folder: Path, *, slack: float = 0.0) -> AsyncIterator[Group]:
    """Run servers with the streams of a trial, and its first members. At the end members are killed."""
    async with _servers(trial, folder) as servers:
        partitioning = Partitioning(trial.partitions, (1,), (FILTER,))
        async with connect(servers[0].url) as client:
            streams, replicas = JetStream(client), {"num_replicas": min(trial.nodes, 3)}
            (transform,) = partitioning.transforms
            own = {"subject_transform": {"src": transform[0], "dest": transform[1]}} if trial.own_token else {}
            await streams.create_stream(SOURCE, [FILTER], **replicas, **own)
            await streams.create_stream(SINK, ["out.>"], **replicas, duplicate_window=round(WINDOW * 1e9))
        write_configuration(folder, trial, [server.url for server in servers])
        made = Group(trial, folder, servers, partitioning, slack)
        try:
            for _ in range(trial.members):
                made.start()
            yield made
        finally:
            for member in made.members:
                if member.code is None:
                    member.kill()


@asynccontextmanager
async def _servers(trial: Trial, folder: Path) -> AsyncIterator[Sequence[NatsServer]]:
    if trial.nodes > 1:
        async with cluster(folder, trial.nodes) as made:
            yield made.servers
    else:
        async with nats_server(folder) as server:
            yield [server]


async def run(made: Group) -> None:
    """Run the trial from its first message to the end of the last member."""
    await made.shared()
    made.changes.clear()
    made.changed("the beginning")
    began = trio.current_time()
    async with background() as nursery:
        nursery.start_soon(made.look)
        async with trio.open_nursery() as steps:
            steps.start_soon(made.publish, began + made.trial.seconds)
            for step in made.trial.steps:
                await trio.sleep_until(began + step.at)
                steps.start_soon(made.take, step)
        await made.until_stored()
        # Shares are looked at once more when nothing has changed for long enough.
        last = max(made.changes, key=lambda change: change.at + change.fair_within)
        await trio.sleep(max(0.0, last.at + last.fair_within + 2 * LOOK_EVERY - time.time()))
    for member in [*made.living]:
        await made.terminate(member)
