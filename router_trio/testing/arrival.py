"""Wait until a stream of a fake broker has stored a number of messages, and fail with the cause if it does not."""

from __future__ import annotations

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
            await trio.lowlevel.checkpoint()
            return messages
        now = clock.now()
        if routers.progress != progress:
            quiet_since, progress = now, routers.progress
        why = None
        if not clock.is_simulated and now - quiet_since >= QUIET_FOR:
            why = routers.hopeless(trio.current_time())
        if why is None and now >= clock.deadline:
            why = f"none more within {clock.allowed}"
        if why is not None:
            raise AssertionError("\n".join(_described(server, routers, name, count, why, clock)))
        change = trio.Event()
        server.when_stored[change.set] = None
        try:
            await clock.sleep(min(pause, clock.deadline - now), change)
        finally:
            del server.when_stored[change.set]
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
    """The clock of a test, which may be real, simulated, or simulated and stopped.

    A stopped clock does not advance by itself: real seconds count then.
    """

    def __init__(self, within: float | None) -> None:
        """`within` in seconds of this clock; None for the default."""
        clock = trio.lowlevel.current_clock()
        self._stopped = isinstance(clock, MockClock) and clock.rate == 0 and clock.autojump_threshold == inf
        self.is_simulated: bool = isinstance(clock, MockClock) and not self._stopped
        self.longest_pause: float = 1.0 if self.is_simulated else 0.05
        if within is None:
            within = WITHIN_SIMULATED if self.is_simulated else WITHIN
        self.deadline: float = self.now() + within
        kind = "of the simulated clock" if self.is_simulated else "(the simulated clock of the test is stopped)"
        self.allowed: str = f"{within:g} s {kind if isinstance(clock, MockClock) else 'of the real clock'}"

    def now(self) -> float:
        return time.monotonic() if self._stopped else trio.current_time()

    async def sleep(self, seconds: float, change: trio.Event) -> None:
        """Wait until there is a change, for at most this number of seconds."""
        if self._stopped:
            await trio.to_thread.run_sync(time.sleep, max(0.0, seconds))
            return
        with trio.move_on_after(seconds):
            await change.wait()
