"""The kinds of steps: how each changes the world, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from router_trio.routing.stream.pulling.pull_loop import SILENCE
from router_trio.testing import FakeBroker
from tests.simulation.partitions.history import Spell
from tests.simulation.partitions.process import DURABLE, SINK, SOURCE, Process
from tests.simulation.schedule import Step

if TYPE_CHECKING:
    from tests.simulation.partitions.world import World

NOTICED_WITHIN = {"announce": 5.0, "look": 5.0, "pull": SILENCE + 10.0}
"""Seconds until what follows from a loss is over: a route whose pull request is lost waits for a sign of its consumer.
Later requests may be lost as well.
"""

PIN_LOST_FOR = 6.0
"""Seconds after the loss of a pin in which the process that had it may not know that, and another one has the next."""


def begin(world: World, step: Step) -> Callable[[], None]:
    """Begin a step. Return the function that ends it."""
    kind, what = step.kind, step.what
    if kind == "join":
        world.join()
        return _nothing
    if kind == "move":
        world.move(what["partition"], what["which"])
        return _nothing
    if kind == "forge":
        world.forge(step)
        return _nothing
    if kind in OF_PROCESS:
        process = world.pick(what["which"])
        return _nothing if process is None else OF_PROCESS[kind](world, process, step)
    if kind.endswith((" lost", " late")):
        name, _, how = kind.rpartition(" ")
        if how == "lost":
            world.broker.trouble.lose(name, what["times"])
        else:
            world.broker.trouble.delay(name, what["late"], what["times"])
        world.changed(kind, what.get("late", 0.0) + NOTICED_WITHIN.get(name, 0.0))
        return _nothing
    return OF_SERVER[kind](world, world.broker, step)


def _nothing() -> None:
    """End a step that leaves nothing to undo."""


# --- processes ---


def _leave(world: World, process: Process, step: Step) -> Callable[[], None]:
    world.leave(process)
    return _nothing


def _kill(world: World, process: Process, step: Step) -> Callable[[], None]:
    world.kill(process)
    return _nothing


def _off(world: World, process: Process, step: Step) -> Callable[[], None]:
    """Switch the machine off: the server does not notice the end of its links."""
    process.machine.half_open, process.machine.sends_on = True, False
    world.kill(process)
    return _nothing


def _suspend(world: World, process: Process, step: Step) -> Callable[[], None]:
    now = trio.current_time()
    if process.is_suspended:
        return _nothing
    process.suspend()
    world.changed(f"process {process.number} was suspended")
    world.history.spells.append(Spell(now, now + step.seconds, process.number, suspended=True))

    def end() -> None:
        process.resume()
        world.changed(f"process {process.number} went on")

    return end


def _network(act: Callable[[Process, dict[str, Any]], None], undo: Callable[[Process], None]) -> Callable[..., Any]:
    def begin(world: World, process: Process, step: Step) -> Callable[[], None]:
        now = trio.current_time()
        act(process, step.what)
        # One that hears nothing is still heard, and counts as a member until it gives up the link.
        noticed_within = 2 * world.schedule.liveness if step.kind == "deaf" else 0.0
        world.changed(f"{step.kind}: process {process.number}", noticed_within)
        world.history.spells.append(Spell(now, now + step.seconds + PIN_LOST_FOR, process.number))

        def end() -> None:
            undo(process)
            world.changed(f"the end of {step.kind}: process {process.number}")

        return end

    return begin


def _slow(process: Process, what: dict[str, Any]) -> None:
    dice = Random(what["dice"])
    process.machine.travel(lambda: what["latency"] + what["jitter"] * dice.random())


def _half_open(process: Process, what: dict[str, Any]) -> None:
    process.machine.half_open = True
    process.machine.cut()


def _as_usual(process: Process) -> None:
    process.machine.release()
    process.machine.travel(None)
    process.machine.half_open = False


OF_PROCESS: dict[str, Callable[[World, Process, Step], Callable[[], None]]] = {
    "leave": _leave,
    "kill": _kill,
    "machine off": _off,
    "suspend": _suspend,
    "cut": _network(lambda process, what: process.machine.cut(), lambda process: None),
    "mute": _network(lambda process, what: process.machine.hold(to_server=True), _as_usual),
    "deaf": _network(lambda process, what: process.machine.hold(from_server=True), _as_usual),
    "cut off": _network(lambda process, what: process.machine.hold(to_server=True, from_server=True), _as_usual),
    "half-open": _network(_half_open, _as_usual),
    "slow": _network(_slow, _as_usual),
}

# --- the server ---


def _elect(stream: Callable[[World], str], *, pins: bool) -> Callable[[World, FakeBroker, Step], Callable[[], None]]:
    def begin(world: World, broker: FakeBroker, step: Step) -> Callable[[], None]:
        with suppress(KeyError):
            broker.trouble.elect(stream(world), step.seconds)
        _lost_pins(world, step, pins=pins)
        return lambda: world.changed(f"the end of {step.kind}")

    return begin


def _elect_durable(world: World, broker: FakeBroker, step: Step) -> Callable[[], None]:
    with suppress(KeyError):
        broker.trouble.elect_durable(world.partitioned, f"{DURABLE}-{step.what['partition']}", step.seconds)
    _lost_pins(world, step, pins=True)
    return lambda: world.changed(f"the end of {step.kind}")


def _elect_bucket(world: World, broker: FakeBroker, step: Step) -> Callable[[], None]:
    with suppress(KeyError):
        broker.trouble.elect("KV_router-trio-members", step.seconds)
    world.changed(step.kind)
    return lambda: world.changed(f"the end of {step.kind}")


def _stall_copying(world: World, broker: FakeBroker, step: Step) -> Callable[[], None]:
    with suppress(KeyError):
        broker.trouble.stall_copying(world.partitioned, step.seconds)
    return _nothing


def _pause(world: World, broker: FakeBroker, step: Step) -> Callable[[], None]:
    def pause(seconds: float) -> None:
        for number in range(world.schedule.partitions):
            with suppress(KeyError):
                broker.trouble.pause_consumer(world.partitioned, f"{DURABLE}-{number}", seconds)

    pause(inf)
    world.changed(step.kind, step.seconds + NOTICED_WITHIN["pull"])
    world.paused_since = trio.current_time()
    if step.what["restart"]:
        world.restart_all()

    def end() -> None:
        pause(0.0)
        world.paused_since = inf
        world.changed("the end of a pause", NOTICED_WITHIN["pull"])

    return end


def _without_tail(stream: Callable[[World], str | None]) -> Callable[[World, FakeBroker, Step], Callable[[], None]]:
    def begin(world: World, broker: FakeBroker, step: Step) -> Callable[[], None]:
        name = stream(world)
        if name in broker._server.streams:
            world.forget(name, step.what["count"])
        return _nothing

    return begin


def _lost_pins(world: World, step: Step, *, pins: bool) -> None:
    now = trio.current_time()
    world.changed(step.kind)
    if pins:
        world.history.spells.append(Spell(now, now + step.seconds + PIN_LOST_FOR))


def _restart(world: World, broker: FakeBroker, step: Step) -> Callable[[], None]:
    """Kill the server, and start it again on the same store: no pin is left."""
    broker.down()
    for stream in {*broker._server.streams}:
        broker.trouble.elect(stream, 0.0)
    _lost_pins(world, step, pins=True)

    def end() -> None:
        broker.up()
        world.changed("the server is back")

    return end


OF_SERVER: dict[str, Callable[[World, FakeBroker, Step], Callable[[], None]]] = {
    "bucket without leader": _elect_bucket,
    "copying stalled": _stall_copying,
    "durable without leader": _elect_durable,
    "durables paused": _pause,
    "stream without leader": _elect(lambda world: world.partitioned, pins=True),
    "sink without leader": _elect(lambda world: SINK, pins=False),
    # Acks on their way to a stream that lost its tail ack new messages (`faults.NOT_YET`). A copy has durables apart.
    "source without tail": _without_tail(lambda world: None if world.schedule.own_token else SOURCE),
    "copy without tail": _without_tail(lambda world: None if world.schedule.own_token else world.partitioned),
    "sink without tail": _without_tail(lambda world: SINK),
    "restart": _restart,
}
