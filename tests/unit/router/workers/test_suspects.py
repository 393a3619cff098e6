"""Messages that end the processes that handle them: recorded, named, tried alone, and finally not handled any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from router_trio.errors import Reject
from router_trio.message import Message
from router_trio.router.workers.counts.block import (
    LONGEST_SUBJECT,
    InHandler,
    Place,
    read_block,
    take_in_handlers,
)
from router_trio.router.workers.counts.numbers import Counts
from router_trio.router.workers.in_handler import ALONE_WITHIN, HandlerEndedProcesses, InHandlers
from router_trio.router.workers.suspects import DEATHS, MOST_SUSPECTS, Suspects
from router_trio.settings import RouteSettings, Settings
from tests.unit.router.workers.counted import block


def route(**more: Any) -> RouteSettings:
    one = {"name": "r", "from": {"stream": "S", "durable": "d"}, "to": [{"subject": "out"}], **more}
    return Settings(connections={"main": {"servers": ["nats://127.0.0.1:4222"]}}, routes=[one]).routes[0]


def message(sequence: int | None, subject: str = "s") -> Message:
    return Message(subject, sequence=sequence)


def noted(descriptor: int) -> list[InHandler]:
    return take_in_handlers(read_block(descriptor))


@pytest.mark.parametrize("subject", ["s", "a.b.c", "ü" * 300, "x" * 1000])
def test_a_message_is_in_the_block_as_long_as_a_handler_has_it(subject: str) -> None:
    with block() as (one, descriptor):
        first, second = Place(one, "r", 1), Place(one, "with:colon", 2)
        first.enter(7, subject)
        second.enter(-1, "core")
        (found, core) = noted(descriptor)
        assert (found.route, found.sequence, core) == ("r", 7, InHandler("with:colon", "core", None))
        assert subject.startswith(found.subject.rstrip("\ufffd"))
        assert len(found.subject.encode()) <= LONGEST_SUBJECT + 2
        first.leave()
        assert noted(descriptor) == [core]


def test_a_new_message_with_the_sequence_of_one_that_ended_processes_is_handled() -> None:
    with block() as (one, descriptor):
        handlers = InHandlers(one, lambda _: None)
        seen: list[InHandler] = []

        def handle(given: Message) -> Message:
            seen.extend(noted(descriptor))
            return given

        called = handlers.around(route(), handle)
        called(Message("s", sequence=1, timestamp=1764338400.123456))
        handlers.suspect({seen[0]: DEATHS})
        with pytest.raises(HandlerEndedProcesses):
            called(Message("s", sequence=1, timestamp=1764338400.123456))
        called(Message("s", sequence=1, timestamp=1764338400.123457))
        assert [one.time for one in seen] == [1764338400.123456, 1764338400.123457]


def test_messages_in_handlers_are_not_counts() -> None:
    with block() as (one, descriptor):
        Place(one, "r", 1).enter(7, "s")
        counts: Counts = read_block(descriptor)
        take_in_handlers(counts)
        assert counts == {}


async def test_the_block_is_empty_after_every_kind_of_answer() -> None:
    async def slow(one: Message) -> Message:
        await trio.lowlevel.checkpoint()
        assert noted(descriptor) == [InHandler("r", "s", 3)]
        return one

    def generates(one: Message) -> Any:
        assert noted(descriptor) == [InHandler("r", "s", 3)]
        yield one

    def fails(one: Message) -> None:
        raise ValueError

    with block() as (one, descriptor):
        handlers = InHandlers(one, lambda _: None)
        for handler in (lambda given: given, lambda given: None, lambda given: [given], slow, generates, fails):
            called = handlers.around(route(), handler)
            try:
                answer = called(message(3))
                if hasattr(answer, "__await__"):
                    await answer
            except ValueError:
                assert handler is fails
            assert noted(descriptor) == []


async def test_a_suspect_is_handled_alone_and_other_messages_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    active: list[int] = []
    together: list[tuple[int, ...]] = []

    async def handle(one: Message) -> Message:
        active.append(one.sequence or 0)
        together.append(tuple(active))
        await trio.sleep(1)
        active.remove(one.sequence or 0)
        return one

    survived: list[InHandler] = []
    with block() as (one, _):
        handlers = InHandlers(one, survived.append)
        called = handlers.around(route(), handle)
        handlers.suspect({InHandler("r", "s", 2): 0, InHandler("r", "s", 3): 1})

        async def call(sequence: int) -> None:
            await called(message(sequence))

        async with trio.open_nursery() as nursery:
            for sequence in range(1, 6):
                nursery.start_soon(call, sequence)
                await trio.testing.wait_all_tasks_blocked()
    alone = [one for one in together if set(one) & {2, 3}]
    assert sorted(alone) == [(2,), (3,)]
    assert sorted(set().union(*together)) == [1, 2, 3, 4, 5]
    assert sorted(survived) == [InHandler("r", "s", 2), InHandler("r", "s", 3)]


async def test_a_suspect_does_not_wait_for_ever_for_calls_that_never_return(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def handle(one: Message) -> Message:
        if one.sequence == 1:
            await trio.sleep_forever()
        return one

    with block() as (one, _):
        handlers = InHandlers(one, lambda _: None)
        called = handlers.around(route(), handle)
        handlers.suspect({InHandler("r", "s", 2): 0})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_awaiting, called, 1)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            await called(message(2))
            assert trio.current_time() - began <= ALONE_WITHIN
            nursery.cancel_scope.cancel()


async def _awaiting(called: Callable[[Message], Any], sequence: int) -> None:
    await called(message(sequence))


@pytest.mark.parametrize(
    ("more", "deaths", "error"),
    [
        ({}, DEATHS, HandlerEndedProcesses),
        ({"retry": {"attempts": 2}}, 2, Reject),
        ({"dead_letter": {"subject": "dead"}}, DEATHS, Reject),
    ],
)
async def test_a_message_that_has_ended_too_many_processes_is_not_handled(
    more: dict[str, Any], deaths: int, error: type[Exception]
) -> None:
    with block() as (one, _):
        handlers = InHandlers(one, lambda _: None)
        called = handlers.around(route(**more), lambda given: given)
        handlers.suspect({InHandler("r", "s", 2): deaths - 1})
        await called(message(2))
        handlers.suspect({InHandler("r", "s", 2): deaths})
        with pytest.raises(error, match=f"{deaths} processes have ended"):
            called(message(2))
        assert called(message(2, "another")) is not None


def test_of_several_messages_in_handlers_none_is_counted_and_each_is_suspected() -> None:
    suspects, several = Suspects(), [InHandler("r", "s", number) for number in (1, 2)]
    assert suspects.died(several) == [(one, 0) for one in several]
    assert suspects.died(several[:1]) == [(several[0], 1)]
    assert suspects.table == {several[1]: 0, several[0]: 1}
    suspects.survived(several[0])
    assert suspects.table == {several[1]: 0}
    assert suspects.died([InHandler("r", "s", None)]) == [(InHandler("r", "s", None), 1)]
    assert suspects.table == {several[1]: 0}
    suspects.died([InHandler("r", "s", number) for number in range(10, 10 + MOST_SUSPECTS)])
    assert len(suspects.table) == MOST_SUSPECTS
    assert several[1] not in suspects.table


def test_recorded_messages_can_be_read_after_the_block_has_grown() -> None:
    with block() as (one, descriptor):
        places = [Place(one, "r" * 200, number) for number in range(4000)]
        for number, place in enumerate(places):
            place.enter(number + 1, f"s.{number}")
        assert len(noted(descriptor)) == 4000
