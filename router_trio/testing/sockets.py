"""The socket of a fake link: queues to the server and from it, and a task that hands out what came.

The network moves what is in the queues at once unless it is paused; a link that dies loses both. Messages reach their
takers in batches from the link's own task, as on a real link, and never from within a call of whoever published them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import TypeVar

import trio

from router_trio.errors import LinkError, reasons
from router_trio.link import DeliverShared, LinkListener, SharedDelivery, SubscriptionBatch
from router_trio.protocol.framing import RawMessage
from router_trio.testing.network import Network
from router_trio.testing.subscriptions import FakeSubscription

T = TypeVar("T")

_News = tuple[FakeSubscription, RawMessage] | Callable[[], None]


class FakeSocket:
    """A `network.Endpoint`, and the `subscriptions.Line` of what is subscribed on it.

    It begins with nothing subscribed; the first error that ends it counts.
    """

    def __init__(self, network: Network, server: str, listener: LinkListener) -> None:
        self.server = server
        self.scope: trio.CancelScope = trio.CancelScope()
        self.death: LinkError | None = None
        self._network = network
        self._listener = listener
        self._out: deque[tuple[float, Callable[[float], object], int]] = deque()
        self._out_bytes = 0
        self._in: deque[tuple[float, _News]] = deque()
        self._last_out = self._last_in = -inf
        self._left_out = self._left_in = inf
        self._wake = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self._subscriptions: list[FakeSubscription] = []

    # --- to the server ---

    def act(self, action: Callable[[float], object]) -> None:
        self._enqueue(action, 0)
        self._network.settle()
        self.wake()

    def flush(self) -> None:
        now = trio.current_time()
        while self._out and self._out[0][0] <= now:
            if self._left_out <= 0:
                self.die(_broken())
                return
            self._left_out -= 1
            _, action, size = self._out.popleft()
            self._out_bytes -= size
            action(now)
        self._progress.unpark_all()

    def next_arrival(self) -> float:
        return min((queue[0][0] for queue in (self._out, self._in) if queue), default=inf)

    def break_after(self, to_server: int | None, from_server: int | None) -> None:
        self._left_out = inf if to_server is None else to_server
        self._left_in = inf if from_server is None else from_server

    def _enqueue(self, action: Callable[[float], object], size: int) -> None:
        if self.death is None:
            self._last_out = max(self._last_out, trio.current_time() + self._network.travel())
            self._out.append((self._last_out, action, size))
            self._out_bytes += size

    async def request(self, question: Callable[[float], T]) -> T:
        self._check_alive()
        answers: list[T] = []

        def arrive(now: float) -> None:
            answer = question(now)
            self._notify(lambda: answers.append(answer))

        self.act(arrive)
        while not answers:
            await self._progress.park()
            self._check_alive()
        return answers[0]

    # --- from the server ---

    def receive(self, subscription: FakeSubscription, message: RawMessage) -> None:
        if self.death is None:
            self._on_its_way((subscription, message))

    def announce_lame_duck(self) -> None:
        self._notify(self._listener.lame_duck)

    def announce_servers(self, servers: list[str]) -> None:
        self._notify(lambda: self._listener.discovered(servers))

    def _notify(self, news: Callable[[], None]) -> None:
        self._on_its_way(news)

    def _on_its_way(self, news: _News) -> None:
        self._last_in = max(self._last_in, trio.current_time() + self._network.travel())
        self._in.append((self._last_in, news))
        self.wake()

    # --- the task ---

    async def run(self) -> None:
        """Hand out what comes, and keep the time for the server, for as long as the link lives."""
        while True:
            self._wake = trio.Event()
            self._network.settle()
            self._hand_out()
            with trio.move_on_at(self._network.next_due()):
                await self._wake.wait()

    def wake(self) -> None:
        self._wake.set()

    def _hand_out(self) -> None:
        batches: dict[FakeSubscription, list[RawMessage]] = {}
        now = trio.current_time()
        while self._in and self._in[0][0] <= now and self._network.flows():
            if self._left_in <= 0:
                self._deliver(batches)
                self.die(_broken())
                return
            self._left_in -= 1
            item = self._in.popleft()[1]
            if isinstance(item, tuple):
                batches.setdefault(item[0], []).append(item[1])
            else:
                self._deliver(batches)
                item()
        self._deliver(batches)
        self._progress.unpark_all()

    def _deliver(self, batches: dict[FakeSubscription, list[RawMessage]]) -> None:
        if not batches:
            return
        self._listener.read_begins()
        groups: dict[DeliverShared, list[tuple[FakeSubscription, SubscriptionBatch]]] = {}
        for subscription, batch in batches.items():
            deliver = subscription.deliver
            if isinstance(deliver, SharedDelivery):
                arrivals = SubscriptionBatch(deliver.key, batch)
                groups.setdefault(deliver.deliver, []).append((subscription, arrivals))
            elif not subscription.closed:
                deliver(batch)
            batch.clear()
        for deliver_together, members in groups.items():
            touched = [arrivals for subscription, arrivals in members if not subscription.closed]
            deliver_together(touched)
            for arrivals in touched:
                arrivals.clear()
        batches.clear()
        self._listener.read_done()

    # --- the end ---

    def die(self, error: LinkError) -> None:
        """End the connection. The first error counts."""
        if self.death is not None:
            return
        self.death = error
        self._network.links.remove(self)
        self._out.clear()
        self._out_bytes = 0
        self._in.clear()
        for subscription in self._subscriptions:
            subscription.closed = True
            self._network.server.remove_receiver(subscription.receive, died=error.reason != reasons.CLOSED)
        self.scope.cancel()
        self._progress.unpark_all()
        self._network.wake_links()

    def _check_alive(self) -> None:
        if self.death is not None:
            raise LinkError(f"the link to {self.server} is dead: {self.death}", reason=self.death.reason)


def _broken() -> LinkError:
    return LinkError("the connection broke in the middle of a frame")
