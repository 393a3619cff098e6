"""Fake links: they exchange requests and messages with the fake server over queues in place of a socket."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import TypeVar

import trio

from router_trio.errors import LinkError, ProtocolError, SourceError, codes, reasons
from router_trio.link import (
    LOOKUP_WITHIN,
    STATE_FOR,
    ConsumerSpec,
    ConsumerState,
    Deliver,
    DeliverShared,
    Group,
    LeadState,
    Learn,
    LinkListener,
    Newest,
    Operation,
    PartitionedSpec,
    PartitionedStream,
    Refusal,
    SchedulesCount,
    SchedulesSpec,
    SharedDelivery,
    StreamState,
    SubscriptionBatch,
    stored,
)
from router_trio.protocol.framing import (
    DEFAULT_CONTROL_LINE,
    LAST_SEQUENCE,
    RawMessage,
    header_block,
    line_size,
    payload,
    text,
)
from router_trio.protocol.headers import status
from router_trio.protocol.stream_config import StreamConfig
from router_trio.testing.consumers import Consumer, Receive
from router_trio.testing.frames import FrameError, Publish, parse
from router_trio.testing.machine import Machine
from router_trio.testing.members import FakeMembers
from router_trio.testing.network import Network
from router_trio.testing.sent import Sent
from router_trio.testing.streams import refusal_of
from router_trio.testing.subscriptions import FakePullConsumer, FakeSubscription

T = TypeVar("T")

ASK_FOR_LEAD_EVERY = 0.25
"""Seconds between two requests for the lead of a standby consumer."""

SOCKET_BUFFER = 256 * 1024
"""Bytes that a link can send on a paused network before `send` blocks."""


_News = tuple[FakeSubscription, RawMessage] | Callable[[], None]


class FakeLink:
    """A `link.Link` to the fake broker, a `network.Endpoint`, and the `subscriptions.Line` of its subscriptions.

    It exists inside the context of `FakeBroker.connect`. Its first error is the one that counts.

    One queue leads to the server and one from it, and a task delivers received messages. The network forwards queued
    items immediately unless it is paused; a link that dies loses both queues. Messages are delivered in batches by the
    task, as on a real link, and never within a call of their publisher.
    """

    def __init__(self, network: Network, machine: Machine, server: str, inbox: bytes, listener: LinkListener) -> None:
        self.server = server
        self.machine = machine
        self.scope: trio.CancelScope = trio.CancelScope()
        self.death: LinkError | None = None
        self._network = network
        self._listener = listener
        self._sent = Sent(machine)
        self._in: deque[tuple[float, _News]] = deque()
        self._last_in = -inf
        self._left_in = inf
        self._wake = trio.Event()
        self._progress = trio.lowlevel.ParkingLot()
        self._subscriptions: list[FakeSubscription] = []
        self._listened: dict[str, FakeSubscription] = {}
        self.max_payload: int = network.max_payload
        self.max_control_line = DEFAULT_CONTROL_LINE  # the INFO of a server does not contain its own
        self.lame_duck: bool = False
        self.inbox: bytes = inbox
        self._inboxes = 0
        self._pins: set[str] = set()
        answers = FakeSubscription(self, self._answered)
        self._subscriptions.append(answers)
        network.server.subscribe(text(inbox) + ".*", None, answers.receive)

    # --- publishing ---

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Send operations. A frame for which a server would close the connection ends the link."""
        self._check_alive()
        refusals = self._take(operations)
        self._network.settle()
        self.wake()
        await trio.lowlevel.checkpoint()
        while self._sent.bytes > SOCKET_BUFFER:
            await self._progress.park()
        self._check_alive()
        return refusals

    @property
    def can_send_at_once(self) -> bool:
        return self.death is None and self._sent.bytes <= SOCKET_BUFFER

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Send operations, which reach the server on the next turn of the task of the link."""
        refusals = self._take(operations)
        self.wake()
        return refusals

    def _take(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        for operation in (operation for joined in operations for operation in joined.split()):
            try:
                publish = parse(operation.frame)
            except FrameError as error:
                self.die(ProtocolError(f"the fake broker refused a frame: {error}"))
                break
            if len(publish.header) + len(publish.payload) > self.max_payload:
                detail = f"more than the server's max_payload of {self.max_payload} bytes"
                refusals.append(Refusal(operation, reasons.TOO_LARGE, detail))
            elif line_size(operation.frame) > self.max_control_line:
                detail = f"more than the server's max_control_line of {self.max_control_line} bytes"
                refusals.append(Refusal(operation, reasons.TOO_LARGE, detail))
            else:
                self._enqueue(self._publishing(publish), len(operation.frame))
        return refusals

    async def fence(self) -> None:
        """Wait for an answer of the server. Raises `LinkError` on a dead link, even outside of its context."""
        await self.request(lambda _: None)

    async def ping(self) -> None:
        """Wait for an answer of the server. Raises as `fence` does."""
        await self.request(lambda _: None)

    def _publishing(self, publish: Publish) -> Callable[[float], None]:
        def arrive(now: float) -> None:
            if self._network.server.may_publish(text(publish.subject)):
                self._network.server.receive(publish, now, self._is_own)
            else:
                self._network.server.watch.refused(publish, reasons.PERMISSION_DENIED, now)
                self._refuse(publish.subject)

        return arrive

    def _is_own(self, receive: Receive) -> bool:
        return any(subscription.receive == receive for subscription in self._subscriptions)

    def _refuse(self, subject: bytes) -> None:
        detail = f'Permissions Violation for Publish to "{text(subject)}"'
        self.notify(lambda: self._listener.publish_denied(subject, detail))

    def publishing(self, subject: bytes, action: Callable[[float], object]) -> None:

        def arrive(now: float) -> None:
            if self._network.server.may_publish(text(subject)):
                action(now)
            else:
                self._refuse(subject)

        self.act(arrive)

    # --- receiving ---

    async def subscribe(
        self, subject: str, deliver: Deliver | SharedDelivery, *, queue: str | None = None
    ) -> FakeSubscription:
        subscription = FakeSubscription(self, deliver)
        await self._open(subscription, lambda _: self._network.server.subscribe(subject, queue, subscription.receive))
        return subscription

    async def listen(self, subjects: Sequence[str], deliver: Deliver) -> Sequence[tuple[str, str]]:
        server = self._network.server
        found = {one: FakeSubscription(self, deliver) for one in subjects if one not in self._listened}
        self._listened |= found
        self._subscriptions += found.values()
        answers = await self.request(
            lambda _: {one: server.subscribe(one, None, subscription.receive) for one, subscription in found.items()}
        )
        refused = [(subject, str(answer)) for subject, answer in answers.items() if isinstance(answer, SourceError)]
        for subject, _ in refused:
            self._subscriptions.remove(self._listened.pop(subject))
        return refused

    def stop_listening(self, subjects: Sequence[str]) -> None:
        for subject in subjects:
            subscription = self._listened.pop(subject, None)
            if subscription is not None:
                subscription.close()

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> FakePullConsumer:
        self._inboxes += 1
        inbox = b"%b-pull-%d" % (self.inbox, self._inboxes)
        subscription = FakePullConsumer(self, deliver, inbox)
        server = self._network.server

        def ask(now: float) -> Consumer | SourceError:
            # The inbox is an ordinary subject, on which any client that knows it may publish.
            interest = server.subscribe(text(inbox), None, subscription.receive)
            return interest if isinstance(interest, SourceError) else server.open_consumer(spec, now)

        consumer = await self._open(subscription, ask)
        subscription.find = lambda: server.consumers.get((spec.stream, spec.durable))
        await subscription.opened(spec, consumer)
        return subscription

    async def take_the_lead(self, spec: ConsumerSpec, learn: Learn) -> str:
        """Wait until this link has the lead. No message is needed for that here."""
        if spec.pin is not None and spec.pin not in self._pins:
            subject = f"$JS.API.CONSUMER.UNPIN.{spec.stream}.{spec.durable}".encode()
            self.publishing(subject, lambda now: self._network.server.unpin(spec, now))
        server = self._network.server
        consumer = await self.request(lambda now: server.open_consumer(spec, now))
        if isinstance(consumer, SourceError):
            raise consumer
        state = consumer.state_at(trio.current_time())
        learn(consumer.stream_created, state)
        looked_at = -inf if state.undelivered or state.unacked else trio.current_time()
        while True:
            pin = await self.request(lambda now: server.pin_for(spec, now))
            if isinstance(pin, SourceError):
                raise pin
            if pin is not None:
                self._pins.discard(spec.pin or "")
                self._pins.add(pin)
                return pin
            await trio.sleep(ASK_FOR_LEAD_EVERY)
            if trio.current_time() >= looked_at + STATE_FOR:
                looked_at = trio.current_time()
                with contextlib.suppress(SourceError):
                    learn(consumer.stream_created, await self.check_consumer(spec, None, oldest=True))

    async def lead_state(self, stream: str, durable: str) -> LeadState:
        return await self.look_up(lambda now: self._network.server.lead_state(stream, durable, now))

    async def find_streams(self, subject: str) -> Sequence[str]:
        return await self.look_up(lambda _: self._network.server.streams_of(subject))

    async def stream_state(self, name: str) -> StreamState | None:
        return await self.look_up(lambda now: self._network.server.state_of_stream(name, now))

    async def newest(self, stream: str, subject: str) -> Newest | None:
        return await self.look_up(lambda now: self._network.server.newest(stream, subject, now))

    async def ensure_stream(self, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
        return await self.look_up(lambda now: self._network.server.ensure_stream(wanted, now))

    async def ensure_partitioned(self, wanted: PartitionedSpec) -> PartitionedStream:
        return await self.look_up(lambda now: self._network.server.ensure_partitioned(wanted, now))

    async def count_subjects(self, stream: str, pattern: str) -> int:
        return await self.look_up(lambda now: self._network.server.count_subjects(stream, pattern, now))

    async def count_schedules(self, spec: SchedulesSpec) -> SchedulesCount:
        return await self.look_up(lambda now: self._network.server.count_schedules(spec, now))

    async def members(self, group: Group) -> FakeMembers:
        members = FakeMembers(self, self._network.server, group)
        await members.ensure()
        return members

    async def check_consumer(
        self, spec: ConsumerSpec, opened: Consumer | None, *, oldest: bool = False
    ) -> ConsumerState:
        return await self.look_up(lambda now: self._network.server.check_consumer(spec, opened, now, oldest=oldest))

    async def asking(self, subjects: Sequence[str], question: Callable[[float], T]) -> T | SourceError:
        server = self._network.server

        def ask(now: float) -> T | SourceError:
            denied = [error for subject in subjects if (error := server.may_not_ask(subject)) is not None]
            return denied[0] if denied else question(now)

        return await self.request(ask)

    async def look_up(self, ask: Callable[[float], T | SourceError]) -> T:
        """Ask as `request` does. Raises `SourceError`; after `LOOKUP_WITHIN` seconds if the server does not answer."""
        answer = await self.request(ask)
        if isinstance(answer, SourceError):
            if answer.reason == reasons.TIMEOUT:
                await trio.sleep(LOOKUP_WITHIN)
                answer = SourceError(f"no answer within {LOOKUP_WITHIN:g} s", reason=reasons.TIMEOUT)
            raise answer
        return answer

    async def _open(self, subscription: FakeSubscription, ask: Callable[[float], T | SourceError]) -> T:
        self._subscriptions.append(subscription)
        try:
            answer = await self.request(ask)
            if isinstance(answer, SourceError):
                raise answer
        except BaseException:
            subscription.close()
            raise
        return answer

    def ack(self, replies: Sequence[bytes]) -> Sequence[tuple[bytes, LinkError]]:
        """Ack messages. Raises `ValueError` if one is not the reply subject of a JetStream message."""
        try:
            self._check_alive()
        except LinkError as error:
            return [(reply, error) for reply in replies]
        for reply in replies:
            self.publishing(reply, partial(self._acked, reply))
        return ()

    def _acked(self, reply: bytes, now: float) -> None:
        self._network.server.ack(reply, now, self.inbox)

    def nak(self, reply: bytes, delay: float) -> None:
        self._check_alive()
        self.publishing(reply, lambda now: self._network.server.nak(reply, now, delay, self.inbox))

    def term(self, reply: bytes, reason: str) -> None:
        self._check_alive()
        self.publishing(reply, lambda now: self._network.server.term(reply, now, self.inbox))

    def in_progress(self, reply: bytes) -> None:
        self._check_alive()
        self.publishing(reply, lambda now: self._network.server.in_progress(reply, now, self.inbox))

    def respond(self, reply: bytes, payload: bytes) -> None:
        self._check_alive()
        self.act(self._publishing(Publish(reply, b"", b"", payload)))

    # --- the end of a subscription ---

    def unsubscribe(self, subscription: FakeSubscription) -> None:
        self.act(lambda _: self._removed(subscription))

    async def unsubscribed(self, subscription: FakeSubscription) -> None:
        """Unsubscribe, and wait for the answer of the server, which follows the last message."""
        await self.request(lambda _: self._removed(subscription))

    def _removed(self, subscription: FakeSubscription) -> None:
        # Only when the server has received it: if the link dies first, its death removes the subscription.
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._network.server.remove_receiver(subscription.receive)

    # --- what the server answers ---

    def _answered(self, batch: list[RawMessage]) -> None:
        for raw in batch:
            number = raw[0][len(self.inbox) + 1 :]
            if number.isdigit():
                self._read(int(number), raw)

    def _read(self, order: int, raw: RawMessage) -> None:
        if status(header_block(raw))[0] == 503:
            self._listener.ack_refused(order, reasons.NO_RESPONDERS, "no stream takes this subject", True)
            return
        fate, reason, detail = None, "", ""
        try:
            answer = json.loads(payload(raw))
            if "type" in answer:
                raise ValueError("an answer of the JetStream API is not a PubAck")
            error, stream = answer.get("error"), answer.get("stream", "")
            if error is None:
                if not 1 <= answer["seq"] <= LAST_SEQUENCE:
                    raise ValueError("the sequence is out of range")
                fate = stored(answer["stream"], answer["seq"], answer.get("duplicate", False))
            else:
                number = error["err_code"]
                reason, detail = refusal_of(number), codes.explained(number, error["description"])
        except (ValueError, LookupError, TypeError, AttributeError):
            self._listener.ack_refused(order, reasons.BAD_ANSWER, "not a PubAck", False)
            return
        if fate is not None:
            self._listener.acked([(order, fate)])
        else:
            self._listener.ack_refused(order, reason, detail, False, stream=stream)

    # --- the queue to the server ---

    def act(self, action: Callable[[float], object]) -> None:
        self._enqueue(action, 0)
        self._network.settle()
        self.wake()

    def flush(self) -> None:
        if not self._sent.flush():
            self.die(_broken())
            return
        self._progress.unpark_all()

    def next_arrival(self) -> float:
        return self._sent.next_arrival()

    def _next_received(self) -> float:
        return self.machine.due(self._in[0][0], "from_server") if self._in else inf

    def break_after(self, to_server: int | None, from_server: int | None) -> None:
        self._sent.most = inf if to_server is None else to_server
        self._left_in = inf if from_server is None else from_server

    def _enqueue(self, action: Callable[[float], object], size: int) -> None:
        if self.death is None:
            self._sent.add(action, size)

    async def request(self, question: Callable[[float], T]) -> T:
        self._check_alive()
        answers: list[T] = []

        def arrive(now: float) -> None:
            answer = question(now)
            self.notify(lambda: answers.append(answer))

        self.act(arrive)
        while not answers:
            await self._progress.park()
            self._check_alive()
        return answers[0]

    # --- the queue from the server ---

    def receive(self, subscription: FakeSubscription, message: RawMessage) -> None:
        if self.death is None:
            self._enqueue_arrival((subscription, message))

    def announce_lame_duck(self) -> None:
        def arrive() -> None:
            self.lame_duck = True
            self._listener.lame_duck()

        self.notify(arrive)

    def announce_servers(self, servers: list[str]) -> None:
        self.notify(lambda: self._listener.discovered(servers))

    def notify(self, news: Callable[[], None]) -> None:
        self._enqueue_arrival(news)

    def _enqueue_arrival(self, news: _News) -> None:
        self._last_in = max(self._last_in, trio.current_time() + self.machine.delay())
        self._in.append((self._last_in, news))
        self.wake()

    # --- the task ---

    async def run(self) -> None:
        """Deliver received messages, and run what is due on the server, until cancelled at the end of the link."""
        while True:
            self._wake = trio.Event()
            self._network.settle()
            self._deliver_arrived()
            with trio.move_on_at(min(self._network.next_due(), self._next_received())):
                await self._wake.wait()

    def wake(self) -> None:
        self._wake.set()

    def _deliver_arrived(self) -> None:
        batches: dict[FakeSubscription, list[RawMessage]] = {}
        now = trio.current_time()
        while self._in and self._in[0][0] <= now and self.machine.receives():
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
        """End the link. Only the first error counts."""
        if self.death is not None:
            return
        self.death = error
        self._network.links.remove(self)
        self._in.clear()
        for subscription in self._subscriptions:
            subscription.closed = True
        if self.machine.sends_on and error.reason == reasons.CLOSED:
            self._sent.add(self._disconnected)
            self._network.departed.append(self._sent)
        else:
            self._sent.clear()
            self._disconnected(trio.current_time())
        self.scope.cancel()
        self._progress.unpark_all()
        self._network.wake_links()

    def _disconnected(self, now: float) -> None:
        """End the link on the server."""
        closed = self.death is not None and self.death.reason == reasons.CLOSED
        unnoticed = self.machine.half_open or (self._network.server.half_open and not closed)
        for subscription in self._subscriptions:
            self._network.server.remove_receiver(subscription.receive, unnoticed=unnoticed)

    def _check_alive(self) -> None:
        if self.death is not None:
            raise LinkError(f"the link to {self.server} is dead: {self.death}", reason=self.death.reason)


def _broken() -> LinkError:
    return LinkError("the connection broke in the middle of a frame")
