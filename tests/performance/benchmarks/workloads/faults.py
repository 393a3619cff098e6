"""Messages lost, duplicated or out of order when a server or the contestant itself is killed under load.

Each copies from one server to another. Only the other one is killed, or the contestant: a message missing in the end
was lost by the contestant, or was received and not stored by the killed server.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.performance.benchmarks import numbered
from tests.performance.benchmarks.contestants import BRIDGED, CONTESTANTS, CORE, STREAM, Contestant, route_of
from tests.performance.benchmarks.environment import compile_package
from tests.performance.benchmarks.load import ROUTED_WITHIN
from tests.performance.benchmarks.load_stream import create_destination, create_source
from tests.performance.benchmarks.measure import Figures, MeasurementError, Restartable, Turn, in_turns, restartable
from tests.performance.benchmarks.reported_losses import reported_losses
from tests.performance.benchmarks.section import Column, Section
from tests.performance.benchmarks.setting import SERVER_CONFIG, Setting
from tests.performance.benchmarks.wire import Wire
from tests.support.servers import NatsServer, nats_server

TAKING_PART = ("router_trio", "nats_py", "nats_go", "watermill", "mq_bridge")
TAKING_PART_QUICK = ("router_trio", "nats_py", "nats_go")
RATE = 5_000
SLOW = {"watermill": 4}
"""Contestants that copy a stream so slowly that they get only a share of the messages, one in this many."""
AWAY = 0.3
"""Seconds between the end of a killed server and its next start."""
ACK_WAIT = 5
"""Seconds until the source delivers again what a killed contestant had in hand."""
QUIET = 2.5
"""Seconds without a new message after which no more is expected of a contestant that is connected."""
SETTLED_WITHIN = 45.0
"""Seconds for the source to have every ack: a contestant's own consumer may wait 30 for a missing one."""
CALM = 0.5
"""Least seconds between the first message that arrives again and the next kill."""
STALLED = 20.0
"""Seconds without a message after which the next kill does not wait for one."""
LOOK_EVERY = 0.05

OTHER, ITSELF = "server", "itself"
COLUMNS = tuple(
    Column(f"{part}_{key}", f"{part} killed: {title}" if key == "lost" else title, total=True)
    for part in (OTHER, ITSELF)
    for key, title in (
        ("lost", "lost"),
        ("doubled", "doubled"),
        ("out_of_order", "out of order"),
        ("said", "said lost"),
    )
)


@dataclass(frozen=True)
class Size:
    """The number of messages, and how often something is killed meanwhile."""

    core: int
    stream: int
    kills: int

    def messages(self, kind: str, contestant: str = "") -> int:
        """Return the number of messages for a kind of job."""
        return self.core if kind == CORE else self.stream // SLOW.get(contestant, 1)


WHOLE = Size(core=60_000, stream=120_000, kills=4)
SMALL = Size(core=25_000, stream=20_000, kills=2)


async def faults(setting: Setting) -> list[Section]:
    """Measure core to core, and stream to stream."""
    size = SMALL if setting.quick else WHOLE
    compile_package()
    sections = []
    for kind, title in ((CORE, "Killed under load, core to core"), (STREAM, "Killed under load, stream to stream")):
        turns: dict[str, Turn] = {
            name: partial(fault_turn, setting, CONTESTANTS[name], kind, size)
            for name in (TAKING_PART_QUICK if setting.quick else TAKING_PART)
            if CONTESTANTS[name].is_there
        }
        results = await in_turns(1, turns, say=setting.say)
        sections.append(Section(f"faults-{kind}", title, _text(kind, size), COLUMNS, results, against=()))
    return sections


def _text(kind: str, size: Size) -> str:
    text = (
        f"{size.messages(kind):,} messages of {numbered.SIZE} B from one nats-server to another. The other one is "
        f"killed (SIGKILL) {size.kills} times and started again after {AWAY:g} s; in a second run the contestant is, "
        "and is started again at once. Out of order: stored behind a later one of the same source subject. Said lost: "
        "messages of which the contestant said so, in its ledger or on stderr; some of them may be sent again later. "
    )
    if kind == STREAM:
        return text + (
            f"As fast as each can. What is not acked is delivered again after {ACK_WAIT} s, by the consumers that "
            f"`watermill` and `mq_bridge` make for themselves after 30 s. `watermill` copies a quarter of the messages."
        )
    return text + (
        f"{RATE:,} messages a second, each a core publish into a stream of the other server, which keeps them. What a "
        "server has received and not stored dies with it: no client can know. What is published while the contestant "
        f"is away is lost with every one. `router_trio` has `max_pending_operations = {BRIDGED}`, which is what the "
        "buffer of nats.go holds: with its default of 1,000 it drops what is more, and says so."
    )


async def fault_turn(setting: Setting, contestant: Contestant, kind: str, size: Size) -> Figures:
    """Do both runs of a contestant, at the same time. Raises `MeasurementError`."""
    figures: Figures = {}

    async def run(part: str) -> None:
        for key, value in (await _run(setting, contestant, kind, part, size)).items():
            figures[f"{part}_{key}"] = value

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, OTHER)
            nursery.start_soon(run, ITSELF)
    except* MeasurementError as group:
        raise MeasurementError(f"{group.exceptions[0]}") from group
    return figures


async def _run(setting: Setting, contestant: Contestant, kind: str, part: str, size: Size) -> Figures:
    directory = Path(tempfile.mkdtemp(prefix=f"{contestant.name}-{part}-", dir=setting.directory))
    log = directory / "contestant.log"
    count = size.messages(kind, contestant.name)
    async with (
        nats_server(directory, config=SERVER_CONFIG, name="source") as source,
        nats_server(directory, config=SERVER_CONFIG, name="other") as other,
    ):
        await trio.to_thread.run_sync(_prepare, source.url, other.url, kind, count)
        routes = route_of(kind, "other") + (f'from.ack_wait = "{ACK_WAIT}s"\n' if kind == STREAM else "")
        job = setting.job(kind, url=source.url, to=other.url, directory=directory, routes=routes)
        async with restartable(contestant.command(job), log) as process:

            async def kill() -> None:
                await (_restart_server(other) if part == OTHER else process.restart())

            if kind == CORE:
                await _until_routed(source, other, process)
                await _feed_and_kill(source, other, count, size.kills, kill)
            else:
                await _kill_while_copying(other, count, size.kills, kill)
            await _settled(source, other, kind)
            told = await trio.to_thread.run_sync(reported_losses, contestant.name, log, process.ended_with)
        found = numbered.verdict(count, await trio.to_thread.run_sync(numbered.arrived, other.url))
    return {"lost": found.lost, "doubled": found.doubled, "out_of_order": found.out_of_order, "said": told}


def _prepare(source: str, other: str, kind: str, count: int) -> None:
    with closing(Wire(other)) as wire:
        create_destination(wire)
    if kind == STREAM:
        with closing(Wire(source)) as wire:
            create_source(wire, ack_wait=ACK_WAIT * 1_000_000_000)
        numbered.publish_all(source, count)


async def _restart_server(server: NatsServer) -> None:
    await server.kill()
    await trio.sleep(AWAY)
    await server.restart()


async def _until_routed(source: NatsServer, other: NatsServer, process: Restartable) -> None:
    """Publish messages without a number until one has arrived."""
    with closing(Wire(source.url)) as wire, trio.move_on_after(ROUTED_WITHIN):
        while not await _stored(other):
            wire.socket.sendall(numbered.PROBE)
            await trio.sleep(LOOK_EVERY)
        return
    raise MeasurementError(f"nothing was routed within {ROUTED_WITHIN:g} s; {process.last_words()}")


async def _feed_and_kill(
    source: NatsServer, other: NatsServer, count: int, kills: int, kill: Callable[[], Awaitable[None]]
) -> None:
    """Kill at equal intervals while messages are published, but only once they have arrived again for a while."""
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(numbered.feed, source.url, count, RATE)
        for number in range(kills):
            if number:
                await _more_than(await _stored(other), other)
                await trio.sleep(CALM)
            await trio.sleep_until(start + (number + 1) * count / RATE / (kills + 1))
            await kill()


async def _kill_while_copying(other: NatsServer, count: int, kills: int, kill: Callable[[], Awaitable[None]]) -> None:
    """Kill whenever another part of the messages has been copied; stop if no more are copied."""
    for number in range(1, kills + 1):
        if not await _more_than(number * count // (kills + 1), other):
            return
        await kill()


async def _more_than(count: int, server: NatsServer) -> bool:
    """Wait until more messages are stored; return False if they are not for a long time."""
    with trio.move_on_after(STALLED):
        while await _stored(server) <= count:
            await trio.sleep(LOOK_EVERY)
        return True
    return False


async def _settled(source: NatsServer, other: NatsServer, kind: str) -> None:
    """Wait until the end: every message is acked, or for a while no more have been stored."""
    with trio.move_on_after(SETTLED_WITHIN):
        if kind == STREAM:
            while await _unacked(source):
                await trio.sleep(LOOK_EVERY)
        else:
            before, since = -1, trio.current_time()
            while trio.current_time() < since + QUIET:
                now = await _stored(other)
                # A contestant that is not reconnected may still have messages to send.
                if now != before or not (await other.varz())["connections"]:
                    before, since = now, trio.current_time()
                await trio.sleep(LOOK_EVERY)


async def _stored(server: NatsServer) -> int:
    """Return how many messages the only stream of a server has; 0 while it can't be queried."""
    try:
        (stream,) = await _streams(server)
    except (OSError, trio.BrokenResourceError, ValueError):
        return 0
    count: int = stream["state"]["messages"]
    return count


async def _unacked(server: NatsServer) -> int:
    """Return how many messages are not delivered or not acked, of the consumer that has the fewest of them."""
    (stream,) = await _streams(server)
    consumers = stream.get("consumer_detail", ())
    fewest: int = min(one["num_pending"] + one["num_ack_pending"] for one in consumers)
    return fewest


async def _streams(server: NatsServer) -> list[dict[str, Any]]:
    accounts = (await server.monitor("/jsz?consumers=1")).get("account_details", ())
    return [stream for account in accounts for stream in account.get("stream_detail", ())]
