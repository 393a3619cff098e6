"""The end of a router while its connections are in any state: nothing is left behind, and the books add up."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from router_trio import Fate, Live, Receipt, Router
from tests.support.settings import core_route, settings
from tests.support.watch import assert_accounted
from tests.unit.connection.network import A, B, Network, opened, patient


async def test_open_can_be_cancelled_at_any_step_and_leaves_nothing_behind(
    network: Network, autojump_clock: MockClock
) -> None:
    """Cancel after the first step of the scheduler, after the second, and so on, until `open` ends by itself."""
    steps = 0
    entered = 0
    while True:
        steps += 1
        assert steps < 1000, "it never finishes"
        lives: list[Live] = []
        with trio.CancelScope() as scope, cancelling_after(steps, scope):
            await open_and_publish(Network(), lives)
        entered += bool(lives)
        for live in lives:
            assert_accounted(live)
            entry = live.ledger()["main"]
            assert entry["pending"] == entry["in_flight"] == 0
            assert live.unsettled >= entry["settled"]["dropped"]
        assert tasks_of_the_router() == []
        if not scope.cancelled_caught:
            break
    assert steps > 60
    assert entered > 30


async def open_and_publish(network: Network, lives: list[Live]) -> None:
    config = settings([A, B], routes=[core_route("in.*", "out.{{wildcard(1)}}")])
    async with Router(config, connect=lambda name, one: network.connect).open() as live:
        lives.append(live)
        for number in range(5):
            await live.publish("in.1", b"%d" % number)
        network.broker.cut()
        await trio.sleep(0.01)
        for number in range(5):
            await live.publish("in.1", b"%d" % number)
        network.broker.lame_duck()
        await trio.sleep(0.01)


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope after `steps` steps of tasks."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


class cancelling_after:
    """Run the body under `CancelAfter`."""

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._instrument = CancelAfter(steps, scope)

    def __enter__(self) -> None:
        trio.lowlevel.add_instrument(self._instrument)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self._instrument)


def tasks_of_the_router() -> list[str]:
    """Return the names of tasks of this package that are still running."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found = []
    tasks = [root]
    while tasks:
        task = tasks.pop()
        tasks.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
        if task.name.startswith("router_trio."):
            found.append(task.name)
    return found


@pytest.mark.parametrize("first", ["cancel", "cut"])
async def test_a_link_lost_while_the_router_is_cancelled_is_no_error(
    network: Network, first: str, autojump_clock: MockClock
) -> None:
    with trio.CancelScope() as scope:
        async with opened(network, patient()):
            for what in (scope.cancel, network.broker.cut) if first == "cancel" else (network.broker.cut, scope.cancel):
                what()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_an_error_of_the_body_is_raised_unwrapped(network: Network, autojump_clock: MockClock) -> None:
    error = KeyError("of the body")
    with pytest.raises(KeyError) as caught:
        async with Router(patient(), connect=lambda name, one: network.connect).open():
            raise error
    assert caught.value is error


async def test_accepted_publishes_are_settled_when_the_router_is_left(
    network: Network, autojump_clock: MockClock
) -> None:
    async with opened(network, patient()) as (_, live):
        receipts = [await live.publish("out", b"x") for _ in range(1000)]
    assert {one.fate for one in receipts} == {Fate("fenced")}
    assert live.unsettled == 0


async def test_accepted_publishes_are_settled_when_the_router_is_cancelled(
    network: Network, autojump_clock: MockClock
) -> None:
    receipts: list[Receipt] = []
    with trio.CancelScope() as scope:
        async with opened(network, patient()) as (_, live):
            for _ in range(100):
                receipts.append(await live.publish("out", b"x"))
            scope.cancel()
            await trio.sleep_forever()
    assert {one.fate for one in receipts} == {Fate("fenced")}
    assert trio.current_time() < 0.1
