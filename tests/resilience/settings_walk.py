"""A walk over settings of one route: from each to each by a reload, on a real server and under load.

    python -m tests.resilience.settings_walk --seed 1 --reloads 200

Numbered messages are published all the time. In the end each is stored once at each destination that its route sent it
to, and in order within its subject; once more if it was read from a copy of the stream as well, whose messages have
other ids. The router decides which reloads it refuses: a refused one is not part of the walk.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import trio

from router_trio import Live, Router, Settings
from router_trio.errors import ConfigurationError
from router_trio.events import Event
from tests.resilience import walk_handlers
from tests.resilience.walk_handlers import Calls, fails, number_of
from tests.simulation import sums
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect
from tests.support.servers import NatsServer, nats_server

RATE = 150
"""Messages per second into each stream."""
TICK = 0.02
SUBJECTS = 6
STREAMS = {"IN": "in", "TWO": "two"}
"""The streams that the route may read, with the first token of their subjects."""
SETTLED_WITHIN = 30.0
"""Seconds without progress after which a message that is not stored counts as lost."""
SHOWN = 10
"""Findings that are written out; the others are counted."""
LOOK_EVERY = 0.05
STANDSTILL = 8.0
"""Seconds without a settled message that no settings of a loaded route explain."""
DWELL = (0.0, 0.0, 0.05, 0.2, 0.4)
"""Seconds that settings stay in force; with 0 the next reload waits for this one."""

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

State = Mapping[str, Any]
"""Keys of the route that differ from the usual ones; those of `from` differ from the usual ones of `from`."""


def _work(name: str) -> str:
    return f"{walk_handlers.__name__}:{name}"


def _to(place: str, **more: Any) -> dict[str, Any]:
    return {"subject": f"out.{place}.{{{{wildcard(1)}}}}", "jetstream": True} | more


def _both(strategy: str = "all", first: str = "a", **more: Any) -> State:
    return {"to": [_to(first, **more), _to("b" if first == "a" else "a")], "strategy": strategy}


def _scheduled(stream: str, prefix: str) -> State:
    return {"retry": {"initial": "50ms", "schedule": {"stream": stream, "prefix": prefix, "after": "10ms"}}}


OF_TWO_SUBJECTS = 'tokens[1] < "s3" ? "low" : "high"'

SETTINGS: dict[str, State] = {
    "usual": {},
    "no handler": {"handler": None},
    "other handler": {"handler": _work("second")},
    "slow handler": {"handler": _work("slow")},
    "key": {"key": "subject"},
    "key of two subjects": {"key": OF_TWO_SUBJECTS},
    "key, no handler": {"key": "subject", "handler": None},
    "8 at once": {"concurrency": 8},
    "key, 3 at once": {"key": "subject", "concurrency": 3, "handler": _work("slow")},
    "scheduled": _scheduled("RETRY", "retry"),
    "scheduled, other prefix": _scheduled("RETRY", "again"),
    "scheduled, other stream": _scheduled("RETRY2", "retry2"),
    "scheduled, key": {**_scheduled("RETRY", "retry"), "key": "subject"},
    "two destinations": _both(),
    "two destinations, other order": _both(first="b"),
    "first match": _both("first_match", when="true"),
    "weighted": _both("weighted"),
    "sticky": {**_both("sticky"), "key": "subject"},
    "fallback": _both("fallback"),
    "breaker": {"to": [_to("a", breaker={"failures": 3, "pause": "200ms"})]},
    "limit": {"limit": {"rate": "400/s", "burst": 5}},
    "limit of each subject": {"limit": {"rate": "60/s", "burst": 2, "per": "subject"}},
    "schema": {"schema": "SCHEMA"},
    "dead letters": {"retry": {"attempts": 9}, "dead_letter": {"subject": "dead.{{wildcard(1)}}"}},
    "few in flight": {"from": {"max_in_flight": 3}},
    "long ack wait": {"from": {"ack_wait": "20s"}},
    "other filter": {"from": {"filter": "*.*"}, "to": [_to("a", subject="out.a.{{wildcard(2)}}")]},
}
"""Settings under which the route reads the same durable."""

SOURCES: dict[str, State] = {
    "other durable": {"from": {"durable": "other"}},
    "other stream": {"from": {"stream": "TWO", "filter": "two.*"}},
    "standby": {"from": {"durable": "leads", "standby": True}},
    "standby, same durable": {"from": {"standby": True}},
    "standby, scheduled": {"from": {"standby": True, "durable": "leads"}, **_scheduled("RETRY", "retry")},
    "4 partitions": {"from": {"durable": "four", "partitions": 4}},
    "8 partitions": {"from": {"durable": "eight", "partitions": 8}, "concurrency": 8},
    "8 partitions, same durable as 4": {"from": {"durable": "four", "partitions": 8}},
    "partitions, same durable": {"from": {"partitions": 4}},
    "partitions, scheduled": {"from": {"durable": "four", "partitions": 4}, **_scheduled("RETRY", "retry")},
}
"""Settings under which it reads other streams or durables."""

OF_A_SUBJECT: dict[str, State] = {
    name: state for name, state in SETTINGS.items() if "from" not in state and "schedule" not in state.get("retry", {})
}
"""Settings under which a route may read the subject itself."""

STATES = SETTINGS | SOURCES
STRICT = ("8 at once", *(name for name, state in SETTINGS.items() if "key" in state and "retry" not in state))
"""Settings under which messages of a subject wait for a failed one."""


@dataclass
class Report:
    """The findings of a walk."""

    reloads: int = 0
    refused: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    published: int = 0
    looks: int = 0
    calls: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    more_wrong: int = 0
    """Findings beyond the first `SHOWN`."""

    def __str__(self) -> str:
        lines = [
            f"{self.reloads} reloads, {sum(self.refused.values())} refused, {self.published} messages, "
            f"{self.calls} calls, {self.looks} looks, {self.seconds:.0f} s",
            *(f"refused {count} times: {why}" for why, count in self.refused.items()),
            *(f"WRONG: {one}" for one in self.wrong),
            *([f"and {self.more_wrong} more"] if self.more_wrong else []),
        ]
        return "\n".join(lines)


class Pairs:
    """The ordered pairs of settings between which no reload was tried."""

    def __init__(self, names: Sequence[str], random: Random) -> None:
        self._left = {
            name: random.sample([other for other in names if other != name], len(names) - 1) for name in names
        }
        self._passable: dict[str, list[str]] = {name: [] for name in names}

    def __bool__(self) -> bool:
        return any(self._left.values())

    def next(self, here: str) -> str | None:
        """Return where to go from these settings; None if no other pair can be reached from here."""
        if self._left[here]:
            return self._left[here].pop()
        # The nearest settings with a pair that is left, by reloads that were accepted before.
        came: dict[str, str] = {here: here}
        queue = deque([here])
        while queue:
            name = queue.popleft()
            if self._left[name]:
                while came[name] != here:
                    name = came[name]
                return name
            for other in self._passable[name]:
                if other not in came:
                    came[other] = name
                    queue.append(other)
        return None

    def accepted(self, here: str, there: str) -> None:
        """Record that this reload is accepted."""
        self._passable[here].append(there)


class Walk:
    """A router whose only route is reloaded, while messages are published."""

    def __init__(
        self,
        server: NatsServer,
        folder: Path,
        names: Sequence[str],
        seed: int,
        *,
        messages_fail: bool,
        of_a_subject: bool,
        traced: bool,
    ) -> None:
        """`of_a_subject`: the route reads the subject that the stream stores, with settings `OF_A_SUBJECT`."""
        self.report = Report()
        self._server = server
        self._folder = folder
        self._names = names
        read = dict.fromkeys(STATES[name].get("from", {}).get("stream", "IN") for name in names)
        self._tokens = [STREAMS[stream] for stream in read]
        self._random = Random(f"settings {seed}")
        some_scheduled = any("schedule" in STATES[name].get("retry", {}) for name in names)
        self._calls = walk_handlers.begin(messages_fail=messages_fail, some_scheduled=some_scheduled)
        self._fails = messages_fail
        self._of_a_subject = of_a_subject
        self._published: dict[int, str] = {}
        """The subject of each message."""
        self._made_by: list[str] = []
        """The name of the settings of each reload, whose number each copy has in a header."""
        self._received = 0
        self._settled = -1, 0.0
        self._is_loaded = True
        self._traced = traced
        self._under_way = 0
        self._events: list[Event] = []
        (folder / "schema.json").write_text(json.dumps(SCHEMA))

    @property
    def calls(self) -> Calls:
        """The calls of the handlers."""
        return self._calls

    def settings(self, name: str) -> Settings:
        """Return the settings of this name. Raises `ConfigurationError` if no router can have them."""
        state = dict(STATES[name])
        by = len(self._made_by)
        self._made_by.append(name)
        source: dict[str, Any] = {"subject": "in.*"}
        if not self._of_a_subject:
            source = {"stream": "IN", "durable": "router", "filter": "in.*", "max_in_flight": 50, "ack_wait": "5s"}
        route: dict[str, Any] = {
            "name": "walk",
            "to": [_to("a")],
            "handler": _work("first"),
            "retry": {"initial": "50ms"},
        }
        route |= {key: value for key, value in state.items() if key not in ("from", "retry")}
        route["retry"] |= state.get("retry", {})
        route["from"] = source | state.get("from", {})
        route["to"] = [{**one, "headers": {"set": {"X-By": f'"{by}"'}}} for one in route["to"]]
        if "schema" in route:
            route["schema"] = str(self._folder / "schema.json")
        if route["handler"] is None:
            del route["handler"]
        return Settings(
            router={"shutdown_timeout": "5s"},
            telemetry={"listen": ""},
            connections={"main": {"servers": [self._server.url]}},
            routes=[route],
        )

    async def run(self, reloads: int | None = None) -> Report:
        """Walk over that many reloads, or over all pairs, and judge."""
        began = trio.current_time()
        async with connect(self._server.url) as client:
            streams = JetStream(client)
            for name, token in STREAMS.items():
                await streams.create_stream(name, [f"{token}.*"])
            window = {"duplicate_window": 7_200_000_000_000}
            await streams.create_stream("OUT", ["out.>"], **window)
            await streams.create_stream("DEAD", ["dead.>"], **window)
            for name, taken in (("RETRY", ["retry.>", "again.>"]), ("RETRY2", ["retry2.>"])):
                await streams.create_stream(name, taken, allow_msg_schedules=True, allow_rollup_hdrs=True)
            self._calls.settings = [STATES["usual"]]
            router = Router(self.settings("usual"), log=False, observers=[self._events.append])
            async with router.open() as live, trio.open_nursery() as nursery:
                nursery.start_soon(self._look_regularly, live)
                loading = trio.CancelScope()
                over = trio.Event()
                nursery.start_soon(self._publish, streams, loading, over)
                await self._reload(live, reloads)
                self._is_loaded = False
                loading.cancel()
                await over.wait()
                for token in self._tokens:
                    name = "usual" if token == "in" else "other stream"
                    await self._go(live, name, self.settings(name))
                    await self._until_routed(streams, live, token)
                nursery.cancel_scope.cancel()
            await self._judge(streams, live)
        self.report.seconds = trio.current_time() - began
        self.report.published, self.report.calls = len(self._published), self._calls.count
        self.report.wrong += self._calls.wrong[:5]
        return self.report

    async def _reload(self, live: Live, reloads: int | None) -> None:
        pairs, here = Pairs(self._names, self._random), "usual"
        async with trio.open_nursery() as nursery:
            while self._is_loaded and (reloads is None or self.report.reloads < reloads):
                there = pairs.next(here)
                if there is None:
                    break
                try:
                    settings = self.settings(there)
                    dwell = self._random.choice(DWELL)
                    if dwell or self._under_way:
                        await self._go(live, there, settings)
                        await trio.sleep(dwell)
                    else:
                        await nursery.start(self._go_on, live, there, settings)
                except ConfigurationError as error:
                    self.report.refused[f"{error.problems[0].path} {error.problems[0].message}"] += 1
                    continue
                pairs.accepted(here, there)
                self.report.reloads += 1
                self._trace(live, there)
                here = there

    async def _go(self, live: Live, name: str, settings: Settings) -> None:
        """Reload, and wait until that is done."""
        self._under_way += 1
        self._calls.settings = [*self._calls.settings, STATES[name]]
        try:
            await live.reload(settings)
        except ConfigurationError:
            self._calls.settings = self._calls.settings[:-1]
            raise
        finally:
            self._under_way -= 1
        if not self._under_way:
            self._calls.settings = [STATES[name]]

    async def _go_on(
        self, live: Live, name: str, settings: Settings, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Reload. Is started once the reload is not refused."""
        refused = dict(live.config.reloads)["refused"]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._go, live, name, settings)
                await trio.sleep(0.005)
                if dict(live.config.reloads)["refused"] == refused:
                    task_status.started()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    def _trace(self, live: Live, name: str) -> None:
        if self._traced:
            settled = sum(sum(route.settled.values()) for route in live.routes)
            numbers = f"{len(self._published)} published, {settled} settled"
            print(f"{self.report.reloads}: {name}: {numbers}, {self._states(live)}")

    async def _publish(self, streams: JetStream, scope: trio.CancelScope, over: trio.Event) -> None:
        """Publish until cancelled; what is being published then is published."""
        due, number = trio.current_time(), 0
        each = int(RATE * TICK)
        with scope:
            while True:
                due = max(due + TICK, trio.current_time() - 5 * TICK)
                await trio.sleep_until(due)
                messages = []
                for token in self._tokens:
                    for _ in range(each):
                        number += 1
                        subject = f"{token}.{token[0] if token == 'two' else 's'}{number % SUBJECTS}"
                        self._published[number] = subject
                        messages.append((subject, json.dumps({"n": number}).encode(), None))
                with trio.CancelScope(shield=True):
                    await streams.publish_many(messages)
        over.set()

    # --- what must hold ---

    async def _look_regularly(self, live: Live) -> None:
        while True:
            self._look(live)
            await trio.sleep(LOOK_EVERY)

    def _look(self, live: Live) -> None:
        self.report.looks += 1
        for found in (*sums.ledgers(live), *sums.route_ledgers(live)):
            self._wrong(found)
        received = sum(route.received_in_all for route in live.routes)
        if received < self._received:
            self._wrong(f"received {self._received}, and later {received}")
        self._received = received
        settled, now = sum(sum(route.settled.values()) for route in live.routes), trio.current_time()
        if settled != self._settled[0] or not self._is_loaded:
            self._settled = settled, now
        elif now - self._settled[1] > STANDSTILL:
            self._is_loaded = False
            self._wrong(f"nothing was settled for {STANDSTILL:g} s: {self._states(live)}; {self._made_by[-60:]}")

    def _states(self, live: Live) -> list[tuple[Any, ...]]:
        return [(route.name, route.state, route.reason, route.in_hand) for route in live.routes]

    def _wrong(self, text: str) -> None:
        if len(self.report.wrong) < SHOWN:
            self.report.wrong.append(f"after {self.report.reloads} reloads: {text}")
        else:
            self.report.more_wrong += 1

    async def _until_routed(self, streams: JetStream, live: Live, token: str) -> None:
        """Wait until each message of a stream is stored by the route, and nothing is in hand."""
        wanted = {number for number, subject in self._published.items() if subject.startswith(token)}
        missing, moved = set(wanted), trio.current_time()
        while missing or any(route.in_hand for route in live.routes):
            if trio.current_time() - moved > SETTLED_WITHIN:
                break
            await trio.sleep(0.2)
            stored = [*await streams.stream_messages("OUT"), *await streams.stream_messages("DEAD")]
            before, missing = len(missing), wanted - {number_of(message.payload) for message in stored}
            if len(missing) < before:
                moved = trio.current_time()
        else:
            return
        if missing:
            failed = sorted(missing & self._calls.failed)
            self._wrong(
                f"{len(missing)} lost: {sorted(missing)[:20]}, of which had failed {len(failed)}: {failed[:20]}"
            )
            self._wrong(f"the routes at the end: {self._states(live)}")

    async def _judge(self, streams: JetStream, live: Live) -> None:
        copies: defaultdict[int, dict[str, int]] = defaultdict(dict)
        lines: defaultdict[tuple[str, str, bool], list[int]] = defaultdict(list)
        counts: Counter[tuple[str, bool, int]] = Counter()
        for message in await streams.stream_messages("OUT"):
            _, place, last = message.subject.split(".")
            number = number_of(message.payload)
            again = not self._of_a_subject and _was_read_from_a_copy(message)
            counts[place, again, number] += 1
            lines[place, last, again].append(number)
            copies[number][place] = int(message.header("X-By") or 0)
        for (place, _, number), count in counts.items():
            if count > 1:
                last = self._named(copies[number][place])
                self._wrong(f"message {number} is stored {count} times at {place}, last under {last}")
        for found in (*self._misplaced(copies), *self._disorder(lines, copies)):
            self._wrong(found)
        for found in (*sums.ledgers(live), *sums.route_ledgers(live)):
            self._wrong(f"after the end: {found}")

    def _misplaced(self, copies: Mapping[int, Mapping[str, int]]) -> Iterator[str]:
        """Yield messages whose copies are not at the destinations of any settings that made one of them."""
        for number, made in copies.items():
            if not any(set(made) in _places(STATES[self._made_by[by]]) for by in made.values()):
                yield f"message {number} is at {sorted(made)}, made under {[self._named(by) for by in made.values()]}"

    def _disorder(
        self, lines: Mapping[tuple[str, str, bool], Sequence[int]], copies: Mapping[int, Mapping[str, int]]
    ) -> Iterator[str]:
        """Yield messages that are stored behind a later one of their subject. Nothing waits for one that has failed,
        unless all settings have a key.
        """
        strict = not self._fails or set(self._names) <= set(STRICT)
        for (place, subject, _), numbers in lines.items():
            last = 0
            for number in numbers:
                if number < last and (strict or not fails(number)):
                    made = [self._named(copies[one][place]) for one in (number, last)]
                    yield f"message {number} of {subject} is stored behind {last} at {place}, made under {made}"
                last = max(last, number)

    def _named(self, by: int) -> str:
        """Return the settings before, of and after a reload."""
        return f"{by}: " + " -> ".join(self._made_by[max(0, by - 1) : by + 2])


def _was_read_from_a_copy(message: StoredMessage) -> bool:
    """Return True if a message was read from a server's copy of the stream, which a route with partitions begins with.

    Its id is made of the content, since the server does not copy the time; so it may be stored once more.
    """
    _, _, known_by, _ = (message.header("Nats-Msg-Id") or "").split(":")
    return known_by.startswith("c")


def _places(state: State) -> list[set[str]]:
    """Return the sets of destinations to which settings may send a message."""
    places = [one["subject"].split(".")[1] for one in state.get("to", [_to("a")])]
    match state.get("strategy", "all"):
        case "all":
            return [set(places)]
        case "first_match" | "fallback":
            return [{places[0]}]
        case _:
            return [{place} for place in places]


async def walk(
    folder: Path,
    names: Sequence[str] = tuple(STATES),
    seed: int = 0,
    reloads: int | None = None,
    *,
    fails: bool = True,
    of_a_subject: bool = False,
    traced: bool = False,
) -> Report:
    """Walk on a server of its own. `fails`: the handlers fail for some messages, once."""
    async with nats_server(folder) as server:
        walked = Walk(server, folder, names, seed, messages_fail=fails, of_a_subject=of_a_subject, traced=traced)
        return await walked.run(reloads)


def main() -> int:
    """Run the command and return its exit code: 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience.settings_walk", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reloads", type=int, help="by default all pairs")
    parser.add_argument("--only", nargs="+", default=list(STATES), choices=list(STATES), help="names of settings")
    parser.add_argument("--settings", action="store_true", help="only those of one durable")
    parser.add_argument("--subject", action="store_true", help="a route from the subject itself")
    parser.add_argument("--no-failures", action="store_true", help="no handler fails")
    parser.add_argument("--trace", action="store_true", help="print each reload")
    given = parser.parse_args()
    names = tuple(SETTINGS) if given.settings else tuple(given.only)
    if given.subject:
        names = tuple(name for name in names if name in OF_A_SUBJECT)
    with tempfile.TemporaryDirectory(prefix="router-trio-walk-") as folder:
        report = trio.run(
            lambda: walk(
                Path(folder),
                names,
                given.seed,
                given.reloads,
                fails=not given.no_failures,
                of_a_subject=given.subject,
                traced=given.trace,
            )
        )
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
