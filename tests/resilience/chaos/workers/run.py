"""The run of one seed against a router with workers, from the start of the server to the verdict."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import trio

from tests.resilience.chaos import load
from tests.resilience.chaos.evidence import ranges, state_of_server
from tests.resilience.chaos.faults import POISONED, Fault
from tests.resilience.chaos.load import numbers
from tests.resilience.chaos.run import (
    LEFT_WITHIN,
    LOOKS_EVERY,
    WHOLE_RUN_WITHIN,
    Hang,
    all_acked,
    end_if_it_waits,
    numbers_in,
    open_descriptors,
    trouble,
)
from tests.resilience.chaos.scene import Surroundings, opened, router_sections, servers_for
from tests.resilience.chaos.schedule import Kind, Schedule, Step, Variant, draw
from tests.resilience.chaos.variants import SINK, SOURCE
from tests.resilience.chaos.verdict import Outcome, stored_twice
from tests.resilience.chaos.workers.process import KeptProcess, write_configuration
from tests.support.proxy import TcpProxy
from tests.support.raw_jetstream import JetStream, JetStreamError, StoredMessage
from tests.support.servers import NatsServer

OF_WORKERS: tuple[Variant, ...] = ("plain", "max-deliver", "sparse", "content", "keys", "websocket")
"""Variants whose promises hold for workers. Streams in memory and two routers are judged by what links saw."""

EACH_POISONS = 4 * POISONED
"""Messages of one fault `poison`."""


class WorkersScene(Surroundings):
    """All that a fault may touch, around a router with workers."""

    def __init__(
        self,
        schedule: Schedule,
        folder: Path,
        workers: int,
        server: NatsServer,
        proxies: Sequence[TcpProxy],
        listeners: str,
    ) -> None:
        super().__init__(schedule, server, proxies, listeners)
        sections = router_sections(schedule, proxies)
        sections["router"]["workers"] = workers
        sections["telemetry"] = {"listen": "127.0.0.1:0", "log_format": "json"}
        (route,) = sections["routes"]
        if schedule.kind == "core":
            route["from"]["queue"] = "routers"
        elif schedule.variant != "keys":
            route["handler"] = "work:work"
        write_configuration(folder, sections)
        self.workers = workers
        self.router = KeptProcess(folder, proxies)
        self.routers: list[KeptProcess] = [self.router]


async def run_seed(seed: int, kind: Kind, messages: int, variant: Variant, workers: int) -> Outcome:
    """Run the schedule of a seed. Raises `Hang` with the evidence as a note."""
    schedule = draw(seed, kind, messages, variant)
    descriptors = open_descriptors()
    with (
        tempfile.TemporaryDirectory(prefix="router-trio-chaos-") as directory,
        trio.fail_after(WHOLE_RUN_WITHIN + LEFT_WITHIN),
    ):
        folder = Path(directory)
        async with AsyncExitStack() as stack:
            server, proxies, listeners = await servers_for(schedule, folder, stack)
            on = WorkersScene(schedule, folder, workers, server, proxies, listeners)
            await stack.enter_async_context(opened(on))
            source, broken = await _until_settled(on)
            sink = on.sink_before + await on.stored(SINK)
            state = await state_of_server(on)
    if open_descriptors() > descriptors:
        broken.append(f"{open_descriptors() - descriptors} descriptors left behind")
    outcome = _judged(on, source, sink, broken)
    if not outcome.broken:
        return outcome
    held = {SOURCE: source, SINK: sink}
    contents = (f"{name} holds {ranges(numbers_in(messages))}" for name, messages in held.items())
    return replace(outcome, evidence="\n".join([*_story(on), state, *contents]))


async def _until_settled(on: WorkersScene) -> tuple[list[StoredMessage], list[str]]:
    source: list[StoredMessage] = []
    broken: list[str] = []

    async def kill_worker(scene: Surroundings, step: Step) -> None:
        await on.router.kill_worker(step.place)

    # Nothing in this process can deliver a batch to a worker twice.
    instead: dict[str, Fault] = {"delivered_twice": kill_worker}
    with trio.move_on_after(WHOLE_RUN_WITHIN) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_note_stored, on)
            await trouble(on, instead)
            nursery.start_soon(end_if_it_waits, on.spy, scope)
            if on.schedule.kind == "stream":
                source = await on.stored(SOURCE)
                broken += await all_acked(on)
            await on.router.all_settled()
            await on.close_routers()
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        hang = Hang("nothing was stored for too long, or not all in time")
        for line in (*_story(on), await state_of_server(on)):
            hang.add_note(line)
        raise hang
    return source, broken


async def _note_stored(on: WorkersScene) -> None:
    """Record as stored, until cancelled, as many messages as the sinks hold: no link of a worker can be looked into."""
    while True:
        await trio.sleep(LOOKS_EVERY)
        try:
            with trio.fail_after(load.ATTEMPT_WITHIN):
                async with load.client(on.server.url) as client:
                    held = (await JetStream(client).stream_info(SINK))["state"]["messages"]
        except (*load.TROUBLE, JetStreamError):
            continue
        on.spy.stored.extend(range(len(on.spy.stored), held + len(on.sink_before)))


def _story(on: WorkersScene) -> list[str]:
    """Return what happened as lines in order, and the logs of all processes."""
    return [*on.spy.journal.lines(), *on.router.logs, on.router.output]


def _judged(
    on: WorkersScene, source: Sequence[StoredMessage], sink: Sequence[StoredMessage], broken: list[str]
) -> Outcome:
    broken += on.router.broken
    reported = on.router.reported
    arrived = [found for message in sink for found in numbers(message.payload)]
    lost = 0
    if on.schedule.kind == "stream":
        accepted = [found for message in source for found in numbers(message.payload)]
        if len(accepted) < on.schedule.messages:
            broken.append(f"the source holds {len(accepted)} of {on.schedule.messages} messages: no fair test")
        if missing := set(accepted) - set(arrived):
            broken.append(f"lost: {sorted(missing)[:20]}")
        if twice := stored_twice(on, sink):
            broken.append(f"stored twice in one stream: {twice[:20]}")
        lost = len(missing)
    else:
        # A server that dies may have taken messages that it has not stored. Poison has no number.
        poisoned = EACH_POISONS * on.schedule.faults.count("poison")
        lost = max(0, reported["received"] - len(set(arrived)) - poisoned)
        if not on.deaths and lost > reported["lost"] + reported["in hand"]:
            broken.append(f"received {dict(reported)}, and {len(set(arrived))} arrived")
    return Outcome(
        schedule=on.schedule,
        outage_seconds=0.0,
        resent=0,
        suppressed=0,
        failed=reported,
        lost=lost,
        died=0,
        reordered=0,
        broken=tuple(broken),
        workers=on.workers,
    )
