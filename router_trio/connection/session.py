"""Serves one link from its dial to its loss. A session is used for one link only.

All tasks that need the link run in its nursery: the sender, the confirmer, the liveness fence, and one for each source
that reads from it. When the link is lost, all of them have ended before `run` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextvars import copy_context
from sys import intern
from typing import Any, Protocol

import trio

from router_trio.connection.answers import Answers
from router_trio.connection.latch import Latch
from router_trio.errors import LinkError, reasons
from router_trio.link import Connect, Link, LinkListener, Refusal
from router_trio.outbox.outbox import Outbox

SOURCES_FIRST_WITHIN = 1.0
"""Seconds for which publishes wait on a new link until its sources have subscribed."""

STREAMS_FIRST_WITHIN = 2.0
"""Seconds for which the sources wait on a new link until missing streams have been created."""

TRYING_AT_ONCE = 1000
"""Sources that subscribe on a new link at the same time. Each needs a few kilobytes only while it does, and the
process keeps what it once had: 10,000 at a time took 40 MB."""

FENCE_EVERY = 0.75
FENCE_TIMEOUT = 0.5
"""In liveness intervals. A fence is sent after 0.75 intervals of silence and missed after another 0.5. The second
missed one ends the link, at most 1.75 intervals after the peer went silent, which leaves a margin below two."""

FENCES = 2

SHARED_WITHIN = 0.004
"""Seconds for which core publishes without a fence of their own wait for one to share: twice `fences.FENCE_INTERVAL`,
so that from a thousand messages a second on, the next one brings the fence, and this timeout is not needed."""


class Source(Protocol):
    """Reads from a connection, as the subscription or the consumer of a route does."""

    def serve(self, link: Link, tried: Latch) -> Coroutine[Any, Any, None]:
        """Read from this link until cancelled. Errors of its own must not end the link.

        Sets `tried` when it has subscribed, or could not: pending publishes are sent on this link after that.
        """
        ...


class Session:
    """Run one link from its dial to its end. `run` does all the work; other methods look, wait or request."""

    def __init__(
        self,
        server: str,
        inbox: bytes,
        outbox: Outbox,
        *,
        fenced: Callable[[float], None],
        progress: Callable[[], None],
        refused: Callable[[Refusal], None] = lambda _: None,
        answers: Answers | None = None,
    ) -> None:
        """`fenced` gets the time of each answered fence; `progress` is called when publishers may have room.

        `refused` gets each publish that the link did not write, before the outbox does. `answers` are confirmed by
        fences of their own.
        """
        self._answers = answers
        self.server = server
        self.inbox = inbox
        self.link: Link | None = None
        self.error: LinkError | None = None
        self.connected: trio.Event = trio.Event()
        self.ended: trio.Event = trio.Event()
        self.work: trio.Event = trio.Event()
        self.fenced_at: float = 0.0
        self.connected_at: float = 0.0
        self._sender, self._fences, self._refusals = outbox.sender, outbox.fences, outbox.refusals
        self._confirmed = outbox.fenced
        self._fenced = fenced
        self._progress = progress
        self._refused = refused
        self._sender_waits = False
        self._go = trio.Event()
        self._scope = trio.CancelScope()
        self._written = trio.Event()
        self._fence_due = trio.Event()
        self._leaving = False
        self._nursery: trio.Nursery | None = None
        self._context = copy_context()
        """The context variables of `run` once it is connected, which tasks of the link need."""
        self._served: dict[Source, trio.CancelScope] = {}
        self._not_started: dict[Source, None] = {}
        """Sources of `_serve_each` that wait until others have tried."""

    async def run(
        self,
        connect: Connect,
        listener: LinkListener,
        sources: Collection[Source],
        *,
        first: Sequence[Source] = (),
        last: Sequence[Source] = (),
        connect_timeout: float,
        liveness_interval: float,
    ) -> None:
        """Connect, wait for `serve`, then serve the link until it is lost or `end` is called. The loss is not raised.

        `first` are served before `sources`, which wait for them for a bounded time. `last` are served after them, so
        that they take no place from a route where a server limits subscriptions. Sources added later are served by
        `serve_also`. The reason of a loss is in `error`.
        """
        assert not self.connected.is_set(), "a session has one life"
        assert not self.ended.is_set(), "a session has one life"
        deadline = trio.current_time() + connect_timeout
        try:
            with self._scope:
                # The scope that bounds the dial stays open without a deadline, because the nursery inside outlives the
                # dial.
                with trio.CancelScope(deadline=deadline) as dialling:
                    async with connect(self.server, self.inbox, listener) as link:
                        dialling.deadline = math.inf
                        self.link = link
                        self.connected_at = self.fenced_at = trio.current_time()
                        self.connected.set()
                        await self._go.wait()
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._watch, link, liveness_interval)
                            nursery.start_soon(self._confirm, link)
                            if self._answers is not None:
                                nursery.start_soon(self._confirm_answers, link, self._answers)
                            await self._serve_each(link, first, nursery, STREAMS_FIRST_WITHIN)
                            self._nursery, self._context = nursery, copy_context()
                            try:
                                # Before anything is sent: pending publishes may be for routes that read from this very
                                # connection.
                                await self._serve_each(link, sources, nursery, SOURCES_FIRST_WITHIN, last)
                                nursery.start_soon(self._send, link)
                                # The tasks end with the link. This keeps the nursery open.
                                await trio.sleep_forever()
                            finally:
                                self._nursery = None
                if dialling.cancelled_caught:
                    self.error = LinkError(f"no connection within {connect_timeout:g} s", reason=reasons.TIMEOUT)
        except LinkError as error:
            self.error = error
        except BaseExceptionGroup as group:
            # A link that is lost while the router is cancelled is an ordinary loss.
            dead, other = group.split(LinkError)
            self.error = None if dead is None else _first(dead)
            if other is not None:
                raise other from None
        finally:
            if self._go.is_set() and self.link is not None and self._answers is not None:
                self._answers.link_down()
            self.link = None
            self.ended.set()

    def serve(self) -> None:
        """Let the tasks of the link start."""
        self._go.set()

    def serve_also(self, source: Source) -> Latch | None:
        """Serve a source that was added later. Returns an event that is set once it has tried.

        Returns None and does nothing if `run` does not serve the other sources yet, or if its link is lost.
        """
        if self.link is None or self._nursery is None:
            return None
        # The caller has another context.
        return self._context.run(self._start_serving, source, self.link, self._nursery, Latch())

    def serve_again(self, source: Source) -> Latch | None:
        """Stop serving a source, and serve it from the start. Returns as `serve_also` does, which may do nothing."""
        if self.link is None or self._nursery is None:
            return None
        self.stop_serving(source)
        return self.serve_also(source)

    def stop_serving(self, source: Source) -> None:
        """Cancel serving this source, or do not start."""
        self._not_started.pop(source, None)
        scope = self._served.pop(source, None)
        if scope is not None:
            scope.cancel()

    def leave(self) -> None:
        """Write nothing more on this link, and let what is in flight be confirmed. The next link gets the rest."""
        self._leaving = True
        self._sender.hold_back()

    def end(self) -> None:
        """Close the link now."""
        self._scope.cancel()

    # --- tasks ---

    async def _serve_each(
        self,
        link: Link,
        sources: Collection[Source],
        nursery: trio.Nursery,
        within: float,
        last: Sequence[Source] = (),
    ) -> None:
        """Serve sources in the nursery, then `last`. Returns when each source has tried, or after `within` seconds."""
        tried = Latch()
        self._not_started = dict.fromkeys(sources)
        nursery.start_soon(self._start_each, link, nursery, within, last, tried)
        with trio.move_on_after(within):
            await tried.wait()

    async def _start_each(
        self,
        link: Link,
        nursery: trio.Nursery,
        within: float,
        last: Sequence[Source],
        all_tried: Latch,
    ) -> None:
        """Start serving the sources, and `last` when all of them have tried. At most `TRYING_AT_ONCE` try at a time.

        Sources that take longer than `within` seconds must not hold up the others: they keep no place.
        """
        left = self._not_started
        places = trio.Semaphore(TRYING_AT_ONCE)
        tries: list[Latch] = []
        for source in tuple(left):
            with trio.move_on_after(within) as waiting:
                if places.value:
                    places.acquire_nowait()  # no checkpoint: few sources are started in one turn
                else:
                    await places.acquire()
            if waiting.cancelled_caught:
                places = trio.Semaphore(TRYING_AT_ONCE - 1)
            if source in left:  # else it was removed meanwhile
                tries.append(self._start_serving(source, link, nursery, _Try(places)))
            else:
                places.release()
        with trio.move_on_after(within):
            for tried in tries:
                await tried.wait()
        all_tried.set()
        for source in last:
            self._start_serving(source, link, nursery, Latch())

    def _start_serving(self, source: Source, link: Link, nursery: trio.Nursery, tried: Latch) -> Latch:
        self._not_started.pop(source, None)
        scope = self._served[source] = trio.CancelScope()
        kind = type(source)
        # Interned: otherwise each of thousands of routes has a text of its own.
        name = intern(f"{kind.__module__}.{kind.__qualname__}.serve")
        nursery.start_soon(_serve, source, link, scope, tried, name=name)
        return tried

    async def _send(self, link: Link) -> None:
        """Write pending publishes, in batches of everything that was accepted while the last one was written."""
        sender, fences = self._sender, self._fences
        while True:
            batch = sender.next_batch()
            # Taking a batch has made room, or operations that failed meanwhile have.
            self._progress()
            if fences.unfenced:
                self._written.set()
                if fences.due:
                    self._fence_due.set()
            if batch:
                self._not_written(await link.send(batch, fenced=fences.due))
                continue
            # Retries that are due on a link being left are for the next one: they must not wake this task for ever.
            due = None if self._leaving else sender.next_batch_at()
            self._sender_waits = True
            if due is None:
                await self.work.wait()
            else:
                with trio.CancelScope(deadline=due):
                    await self.work.wait()
            self._sender_waits = False
            self.work = trio.Event()

    def send_at_once(self) -> None:
        """Write pending publishes in the caller's turn. What can't be written now is left to the sender's task.

        For publishes caused by a read: a turn of that task costs more than everything else that a lone message needs.
        """
        link, sender, fences = self.link, self._sender, self._fences
        if link is None or not self._sender_waits or not link.can_send_at_once:
            self.work.set()
            return
        batch = sender.next_batch()
        if batch:
            due = fences.due
            refusals = link.send_at_once(batch, fenced=due)
            if refusals:
                self._not_written(refusals)
            fences.batch_sent()
            if fences.unfenced:
                self._written.set()
                if due:
                    self._fence_due.set()
        self._progress()
        if sender.next_batch_at() is not None:
            self.work.set()

    def _not_written(self, refusals: Sequence[Refusal]) -> None:
        for refusal in refusals:
            self._refused(refusal)
            self._refusals.write_refused(refusal.operation, refusal.reason, refusal.detail, refusal.retriable)

    async def _confirm(self, link: Link) -> None:
        """Send fences while core publishes are unconfirmed. Each one confirms everything that was written before it."""
        fences = self._fences
        while True:
            if not fences.unfenced:
                await self._written.wait()
                self._written = trio.Event()
                continue
            if not fences.due:
                self._fence_due = trio.Event()
                with trio.move_on_after(SHARED_WITHIN):
                    await self._fence_due.wait()
            sent = fences.sent
            await link.fence()
            self._answered()
            self._confirmed(sent)

    async def _confirm_answers(self, link: Link, answers: Answers) -> None:
        """Send fences behind the answers and pulls of routes, a few times a second at most."""
        while True:
            await answers.wait()
            answers.fence_follows()
            await link.fence()
            self._answered()
            answers.fence_answered()

    async def _watch(self, link: Link, interval: float) -> None:
        """Send liveness fences. A peer that does not answer two of them is dead, even if the socket reports no error.

        A missed fence is still waited for: on a slow link its answer may arrive while the second is on its way.
        """
        async with trio.open_nursery() as waiting:
            while True:
                last = self.fenced_at
                await trio.sleep_until(last + FENCE_EVERY * interval)
                for _ in range(FENCES):
                    if self.fenced_at == last:
                        waiting.start_soon(self._ping, link)
                        await trio.sleep(FENCE_TIMEOUT * interval)
                if self.fenced_at == last:
                    silent = trio.current_time() - last
                    raise LinkError(
                        f"no answer to a fence for {silent:.1f} s: the link is half open", reason=reasons.LIVENESS
                    )

    async def _ping(self, link: Link) -> None:
        await link.ping()
        self._answered()

    def _answered(self) -> None:
        self.fenced_at = trio.current_time()
        self._fenced(self.fenced_at)


class _Try(Latch):
    """The first attempt of a source on a link. Its end frees a place for the next source."""

    __slots__ = ("_places",)

    def __init__(self, places: trio.Semaphore) -> None:
        super().__init__()
        self._places = places

    def set(self) -> None:
        if not self.is_set():
            self._places.release()
        super().set()


async def _serve(source: Source, link: Link, scope: trio.CancelScope, tried: Latch) -> None:
    with scope:
        await source.serve(link, tried)
    tried.set()  # a source removed before that must not delay others


def _first(group: BaseExceptionGroup[LinkError]) -> LinkError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
