"""The run of one seed, from the start of the server to the verdict."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import trio

from tests.resilience.chaos import load
from tests.resilience.chaos.faults import run_track
from tests.resilience.chaos.scene import Scene, scene
from tests.resilience.chaos.schedule import Kind, Variant, draw
from tests.resilience.chaos.variants import DURABLE, SINK, SOURCE, dies_with_its_server, noise
from tests.resilience.chaos.verdict import Outcome, judge
from tests.support.raw_jetstream import JetStream, JetStreamError

SETTLED_WITHIN = 30.0
"""Seconds from the end of the last fault to the last ack."""

WHOLE_RUN_WITHIN = 90.0

POLL = 0.05


class Hang(AssertionError):
    """A router that did not finish its work, with its own report of its state."""


async def run_seed(seed: int, kind: Kind, messages: int, variant: Variant = "plain") -> Outcome:
    """Run the schedule of a seed. Raises `Hang`, or `trio.TooSlowError` if a fault or the load hangs."""
    schedule = draw(seed, kind, messages, variant)
    descriptors, tasks = _descriptors(), _router_tasks()
    leaks = []
    with tempfile.TemporaryDirectory(prefix="router-trio-chaos-") as directory, trio.fail_after(WHOLE_RUN_WITHIN):
        async with scene(schedule, Path(directory)) as on:
            await _trouble(on)
            source = await on.stored(SOURCE) if kind == "stream" else []
            try:
                with trio.fail_after(SETTLED_WITHIN):
                    if kind == "stream":
                        leaks += await _all_acked(on)
                    await on.close_routers()
            except trio.TooSlowError:
                raise Hang(f"not settled {SETTLED_WITHIN:g} s after the last fault: {on.reports()}") from None
            if _router_tasks() != tasks:
                leaks.append(f"tasks left behind: {_router_tasks()}")
            sink = on.sink_before + await on.stored(SINK)
    if _descriptors() > descriptors:
        leaks.append(f"{_descriptors() - descriptors} descriptors left behind")
    return judge(on, source, sink, leaks)


async def _trouble(on: Scene) -> None:
    """Run the load and both tracks of faults, until all of them are over."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_load, on)
        nursery.start_soon(run_track, on, on.schedule.network)
        nursery.start_soon(run_track, on, on.schedule.server)


async def _load(on: Scene) -> None:
    url, schedule = on.server.url, on.schedule
    if schedule.kind == "stream":
        on.taken = await load.fill_stream(url, schedule.messages, schedule.seconds, noise(schedule.variant))
    else:
        await load.publish_core(url, schedule.messages, schedule.seconds)


async def _all_acked(on: Scene) -> list[str]:
    """Wait until the durable has delivered everything and has an ack for all of it. Return what is wrong with it.

    Messages in hand of a stream that no longer exists have no durable that waits for an ack: they are waited for too.
    """
    async with load.client(on.server.url) as client:
        stream = JetStream(client)
        while True:
            try:
                info = await stream.consumer_info(SOURCE, DURABLE)
                orphans = on.in_hand if dies_with_its_server(on.schedule.variant) else 0
                if info["num_pending"] == info["num_ack_pending"] == orphans == 0:
                    limit = info["config"]["max_deliver"]
                    return [] if limit == -1 else [f"the durable gives messages up after {limit} deliveries"]
            except JetStreamError as error:
                if error.code != 404:
                    raise
            await trio.sleep(POLL)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _router_tasks() -> list[str]:
    """Return the tasks of routers."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found, tasks = [], [root]
    while tasks:
        task = tasks.pop()
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if task.name.startswith("router_trio."):
            found.append(task.name)
    return sorted(found)
