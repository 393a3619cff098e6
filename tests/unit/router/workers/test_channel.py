"""The channel between supervisor and worker: complete messages in order, and an end that both notice."""

from __future__ import annotations

import socket
from typing import Any

import trio
import trio.testing

from router_trio.router.workers.channel import Channel


def pair() -> tuple[Channel[Any, Any], Channel[Any, Any], trio.SocketStream]:
    one, other = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    return Channel(one), Channel(other), one


async def test_messages_arrive_complete_and_in_order() -> None:
    ours, theirs, _ = pair()
    messages = [("report", number, {"x": "y" * number * 50_000}) for number in range(5)]
    for message in messages:
        ours.post(message)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.write)
        assert [await theirs.next_message() for _ in messages] == messages
        await ours.written()
        nursery.cancel_scope.cancel()


async def test_when_one_end_closes_the_other_notices_and_waits_for_nothing() -> None:
    _, theirs, stream = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.write)
        await stream.aclose()
        assert await theirs.next_message() is None
        with trio.fail_after(5):
            for _ in range(3):
                theirs.post(("ended", 0))
                await theirs.written()
        nursery.cancel_scope.cancel()


async def test_waiting_until_all_is_written_includes_messages_posted_meanwhile() -> None:
    ours, theirs, _ = pair()
    ours.post(("report", b"x" * 1_000_000))  # more than the sockets hold
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.write)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(ours.written)
            await trio.testing.wait_all_tasks_blocked()
            ours.post(("ended", 0))
            with trio.fail_after(5):
                assert [(await theirs.next_message() or ("",))[0] for _ in range(2)] == ["report", "ended"]
            waiting.cancel_scope.deadline = trio.current_time() + 5
        assert not waiting.cancel_scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_an_incomplete_message_is_discarded() -> None:
    _, theirs, stream = pair()
    await stream.send_all(b"\x40")
    await stream.aclose()
    assert await theirs.next_message() is None
