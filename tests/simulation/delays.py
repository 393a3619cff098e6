"""Drawn histories of delayed copies and scheduled retries: lost links and answers, elections, killed routers.

No copy and no attempt is early, none is lost, none is there twice, and each schedule was published or still waits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from router_trio import Live, Message, Retry, Router, Settings
from router_trio.connection.platform import Platform
from router_trio.connection.waiting_schedules import COUNT_EVERY
from router_trio.events import Event
from router_trio.protocol.stream_config import StreamConfig
from router_trio.testing import FakeBroker
from router_trio.testing.frames import Publish
from router_trio.testing.streams import EPOCH, Stream
from tests.simulation import claims, sums
from tests.simulation.machines import Machines
from tests.simulation.run import Outcome, Story, run_history
from tests.simulation.schedule import Step

if TYPE_CHECKING:
    from router_trio.router.options import RetryOptions

STEPS = 30
QUIET_WITHIN = 600.0
"""Seconds after the last fault within which every message is where it belongs."""

FAR = 1_000_000.0
"""Seconds by which some copies are delayed: they wait until the end."""

CLOCK = 1e-6
"""The precision of the clocks of brokers, in seconds: they are doubles since 1970."""

HEADERS = (
    b"",
    b"",
    b"NATS/1.0\r\nX-Kind: test\r\n\r\n",
    b"NATS/1.0\r\nX-Kind: a\nNats-Schedule-z\r\n\r\n",
    b"NATS/1.0\r\nX-Kind: a\nNats-Expected-Stream: OTHER\r\n\r\n",
    b"NATS/1.0\r\nX-Kind: a\nRouter-Origin-Stream: OTHER\r\nX-Other: b\n\r\n\r\n",
)
"""Header blocks of messages: a server cuts schedules at control headers behind any LF, up to the next CRLF."""

CALM = ("elect", "elect", "puback", "ack", "nak", "reload")
"""Steps after which a message of a subject is not lost either."""

ROUGH = ("cut", "down", "stall", "message")
"""Further steps."""


@dataclass(slots=True)
class Plan:
    """A drawn route. `delay` is constant, in seconds; `at`: each message has the time in its body.

    `after`: seconds until the next attempt of a message that failed in the handler; 0 without a handler.
    """

    name: str
    stream: bool
    delay: float = 0.0
    at: bool = False
    after: float = 0.0

    @property
    def is_delayed(self) -> bool:
        """True if its copies are published later."""
        return self.at or self.delay > 0


@dataclass(slots=True)
class Sent:
    """A message. Its copy is due at `due_ns`, in nanoseconds since 1970; it fails `fails` more times before that.

    `calls` are those of the handler: the number of the process, the time, and whether it failed.
    """

    route: Plan
    due_ns: int
    fails: int
    calls: list[tuple[int, float, bool]] = field(default_factory=list)


class History:
    """A history of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(f"delays {seed}")
        self.headers = Random(f"headers of delays {seed}")
        self.steps: list[str] = []
        """The steps so far, in order, each with its time."""
        self.calm = self.random.random() < 0.4
        """True if a single process runs in it, and nothing loses a message of a subject."""
        self.far = self.random.random() < 0.5
        self.plans = [self._plan(number) for number in range(self.random.randint(1, 3))]
        self.sent: list[Sent] = []
        here = FakeBroker()
        there = here if self.random.random() < 0.5 else FakeBroker()
        self.brokers = {"here": here, "there": there}
        self._processes = 0
        self.false: list[str] = []
        """False events so far: see `claims`."""
        self.live: Live | None = None
        self._elections: list[Step] = []
        self._claims = claims.World(
            self.brokers.__getitem__,
            {plan.name: ("here", "IN", plan.name) for plan in self.plans if plan.stream},
            self._elections,
            is_ending=lambda: True,
        )
        here._server.ensure_stream(StreamConfig("IN", ("in.>",)), 0.0)
        self.retries = self._stream(here, "RETRY", "retry.>")
        self.out = self._stream(there, "OUT", "out.>", "later.>")

    @staticmethod
    def _stream(broker: FakeBroker, name: str, *subjects: str) -> Stream:
        """Add a stream that keeps schedules, and remembers ids for longer than a history lasts."""
        broker._server.ensure_stream(
            StreamConfig(name, subjects, allow_message_schedules=True, duplicate_window=100_000.0), 0.0
        )
        return broker._server.streams[name]

    def _plan(self, number: int) -> Plan:
        random = self.random
        plan = Plan(f"r{number}", stream=random.random() < 0.75)
        kind = random.choice(("none", "constant", "at")) if plan.stream else random.choice(("constant", "at"))
        plan.delay = random.choice((0.5, 7.0, 40.0)) if kind == "constant" else 0.0
        plan.at = kind == "at"
        if plan.stream and (not plan.is_delayed or random.random() < 0.5):
            plan.after = random.choice((2.0, 8.0, 30.0))
        return plan

    # --- the router ---

    def _to(self, plan: Plan) -> dict[str, Any]:
        to: dict[str, Any] = {
            "connection": "there",
            "subject": f"out.{plan.name}.{{{{wildcard(1)}}}}",
            "jetstream": True,
        }
        if plan.is_delayed:
            to["delay"] = "timestamp(body.at)" if plan.at else f"{plan.delay:g}s"
            to["schedule_prefix"] = f"later.{plan.name}"
        return to

    def _from(self, plan: Plan) -> dict[str, Any]:
        if not plan.stream:
            return {"subject": f"core.{plan.name}.*"}
        return {"stream": "IN", "durable": plan.name, "filter": f"in.{plan.name}.*", "ack_wait": "3s"}

    def _settings(self, hop_limit: int = 0) -> Settings:
        quick = {"reconnect_delay": "50ms", "max_reconnect_delay": "2s", "liveness_interval": "1s"}
        routes = [
            {
                "name": plan.name,
                "from": {"connection": "here", **self._from(plan)},
                "to": [self._to(plan)],
                **({"retry": {"initial": "50ms", "max": "2s"}} if plan.stream else {}),
                **({"hop_limit": hop_limit} if hop_limit else {}),
            }
            for plan in self.plans
            if not plan.after
        ]
        connections = {name: {"servers": [f"nats://{name}"], **quick} for name in self.brokers}
        return Settings(telemetry={"listen": ""}, connections=connections, routes=routes)

    def _router(self, process: int, connect: Any) -> Router:
        platform = Platform(
            wall_clock=lambda: EPOCH + trio.current_time(), random=Random(self.random.random()), watch_loop=False
        )
        router = Router(self._settings(), connect=connect, platform=platform, log=False, observers=[self._observe])
        for plan in self.plans:
            if plan.after:
                retry: RetryOptions = {
                    "initial": "50ms",
                    "max": "2s",
                    "schedule": {"stream": "RETRY", "prefix": "retry", "after": "1s"},
                }
                to: Any = [self._to(plan)]
                router.route(name=plan.name, connection="here", to=to, retry=retry, **self._from(plan))(
                    self._handler(process, plan)
                )
        return router

    def _handler(self, process: int, plan: Plan) -> Any:
        async def handle(message: Message) -> Message:
            one = self.sent[json.loads(message.payload)["n"]]
            fails = one.fails > 0
            one.calls.append((process, trio.current_time(), fails))
            if fails:
                one.fails -= 1
                raise Retry(after=plan.after)
            return message

        return handle

    def _observe(self, event: Event) -> None:
        self.false += claims.wrong(event, self._claims)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """Run a router. In the end, leave it, or kill it, so that nothing that it does then has an effect."""
        self._processes += 1
        process, ending, self.live = self._processes, trio.Event(), None
        machines = Machines(self.brokers, sends_on=self.random.random() < 0.5)

        async def run() -> None:
            async with self._router(process, machines.connect).open() as self.live:
                await ending.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.sleep(self.random.choice((1.0, 5.0) if self.calm else (0.0, 1.0, 5.0)))
            yield
            if self.random.random() < 0.5:
                self._note("leave")
                ending.set()
                return
            self._note("kill")
            machines.kill()
            self._count()
            nursery.cancel_scope.cancel()

    def _count(self) -> None:
        """Check the ledgers of the current process."""
        if self.live is not None:
            assert [*sums.ledgers(self.live), *sums.route_ledgers(self.live)] == []

    # --- the steps ---

    async def run(self) -> None:
        """Run all steps. Raises `AssertionError` if a promise is broken."""
        left = STEPS
        if self.random.random() < 0.5:
            self._elect(self.brokers["there"], "OUT", 8.0)
        while left > 0:
            async with self._running():
                for _ in range(left if self.calm else min(left, self.random.randint(5, STEPS))):
                    left -= 1
                    await self._step()
                    self._count()
                if self.calm:
                    await self._end()
            await trio.sleep(self.random.choice([0, 0.5, 10]))
        if not self.calm:
            async with self._running():
                await self._end()

    async def _end(self) -> None:
        """Let all faults end, wait until every message is where it belongs, and judge."""
        for broker in self.brokers.values():
            broker.up()
            broker.trouble.mend()
        with trio.move_on_after(QUIET_WITHIN):
            while self._missing() or self._waits(self.retries):
                await trio.sleep(1)
        await trio.sleep(COUNT_EVERY + 10.0)
        self._count()
        self._judge()

    async def _step(self) -> None:
        random = self.random
        kind = random.choice(("publish",) * 6 + (CALM if self.calm else (*CALM, *ROUGH)))
        name = random.choice([*self.brokers])
        broker = self.brokers[name]
        self._note(f"{kind} {name}")
        if kind == "publish":
            for _ in range(random.choice((1, 3, 10))):
                self._publish(random.choice(self.plans))
        elif kind == "cut":
            broker.cut()
        elif kind == "down":
            broker.down()
            await trio.sleep(random.choice((0.2, 3.0, 20.0)))
            broker.up()
        elif kind == "stall":
            broker.stall(random.choice((0.5, 4.0)))
        elif kind == "elect":
            stream = random.choice([*broker._server.streams])
            self._elect(broker, stream, random.choice((0.5, 3.0, 8.0)))
        elif kind == "reload":
            if self.live is not None:
                with trio.move_on_after(20):
                    await self.live.reload(self._settings(random.randint(5, 9)))
        else:
            broker.trouble.lose(kind, random.randint(1, 5))
        await trio.sleep(random.choice([0, 0, 0.001, 0.1, 2.0, 5.0]))

    def _elect(self, broker: FakeBroker, stream: str, seconds: float) -> None:
        self._elections.append(Step(trio.current_time(), "election", seconds, {"stream": stream}))
        broker.trouble.elect(stream, seconds)

    def _publish(self, plan: Plan) -> None:
        random, now = self.random, EPOCH + trio.current_time()
        far = self.far and plan.at and random.random() < 0.2
        milliseconds = round(1000 * (now + (FAR if far else random.uniform(-1.0, 30.0))))
        due_ns = milliseconds * 1_000_000 if plan.at else int((now + plan.delay) * 1e9)
        number, fails = len(self.sent), random.choice((0, 0, 1, 2)) if plan.after else 0
        self.sent.append(Sent(plan, due_ns, fails))
        at = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
        subject = f"{'in' if plan.stream else 'core'}.{plan.name}.k{random.randint(0, 2)}"
        payload = json.dumps({"n": number, "at": at}).encode()
        here = self.brokers["here"]
        here._server.publish(Publish(subject.encode(), b"", self.headers.choice(HEADERS), payload), trio.current_time())
        here._network.settle()

    def _note(self, text: str) -> None:
        self.steps.append(f"{trio.current_time():.3f} {text}")

    # --- the end ---

    def _copies(self) -> list[tuple[int, int]]:
        """Return the number of each published copy, and when it was stored, in nanoseconds since 1970."""
        return [
            (json.loads(one.publish.payload)["n"], one.timestamp)
            for one in self.out.stored
            if one.subject.startswith("out.")
        ]

    def _stored(self, number: int) -> list[float]:
        """Return when the schedules of a message were stored, on Trio's clock."""
        schedules = (one for one in self.retries.stored if one.subject.startswith("retry.s."))
        return [one.timestamp / 1e9 - EPOCH for one in schedules if json.loads(one.publish.payload)["n"] == number]

    @staticmethod
    def _waits(stream: Stream) -> list[int]:
        """Return the numbers of the messages that wait as schedules."""
        return [json.loads(one.publish.payload)["n"] for one in stream.schedules.values()]

    def _missing(self) -> list[int]:
        """Return the messages that are neither published nor wait until the end."""
        now_ns = int((EPOCH + trio.current_time()) * 1e9)
        there = {number for number, _ in self._copies()}
        there |= {number for number in self._waits(self.out) if self.sent[number].due_ns > now_ns + QUIET_WITHIN * 1e9}
        source = self.brokers["here"]._server.streams["IN"].stored  # without those that were published without a leader
        known = {json.loads(one.publish.payload)["n"] for one in source}
        if self.calm:
            known |= {n for n, one in enumerate(self.sent) if not one.route.stream}
        return sorted(known - there)

    def _judge(self) -> None:
        """Check the promises at the end."""
        copies = self._copies()
        missing = self._missing()
        assert missing == [], f"lost: {missing}"
        assert self._waits(self.retries) == [], "retries that do not fire"
        twice = {n: count for n, count in Counter([n for n, _ in copies] + self._waits(self.out)).items() if count > 1}
        assert twice == {}, "twice"
        assert [(n, self.sent[n].due_ns - at) for n, at in copies if at < self.sent[n].due_ns] == [], "early copies"
        assert [n for n, one in enumerate(self.sent) if not _is_patient(one, self._stored(n))] == [], "early attempts"
        for stream in (self.retries, self.out):
            count = stream.count_schedules()
            assert count.lost == 0, (stream.name, count)
        assert not self.false, self.false[:3]
        self._judge_pages()

    def _judge_pages(self) -> None:
        assert self.live is not None
        for route in self.live.routes:
            prefix = f"later.{route.name}."
            waiting = sum(subject.startswith(prefix) for subject in self.out.schedules)
            plan = next(one for one in self.plans if one.name == route.name)
            delays, retries = route.delays, route.scheduled_retries
            assert (None if delays is None else delays.waiting) == (waiting if plan.is_delayed else None)
            assert (None if retries is None else (retries.waiting, retries.lost)) == ((0, 0) if plan.after else None)
        retried = [one for route in self.live.routes if (one := route.scheduled_retries) is not None]
        if self.calm and retried:
            count = self.retries.count_schedules()
            assert sum(one.stored for one in retried) == count.scheduled
            assert sum(one.fired or 0 for one in retried) == count.fired


def _is_patient(one: Sent, stored: Sequence[float]) -> bool:
    """Return True if no attempt of a message was early, after its schedule was stored at one of these times.

    Without a schedule it waits in its consumer, which redelivers it early if it loses the nak. After a kill the stream
    redelivers a message whose ack was not sent, and its schedule is there as well.
    """
    if len({process for process, _, _ in one.calls}) > 1:
        return True
    for (_, at, failed), (_, then, _) in zip(one.calls, one.calls[1:], strict=False):
        was_scheduled = failed and any(at - CLOCK <= time <= then for time in stored)
        if was_scheduled and then < at + one.route.after - CLOCK:
            return False
    return True


def simulate(seed: int) -> Outcome[Story]:
    """Execute the history of a seed."""
    history = History(seed)
    outcome = run_history(seed, history.run, history.steps, f"delays {seed}")
    outcome.schedule.lines[:0] = map(str, history.plans)
    return outcome
