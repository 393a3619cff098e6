"""Reloads of workers: how keys that need a restart are reported, and in which order a worker reloads."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from router_trio.events import Event, RestartNeeded
from router_trio.router.workers.channel import Channel
from router_trio.router.workers.messages import Reload, Reloaded, Suspect, ToSupervisor, ToWorker
from router_trio.router.workers.supervisor import Supervisor
from router_trio.router.workers.worker import Worker
from router_trio.settings import Settings
from tests.unit.router.workers.counted import block


def settings(*, workers: int = 2, **telemetry: Any) -> Settings:
    return Settings(
        router={"workers": workers},
        connections={"main": {"servers": ["nats://127.0.0.1:4222"]}},
        routes=[{"name": "r", "from": {"subject": "in", "queue": "q"}, "to": [{"subject": "out"}]}],
        telemetry=telemetry,
    )


async def test_each_reload_names_the_keys_that_still_need_a_restart() -> None:
    events: list[Event] = []
    supervisor = Supervisor(settings(), emit=events.append, recent=None, lock=0, uniform=lambda low, high: low)

    async def named_by_reload_to(new: Settings) -> list[tuple[str, ...]]:
        events.clear()
        await supervisor.reload_all(lambda: new)
        return [event.keys for event in events if isinstance(event, RestartNeeded)]

    for _ in range(2):
        assert await named_by_reload_to(settings(workers=3, listen="127.0.0.1:1")) == [
            ("router.workers", "telemetry.listen")
        ]
    assert await named_by_reload_to(settings(listen="127.0.0.1:1")) == [("telemetry.listen",)]
    assert await named_by_reload_to(settings()) == []


async def test_a_worker_does_one_reload_at_a_time_and_only_the_last_of_those_waiting() -> None:
    made: list[str] = []
    under_way, go_on = trio.Event(), trio.Event()

    async def reload(new: Settings) -> None:
        under_way.set()
        await go_on.wait()
        made.append(new.telemetry.log_level)

    live = SimpleNamespace(reload=reload)
    run = cast(Any, SimpleNamespace(live=live, telemetry=SimpleNamespace(recent=None)))
    async with channels() as (ours, theirs), trio.open_nursery() as nursery:
        with block() as (counts, _):
            worker = Worker(1, theirs, counts, lambda line: None)
            worker._opened.set()
            nursery.start_soon(worker._listen, run, nursery)
            nursery.start_soon(worker._reload_when_asked, run)
            ours.post(Reload(1, settings(log_level="debug")))
            await under_way.wait()
            ours.post(Reload(2, settings(log_level="warning")))
            ours.post(Reload(3, settings(log_level="error")))
            ours.post(Suspect({}))
            await trio.testing.wait_all_tasks_blocked(0.01)
            go_on.set()
            assert [await ours.next_message() for _ in range(2)] == [Reloaded(1, ()), Reloaded(3, ())]
            assert made == ["debug", "error"]
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[Channel[ToWorker, ToSupervisor], Channel[ToSupervisor, ToWorker]]]:
    """Yield both ends of a channel; each sends what is posted to it."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    supervisor: Channel[ToWorker, ToSupervisor] = Channel(ours)
    worker: Channel[ToSupervisor, ToWorker] = Channel(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.write)
        nursery.start_soon(worker.write)
        yield supervisor, worker
        nursery.cancel_scope.cancel()
