"""Wait until a stream of a fake broker has stored a number of messages, and fail with the cause if it does not."""

from __future__ import annotations

import asyncio
import time
from math import inf

import trio
from trio.testing import MockClock

from router_trio.testing.routers import Routers
from router_trio.testing.server import Server
from router_trio.testing.streams import StoredMessage

WITHIN = 10.0
"""Seconds to wait on a real clock, unless the test names others."""

WITHIN_SIMULATED = 600.0
"""Seconds to wait on a simulated clock, where they take no time: longer than retries and reconnects need."""

QUIET_FOR = 0.5
"""Seconds of a real clock without progress after which the routers are asked whether they have anything left to do."""


async def stored(server: Server, routers: Routers, name: str, count: int, within: float | None) -> list[StoredMessage]:
    """Return the messages of a stream when there are `count`, as `FakeBroker.stored` does."""
    __tracebackhide__ = True
    clock = _Clock(within)
    quiet_since, progress = clock.now(), routers.progress
    pause = 0.005
    while True:
        stream = server.streams.get(name)
        messages = [] if stream is None else stream.messages()
        if len(messages) >= count:
            routers.expected()
            await clock.checkpoint()
            return messages
        now = clock.now()
        if routers.progress != progress:
            quiet_since, progress = now, routers.progress
        why = None
        if not clock.is_simulated and now - quiet_since >= QUIET_FOR:
            why = routers.hopeless()
        if why is None and now >= clock.deadline:
            why = f"none more within {clock.allowed}"
        if why is not None:
            routers.are_reported = True
            raise AssertionError("\n".join(_described(server, routers, name, count, why, clock)))
        await clock.sleep(min(pause, clock.deadline - now), server)
        pause = min(pause * 1.2, clock.longest_pause)


def _described(server: Server, routers: Routers, name: str, count: int, why: str, clock: _Clock) -> list[str]:
    stream = server.streams.get(name)
    if stream is None:
        others = ", ".join(server.streams) or "none"
        first = f"there is no stream {name} (there are: {others}), so it has not stored {count}"
    else:
        stored = stream.messages()
        first = f"stream {name} has {len(stored)} of {count} messages"
    lines = [f"{first}: {why}", *routers.report()]
    if clock.is_simulated and routers.in_handlers:
        lines.append(
            f"{routers.in_handlers} calls of handlers have not returned. The clock of this test is simulated, and "
            "jumps while a handler waits for a thread, a socket or an asyncio loop: test such a handler on a real "
            "clock, without `autojump_clock`"
        )
    return lines


class _Clock:
    """The clock of a test: real, simulated, or simulated and stopped.

    A stopped clock does not advance by itself: real seconds count then. So they do in a task of asyncio, in a program
    that has Trio as a guest.
    """

    def __init__(self, within: float | None) -> None:
        """`within` in seconds of this clock; None for the default."""
        self._on_trio = trio.lowlevel.in_trio_task()
        clock = trio.lowlevel.current_clock() if self._on_trio else None
        is_mock = isinstance(clock, MockClock)
        self._stopped = isinstance(clock, MockClock) and clock.rate == 0 and clock.autojump_threshold == inf
        self.is_simulated: bool = is_mock and not self._stopped
        self.longest_pause: float = 1.0 if self.is_simulated else 0.05
        if within is None:
            within = WITHIN_SIMULATED if self.is_simulated else WITHIN
        self.deadline: float = self.now() + within
        kind = "of the simulated clock" if self.is_simulated else "(the simulated clock of the test is stopped)"
        self.allowed: str = f"{within:g} s {kind if is_mock else 'of the real clock'}"

    def now(self) -> float:
        return trio.current_time() if self.is_simulated else time.monotonic()

    async def checkpoint(self) -> None:
        if self._on_trio:
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)

    async def sleep(self, seconds: float, server: Server) -> None:
        """Wait until a stream has stored a message, for at most this number of seconds."""
        seconds = max(0.0, seconds)
        if not self._on_trio:
            await asyncio.sleep(seconds)
        elif self._stopped:
            await trio.to_thread.run_sync(time.sleep, seconds)
        else:
            stored = trio.Event()
            server.when_stored[stored.set] = None
            try:
                with trio.move_on_after(seconds):
                    await stored.wait()
            finally:
                del server.when_stored[stored.set]
