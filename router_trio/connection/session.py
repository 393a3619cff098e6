"""Serve one link: from its connect to its loss; a session is never used again.

All tasks that need this link run in its nursery: the sender, the confirmer, the liveness fence, and one
for each source that reads from it. When the link dies they are all gone before `run` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Protocol

import trio

from router_trio.connection.answers import Answers
from router_trio.errors import LinkError, reasons
from router_trio.link import Connect, Link, LinkListener, Refusal
from router_trio.outbox.outbox import Outbox

SOURCES_FIRST_WITHIN = 1.0
"""Seconds for which a new link's sources may hold up what is to be sent on it."""

STREAMS_FIRST_WITHIN = 2.0
"""Seconds for which the streams that are to be made may hold up the sources."""

FENCE_EVERY = 0.75
FENCE_TIMEOUT = 0.5
"""In liveness intervals. A fence is sent after 0.75 of silence and missed after 0.5; the second missed one ends the
link, at most 1.75 intervals after the peer fell silent, which leaves a margin below two."""

FENCES = 2

SHARED_WITHIN = 0.004
"""Seconds for which core publishes whose fence is not due may wait for one that is: twice `fences.FENCE_INTERVAL`, so
that at a thousand messages a second and more the next one brings it, and the timer is not needed."""


class Source(Protocol):
    """Something that reads from a connection: a route's subscription or consumer."""

    async def serve(self, link: Link, tried: trio.Event) -> None:
        """Read from this link until cancelled. Must not let errors of its own end the link.

        Sets `tried` when it has subscribed, or could not: what was kept for this link is sent after that.
        """


class Session:
    """Run one link from dial to death. `run` does all of it; the other methods look and wait."""

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
        """`fenced` is told the time of each answered fence, `progress` that there may be room for who waits for it.

        `refused` is told of each publish that the link did not write, before the outbox is. `answers` are confirmed by
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
        """That of `run`, once it is connected: what the link needs of its surroundings is in it."""
        self._served: dict[Source, trio.CancelScope] = {}

    async def run(
        self,
        connect: Connect,
        listener: LinkListener,
        sources: Sequence[Source],
        *,
        first: Sequence[Source] = (),
        connect_timeout: float,
        liveness_interval: float,
    ) -> None:
        """Connect, then wait for `serve`, then live until the link dies or `end` is called. Raises nothing of it.

        `first` are served before `sources`, which wait for them for a bounded time. Sources that come later are served
        by `serve_also`.
        """
        assert not self.connected.is_set(), "a session has one life"
        assert not self.ended.is_set(), "a session has one life"
        deadline = trio.current_time() + connect_timeout
        try:
            with self._scope:
                # One scope bounds the dial and then lives on: a nursery is opened in it and outlives the dial.
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
                                # Before anything is sent: the kept publishes may be for routes of this very connection.
                                await self._serve_each(link, sources, nursery, SOURCES_FIRST_WITHIN)
                                nursery.start_soon(self._send, link)
                                # The tasks end with the link. The nursery is open as long as this waits.
                                await trio.sleep_forever()
                            finally:
                                self._nursery = None
                if dialling.cancelled_caught:
                    self.error = LinkError(f"no connection within {connect_timeout:g} s", reason=reasons.TIMEOUT)
        except LinkError as error:
            self.error = error
        except BaseExceptionGroup as group:
            # A link that dies while the router is cancelled is no more of an error than one that dies at any time.
            dead, other = group.split(LinkError)
            self.error = None if dead is None else _first(dead)
            if other is not None:
                raise other from None
        finally:
            if self.link is not None and self._answers is not None:
                self._answers.link_down()
            self.link = None
            self.ended.set()

    def serve(self) -> None:
        """Let the tasks of the link begin."""
        self._go.set()

    def serve_also(self, source: Source) -> trio.Event | None:
        """Serve a source that has just come. Returns what is set once it has tried.

        None, and nothing is done, while `run` has not begun with the others, or when its link has died.
        """
        if self.link is None or self._nursery is None:
            return None
        # Whoever adds it has surroundings of its own.
        return self._context.run(self._start_serving, source, self.link, self._nursery)

    def stop_serving(self, source: Source) -> None:
        """Stop serving this source."""
        scope = self._served.pop(source, None)
        if scope is not None:
            scope.cancel()

    def leave(self) -> None:
        """Write nothing more on this link, and let what is in flight be confirmed. The next link takes the rest."""
        self._leaving = True
        self._sender.hold_back()

    def end(self) -> None:
        """Close the link now."""
        self._scope.cancel()

    # --- the tasks ---

    async def _serve_each(self, link: Link, sources: Sequence[Source], nursery: trio.Nursery, within: float) -> None:
        """Serve these in the nursery; returns when each has tried, or that takes too long."""
        tries = [self._start_serving(source, link, nursery) for source in sources]
        with trio.move_on_after(within):
            for tried in tries:
                await tried.wait()

    def _start_serving(self, source: Source, link: Link, nursery: trio.Nursery) -> trio.Event:
        scope = self._served[source] = trio.CancelScope()
        tried = trio.Event()

        async def serve() -> None:
            with scope:
                await source.serve(link, tried)
            tried.set()  # removed before that, it holds up nobody

        nursery.start_soon(serve, name=source.serve)
        return tried

    async def _send(self, link: Link) -> None:
        """Write pending publishes, in batches as large as what has gathered while the last one was written."""
        sender, fences = self._sender, self._fences
        while True:
            batch = sender.next_batch()
            # What was taken has made room, or what was failed or given up meanwhile.
            self._progress()
            if fences.unfenced:
                self._written.set()
                if fences.due:
                    self._fence_due.set()
            if batch:
                self._not_written(await link.send(batch, fenced=fences.due))
                continue
            # What is due on a link that is being left is for the next one: it must not wake us for ever.
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
        """Write what is pending in the turn of who calls; what can't be written so is for the sender's task.

        For what came with a read: a turn of that task costs more than what a lone message needs otherwise.
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
        """Send fences while core publishes are unconfirmed: each confirms all that were written before it."""
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
        """Fence what routes answer to their streams and ask of them, a few times a second at most."""
        while True:
            await answers.wait()
            answers.fence_follows()
            await link.fence()
            self._answered()
            answers.fence_answered()

    async def _watch(self, link: Link, interval: float) -> None:
        """Send liveness fences: a peer that answers none of two is gone, whatever the socket says.

        A missed fence is still waited for: on a slow link the answer to the first may come while the second is out.
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


def _first(group: BaseExceptionGroup[LinkError]) -> LinkError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
