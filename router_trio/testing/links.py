"""Fake links: what a link can do, by asking the fake server over a fake socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from router_trio.errors import LinkError, ProtocolError, SourceError, reasons
from router_trio.link import (
    LOOKUP_WITHIN,
    ConsumerSpec,
    ConsumerState,
    Deliver,
    Learn,
    LinkListener,
    Operation,
    Refusal,
    SharedDelivery,
    StreamState,
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
from router_trio.testing.network import Network
from router_trio.testing.sockets import FakeSocket
from router_trio.testing.streams import refusal_of
from router_trio.testing.subscriptions import FakePullConsumer, FakeSubscription

T = TypeVar("T")

ASK_FOR_LEAD_EVERY = 0.25
"""Seconds."""

LOOK_EVERY = 5.0
"""Seconds between two looks at a consumer whose lead is waited for."""

SOCKET_BUFFER = 256 * 1024
"""Bytes that a paused network takes from a link before `send` blocks."""


class FakeLink(FakeSocket):
    """A `link.Link` to the fake broker, and the `Line` of its subscriptions.

    Lives inside the context that `FakeBroker.connect` gives.
    """

    def __init__(self, network: Network, server: str, inbox: bytes, listener: LinkListener) -> None:
        super().__init__(network, server, listener)
        self.max_payload: int = network.max_payload
        self.max_control_line = DEFAULT_CONTROL_LINE  # no server tells its own
        self._inbox = inbox
        self._inboxes = 0
        self._pins: set[str] = set()
        answers = FakeSubscription(self, self._answered)
        self._subscriptions.append(answers)
        network.server.subscribe(text(inbox) + ".*", None, answers.receive)

    # --- publishing ---

    async def send(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Send operations. A frame that would make a server end the connection ends the link."""
        self._check_alive()
        refusals = self._take(operations)
        self._network.settle()
        self.wake()
        await trio.lowlevel.checkpoint()
        while self._out_bytes > SOCKET_BUFFER:
            await self._progress.park()
        self._check_alive()
        return refusals

    @property
    def can_send_at_once(self) -> bool:
        return self.death is None and self._out_bytes <= SOCKET_BUFFER

    def send_at_once(self, operations: Sequence[Operation], *, fenced: bool = False) -> Sequence[Refusal]:
        """Send operations, which reach the server in the next turn of the link's task."""
        refusals = self._take(operations)
        self.wake()
        return refusals

    def _take(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        for operation in (one for joined in operations for one in joined.split()):
            try:
                publish = parse(operation.frame)
            except FrameError as error:
                self.die(ProtocolError(f"the fake broker does not take a frame: {error}"))
                break
            if len(publish.header) + len(publish.payload) > self.max_payload:
                detail = f"more than the server's max_payload of {self.max_payload} bytes"
                refusals.append(Refusal(operation, reasons.TOO_LARGE, detail))
            elif line_size(operation.frame) > self.max_control_line:
                detail = f"more than the server's max_control_line of {self.max_control_line} bytes"
                refusals.append(Refusal(operation, reasons.TOO_LARGE, detail))
            elif line_size(operation.frame) > self._network.max_control_line:
                told = "the server ended the connection: maximum control line exceeded"
                self.die(LinkError(told, reason=reasons.SERVER_ERROR))
                break
            else:
                self._enqueue(self._publishing(publish), len(operation.frame))
        return refusals

    async def fence(self) -> None:
        """Wait for the server. Raises `LinkError` on a dead link, for a task that waits outside of its context."""
        await self.request(lambda _: None)

    async def ping(self) -> None:
        """Wait for the server. Raises as `fence` does."""
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
        return any(one.receive == receive for one in self._subscriptions)

    def _refuse(self, subject: bytes) -> None:
        told = f'Permissions Violation for Publish to "{text(subject)}"'
        self._notify(lambda: self._listener.publish_denied(subject, told))

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

    async def open_consumer(self, spec: ConsumerSpec, deliver: Deliver) -> FakePullConsumer:
        self._inboxes += 1
        inbox = b"%b-pull-%d" % (self._inbox, self._inboxes)
        subscription = FakePullConsumer(self, deliver, inbox)
        server = self._network.server

        def ask(now: float) -> Consumer | SourceError:
            # A subject like any other: whoever knows it may publish to it.
            interest = server.subscribe(text(inbox), None, subscription.receive)
            return interest if isinstance(interest, SourceError) else server.open_consumer(spec, now)

        consumer = await self._open(subscription, ask)
        subscription.find = lambda: server.consumers.get((spec.stream, spec.durable))
        await subscription.opened(spec, consumer)
        return subscription

    async def take_the_lead(self, spec: ConsumerSpec, learn: Learn) -> str:
        """Wait for the lead, which needs no message here."""
        if spec.pin is not None and spec.pin not in self._pins:
            subject = f"$JS.API.CONSUMER.UNPIN.{spec.stream}.{spec.durable}".encode()
            self.publishing(subject, lambda now: self._network.server.unpin(spec, now))
        server = self._network.server
        consumer = await self.request(lambda now: server.open_consumer(spec, now))
        if isinstance(consumer, SourceError):
            raise consumer
        learn(consumer.stream_created, consumer.progress.passed)
        looked_at = trio.current_time()
        while True:
            pin = await self.request(lambda now: server.pin_for(spec, now))
            if isinstance(pin, SourceError):
                raise pin
            if pin is not None:
                self._pins.discard(spec.pin or "")
                self._pins.add(pin)
                return pin
            await trio.sleep(ASK_FOR_LEAD_EVERY)
            if trio.current_time() >= looked_at + LOOK_EVERY:
                looked_at = trio.current_time()
                with contextlib.suppress(SourceError):
                    learn(consumer.stream_created, (await self.check_consumer(spec)).passed)

    async def find_streams(self, subject: str) -> Sequence[str]:
        return await self.look_up(lambda _: self._network.server.streams_of(subject))

    async def stream_state(self, name: str) -> StreamState | None:
        return await self.look_up(lambda now: self._network.server.state_of_stream(name, now))

    async def ensure_stream(self, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
        return await self.look_up(lambda now: self._network.server.ensure_stream(wanted, now))

    async def check_consumer(self, spec: ConsumerSpec) -> ConsumerState:
        return await self.look_up(lambda now: self._network.server.check_consumer(spec, now))

    async def asking(self, subjects: Sequence[str], question: Callable[[float], T]) -> T | SourceError:
        server = self._network.server

        def ask(now: float) -> T | SourceError:
            denied = [error for subject in subjects if (error := server.may_not_ask(subject)) is not None]
            return denied[0] if denied else question(now)

        return await self.request(ask)

    async def look_up(self, ask: Callable[[float], T | SourceError]) -> T:
        """Ask as `request` does, for a bounded time. Raises `SourceError`."""
        with trio.move_on_after(LOOKUP_WITHIN):
            answer = await self.request(ask)
            if isinstance(answer, SourceError):
                raise answer
            return answer
        raise SourceError(f"no answer within {LOOKUP_WITHIN:g} s", reason=reasons.TIMEOUT)

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
        """Ack messages. Raises `ValueError` if one is no reply subject of a JetStream message."""
        try:
            self._check_alive()
        except LinkError as error:
            return [(reply, error) for reply in replies]
        for reply in replies:
            self.publishing(reply, partial(self._acked, reply))
        return ()

    def _acked(self, reply: bytes, now: float) -> None:
        self._network.server.ack(reply, now)

    def nak(self, reply: bytes, delay: float) -> None:
        self._check_alive()
        self.publishing(reply, lambda now: self._network.server.nak(reply, now, delay))

    def term(self, reply: bytes, reason: str) -> None:
        self._check_alive()
        self.publishing(reply, lambda now: self._network.server.term(reply, now))

    def in_progress(self, reply: bytes) -> None:
        self._check_alive()
        self.publishing(reply, lambda now: self._network.server.in_progress(reply, now))

    # --- the end of a subscription ---

    def unsubscribe(self, subscription: FakeSubscription) -> None:
        self.act(lambda _: self._gone(subscription))

    async def unsubscribed(self, subscription: FakeSubscription) -> None:
        """Unsubscribe, and wait for the server's answer, which comes behind the last message."""
        await self.request(lambda _: self._gone(subscription))

    def _gone(self, subscription: FakeSubscription) -> None:
        # Not before the server hears of it: if the link dies first, that is what ends it there.
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self._network.server.remove_receiver(subscription.receive)

    # --- what the server answers ---

    def _answered(self, batch: list[RawMessage]) -> None:
        for raw in batch:
            number = raw[0][len(self._inbox) + 1 :]
            if number.isdigit():
                self._read(int(number), raw)

    def _read(self, order: int, raw: RawMessage) -> None:
        if status(header_block(raw))[0] == 503:
            self._listener.ack_refused(order, reasons.NO_RESPONDERS, "no stream takes this subject", True)
            return
        fate, reason, told = None, "", ""
        try:
            answer = json.loads(payload(raw))
            if "type" in answer:
                raise ValueError("it is an answer of the JetStream API")
            error, stream = answer.get("error"), answer.get("stream", "")
            if error is None:
                if not 1 <= answer["seq"] <= LAST_SEQUENCE:
                    raise ValueError("a sequence that no stream has")
                fate = stored(answer["stream"], answer["seq"], answer.get("duplicate", False))
            else:
                reason, told = refusal_of(error["err_code"]), error["description"]
        except (ValueError, LookupError, TypeError, AttributeError):
            self._listener.ack_refused(order, reasons.BAD_ANSWER, "not a PubAck", False)
            return
        if fate is not None:
            self._listener.acked([(order, fate)])
        else:
            self._listener.ack_refused(order, reason, told, False, stream=stream)
