"""Watches the event loop from a thread: reports when it is blocked, and which handler blocks it.

A handler that does not return, or takes long, stops everything that runs in the loop: pages, fences, reloads, the
drain. So nothing in the loop can report it. The thread requests a sign of life from the loop, and waits for it. That
costs one thread switch per `LOOK_EVERY`, and nothing per message: which message the handler has is read from the stack
frames of the loop's thread, once it is known to be stuck.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Protocol

import trio

from router_trio.events import AsyncioLoopBlocked, LoopBlocked
from router_trio.message import Message
from router_trio.routing.core.handler_batch import HandlerBatch
from router_trio.routing.handlers.tracebacks import OURS, code_of, place_in
from router_trio.routing.pipeline import Routing

if TYPE_CHECKING:
    import asyncio

BLOCKED_AFTER = 2.0
"""Seconds without a turn of the loop after which it counts as blocked."""

LOOK_EVERY = 0.5
"""Seconds between two checks."""

AFTER_A_SUSPENSION = 0.1
"""Additional seconds to wait for a sign of life, in case the process had been suspended."""

REPORT_EVERY = 10.0
"""Seconds between two log lines if each call of a handler blocks the loop."""

MOST_FRAMES = 1000
"""Frames of the loop's thread that are inspected."""

_TRIO = str(Path(trio.__file__).parent)
_ASYNCIO = str(Path(sysconfig.get_path("stdlib")) / "asyncio")
_NOT_OF_A_HANDLER = (*OURS, _TRIO, _ASYNCIO)


class Answers(Protocol):
    """Answers HTTP probes in place of a blocked event loop."""

    def answer_while(self, blocked: Callable[[], str | None]) -> None:
        """Answer probes until `blocked`, which returns the problem, returns None."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """The code that blocks the loop: its place, and the route and its message if they are known."""

    place: str | None = None
    route: str | None = None
    message: Message | None = None


class Watchdog:
    """The watchdog of one event loop, for as long as `watching` or `watching_asyncio` is entered.

    `notify` is called in the thread, with the event of a blocked loop, which is of this `kind`. `routings` returns the
    routes.
    """

    def __init__(
        self,
        notify: Callable[[LoopBlocked | AsyncioLoopBlocked], object],
        routings: Callable[[], Iterable[Routing]],
        answers: Callable[[], Answers | None] = lambda: None,
        *,
        blocked_after: float = BLOCKED_AFTER,
        kind: type[LoopBlocked | AsyncioLoopBlocked] = LoopBlocked,
    ) -> None:
        self._kind = kind
        self._notify = notify
        self._routings = routings
        self._answers = answers
        self._blocked_after = blocked_after
        self._over = threading.Event()
        self._sign = threading.Event()
        self._asked_at = 0.0
        self._thread: int | None = None
        """The thread of the loop, once that is known."""
        self._clock: Callable[[], float] = trio.current_time
        self._loop_time = (0.0, 0.0)
        self._reported_at: float | None = None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch the current event loop while this context is entered."""
        token = trio.lowlevel.current_trio_token()
        self._alive()
        async with self._watching(partial(token.run_sync_soon, self._alive, idempotent=True)):
            yield

    @asynccontextmanager
    async def watching_asyncio(self, loop: asyncio.AbstractEventLoop) -> AsyncIterator[None]:
        """Watch an asyncio loop, which runs in another thread, while this context is entered."""
        ahead = trio.current_time() - time.monotonic()
        self._clock = lambda: ahead + time.monotonic()  # Trio's clock can be read only in its thread
        loop.call_soon_threadsafe(self._alive)  # before any handler, so that the thread is known
        async with self._watching(partial(loop.call_soon_threadsafe, self._alive)):
            yield

    @asynccontextmanager
    async def _watching(self, ask: Callable[[], object]) -> AsyncIterator[None]:
        thread = threading.Thread(target=self._run, args=(ask,), name="router_trio watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._sign.set()
            # The thread waits only for these events, or for a probe that it is answering.
            thread.join(1.0)

    def _alive(self) -> None:
        self._thread = threading.get_ident()
        self._loop_time = time.monotonic(), self._clock()
        self._sign.set()

    def _run(self, ask: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # that the loop has ended
            while not self._over.wait(LOOK_EVERY):
                self._sign.clear()
                self._asked_at = time.monotonic()
                ask()
                # Twice, so that a process that was suspended is not taken for a blocked one.
                if not self._sign.wait(self._blocked_after) and not self._sign.wait(AFTER_A_SUSPENSION):
                    if self._thread is not None:
                        self._blocked(self._thread)
                    self._sign.wait()

    def _blocked(self, loop: int) -> None:
        """Report that the loop is blocked, and answer for it until it turns again."""
        now = time.monotonic()
        blocker = find_blocker(loop, self._routings)
        if self._reported_at is None or now - self._reported_at >= REPORT_EVERY:
            self._reported_at = now
            self._notify(self._event(blocker, now))
        answers = self._answers()
        if answers is not None:
            answers.answer_while(partial(self._problem, blocker))

    def _event(self, blocker: Blocker, now: float) -> LoopBlocked | AsyncioLoopBlocked:
        turned_at, loop_time = self._loop_time
        message = blocker.message
        return self._kind(
            at=loop_time + now - turned_at,
            blocked_seconds=round(now - self._asked_at, 1),
            route=blocker.route,
            subject=None if message is None else message.subject,
            stream=None if message is None else message.stream,
            sequence=None if message is None else message.sequence,
            place=blocker.place,
        )

    def _problem(self, blocker: Blocker) -> str | None:
        if self._sign.is_set():
            return None
        text = f"the event loop has been blocked for {time.monotonic() - self._asked_at:.0f} s"
        if blocker.route is not None:
            text += f" by the handler of route {blocker.route}"
        return text if blocker.place is None else f"{text}, at {blocker.place}"


def find_blocker(thread: int, routings: Callable[[], Iterable[Routing]]) -> Blocker:
    """Return what a thread is executing, as far as its frames show. Never raises."""
    try:
        frames = [*_frames(sys._current_frames().get(thread))]
        frames.reverse()
        return _blocker(frames, routings)
    except Exception:  # the thread continues to run while its frames are read
        return Blocker()


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    count = 0
    while frame is not None and count < MOST_FRAMES:
        yield frame
        frame, count = frame.f_back, count + 1


def _blocker(frames: list[FrameType], routings: Callable[[], Iterable[Routing]]) -> Blocker:
    """Return what blocks the loop, from the frames of its thread, the outermost first."""
    loop = max((number for number, one in enumerate(frames) if _is_loop(one.f_code)), default=-1)
    inside = frames[loop + 1 :]
    start = next(
        (n for n, one in enumerate(inside) if not one.f_code.co_filename.startswith((*_NOT_OF_A_HANDLER, "<"))), None
    )
    if start is None:
        return Blocker(place_in([(one.f_code, one.f_lineno) for one in inside[-1:]], 0))
    place = place_in([(one.f_code, one.f_lineno) for one in inside], start)
    route = message = None
    for one in (*inside[start : start + 1], *reversed(inside[:start])):
        for value in [*one.f_locals.values()]:
            if message is None:
                message = _message_in(value)
            if route is None and one is not inside[start]:
                route = _route_in(value)
    if route is None:
        code = inside[start].f_code
        named = [one.state.name for one in routings() if code_of(one.plan.handler) is code]
        route = named[0] if len(named) == 1 else None
    return Blocker(place, route, message)


def _is_loop(code: CodeType) -> bool:
    if code.co_name == "unrolled_run":
        return code.co_filename.startswith(_TRIO)
    return code.co_name == "run" and code.co_filename.endswith("asyncio_thread.py")


def _message_in(value: Any) -> Message | None:
    if type(value) is Message:
        return value
    if type(value) is tuple and len(value) == 2 and type(value[1]) is Message:
        return value[1]  # a `Pair`
    return None


def _route_in(value: Any) -> str | None:
    if isinstance(value, Routing):
        return value.state.name
    if isinstance(value, HandlerBatch):
        return value.routing.state.name
    return None
