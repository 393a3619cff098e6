"""The run of one seed, from the start of the server to the verdict."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import trio

from tests.resilience.chaos import load
from tests.resilience.chaos.evidence import ranges, router_tasks, state_of_server, story, waits
from tests.resilience.chaos.faults import Fault, run_track
from tests.resilience.chaos.load import numbers
from tests.resilience.chaos.scene import Scene, Surroundings, scene
from tests.resilience.chaos.schedule import Kind, Variant, draw
from tests.resilience.chaos.spy import Spy
from tests.resilience.chaos.variants import DURABLE, SINK, SOURCE, noise
from tests.resilience.chaos.verdict import Outcome, judge
from tests.support.raw_jetstream import JetStream, JetStreamError, StoredMessage

WAITS_FOR_AT_MOST = 30.0
"""Seconds in all, from the end of the last fault to the last ack, in which nothing is stored that was not before.

Time in which messages are stored is not counted. How long all of them take depends on the machine: on a busy one a
route by key, with some round trips for each message, took a minute for what is done in ten seconds on an idle one.
"""

LOOKS_EVERY = 1.0
"""Seconds between two looks whether anything was stored."""

WHOLE_RUN_WITHIN = 240.0

LEFT_WITHIN = 30.0
"""Seconds to leave the server, the proxies and a router that hangs."""

POLL = 0.05


class Hang(AssertionError):
    """A router that did not finish its work, with the evidence as a note."""


async def run_seed(seed: int, kind: Kind, messages: int, variant: Variant = "plain") -> Outcome:
    """Run the schedule of a seed. Raises `Hang`, or what a check of a router raises, with the evidence as a note."""
    schedule = draw(seed, kind, messages, variant)
    descriptors, tasks = open_descriptors(), len(router_tasks())
    on: Scene | None = None
    try:
        with (
            tempfile.TemporaryDirectory(prefix="router-trio-chaos-") as directory,
            trio.fail_after(WHOLE_RUN_WITHIN + LEFT_WITHIN),
        ):
            async with scene(schedule, Path(directory)) as on:
                source, leaks = await _until_settled(on)
                if len(left := router_tasks()) != tasks:
                    leaks.append(f"tasks left behind: {[task.name for task in left]}")
                sink = on.sink_before + await on.stored(SINK)
                server = await state_of_server(on)
    except Hang:
        raise
    except Exception as error:
        if on is not None:
            error.add_note(story(on))
        raise
    if open_descriptors() > descriptors:
        leaks.append(f"{open_descriptors() - descriptors} descriptors left behind")
    outcome = judge(on, source, sink, leaks)
    if not outcome.broken:
        return outcome
    held = {SOURCE: source, SINK: sink}
    contents = (f"{name} holds {ranges(numbers_in(messages))}" for name, messages in held.items())
    return replace(outcome, evidence=story(on, server, *contents))


def numbers_in(stored: Iterable[StoredMessage]) -> Iterator[int]:
    """Yield the numbers of stored messages."""
    return (found for message in stored for found in numbers(message.payload))


async def _until_settled(on: Scene) -> tuple[list[StoredMessage], list[str]]:
    """Run the faults, and the routers until their work is done. Return the contents of the source, and what is wrong.

    Raises `Hang`.
    """
    source: list[StoredMessage] = []
    leaks: list[str] = []
    with trio.move_on_after(WHOLE_RUN_WITHIN) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(on.spy.journal.note_lateness)
            await trouble(on)
            nursery.start_soon(end_if_it_waits, on.spy, scope)
            if on.schedule.kind == "stream":
                source = await on.stored(SOURCE)
                leaks += await all_acked(on, on.orphans)
            await on.close_routers()
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        hang = Hang(f"nothing was stored for {WAITS_FOR_AT_MOST:g} s, or not all within {WHOLE_RUN_WITHIN:g} s")
        hang.add_note(story(on, await state_of_server(on), *waits()))
        raise hang
    return source, leaks


async def end_if_it_waits(spy: Spy, scope: trio.CancelScope) -> None:
    """Cancel the run when the routers have stored nothing new for `WAITS_FOR_AT_MOST` seconds in all."""
    waited, stored, looked_at = 0.0, -1, trio.current_time()
    while waited < WAITS_FOR_AT_MOST:
        await trio.sleep(LOOKS_EVERY)
        before, stored = stored, len(set(spy.stored))
        now = trio.current_time()
        waited += now - looked_at if stored == before else 0.0
        looked_at = now
    scope.cancel()


async def trouble(on: Surroundings, instead: Mapping[str, Fault] | None = None) -> None:
    """Run the load and both tracks of faults (see `run_track`), until all of them are over."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_load, on)
        nursery.start_soon(run_track, on, on.schedule.network, instead)
        nursery.start_soon(run_track, on, on.schedule.server, instead)


async def _load(on: Surroundings) -> None:
    url, schedule = on.server.url, on.schedule
    if schedule.kind == "stream":
        on.taken = await load.fill_stream(url, schedule.messages, schedule.seconds, noise(schedule.variant))
    else:
        await load.publish_core(url, schedule.messages, schedule.seconds)


async def all_acked(on: Surroundings, orphans: Callable[[], int] = lambda: 0) -> list[str]:
    """Wait until the durable has delivered everything and has an ack for all of it. Return what is wrong with it.

    Messages in hand of a stream that no longer exists have no durable that waits for an ack: these `orphans` are waited
    for too.
    """
    async with load.client(on.server.url) as client:
        stream = JetStream(client)
        while True:
            try:
                info = await stream.consumer_info(SOURCE, DURABLE)
                if info["num_pending"] == info["num_ack_pending"] == orphans() == 0:
                    limit = info["config"]["max_deliver"]
                    return [] if limit == -1 else [f"the durable gives messages up after {limit} deliveries"]
            except JetStreamError as error:
                if error.code != 404:
                    raise
            await trio.sleep(POLL)


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
