"""Subscriptions and consumers of a fake link: the client side of those on the fake server."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Protocol, TypeVar

import trio

from router_trio.errors import SourceError
from router_trio.link import (
    IDLE_HEARTBEAT,
    LISTEN_FOR,
    ConsumerSpec,
    ConsumerState,
    Deliver,
    Limits,
    Progress,
    SharedDelivery,
)
from router_trio.protocol import ack_reply
from router_trio.protocol.framing import RawMessage, text
from router_trio.testing.consumers import Consumer

T = TypeVar("T")


def _ignore(sent_at: float) -> None:
    """Ignore that the lead was proved."""


def _ignore_refusal() -> None:
    """Ignore that another process has the lead."""


class Line(Protocol):
    """The part of a link that its subscriptions use."""

    inbox: bytes

    def receive(self, subscription: FakeSubscription, message: RawMessage) -> None:
        """Take a message that the server sends to the subscription."""

    def unsubscribe(self, subscription: FakeSubscription) -> None:
        """Remove the subscription from the server."""

    async def unsubscribed(self, subscription: FakeSubscription) -> None:
        """Remove the subscription from the server, and wait until its last message has been received."""

    def act(self, action: Callable[[float], object]) -> None:
        """Run `action` when the network has forwarded it to the server. Does nothing on a dead link."""

    def notify(self, news: Callable[[], None]) -> None:
        """Call `news` on the link when the network has forwarded it from the server."""

    def publishing(self, subject: bytes, action: Callable[[float], object]) -> None:
        """Do as `act` if this user may publish to `subject`; otherwise report to the link that it may not."""

    async def check_consumer(
        self, spec: ConsumerSpec, opened: Consumer | None, *, oldest: bool = False
    ) -> ConsumerState:
        """Return the current state of the consumer, as `link.PullConsumer.check` does.

        `opened` is the consumer that was found when it was opened; None to check none.
        """
        ...

    async def asking(self, subjects: Sequence[str], question: Callable[[float], T]) -> T | SourceError:
        """Ask as `request` does if this user may publish to these subjects of the API; otherwise return the error."""
        ...

    async def request(self, question: Callable[[float], T]) -> T:
        """Ask the server, and return its answer. Raises `LinkError` if the link dies meanwhile. Can be cancelled."""
        ...


class FakeSubscription:
    """A `link.CoreSubscription` on a fake link."""

    def __init__(self, link: Line, deliver: Deliver | SharedDelivery) -> None:
        self.closed: bool = False
        self.deliver = deliver
        self._link = link

    def receive(self, message: RawMessage) -> None:
        """Send a message from the server to this subscription."""
        self._link.receive(self, message)

    def deliver_to(self, deliver: Deliver | SharedDelivery) -> None:
        self.deliver = deliver

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._link.unsubscribe(self)

    async def drain(self) -> None:
        """End the subscription without loss. Raises `LinkError` if the link dies meanwhile. Can be cancelled."""
        if not self.closed:
            await self._link.unsubscribed(self)
            self.close()


class FakePullConsumer(FakeSubscription):
    """A `link.PullConsumer` on a fake link."""

    def __init__(self, link: Line, deliver: Deliver, inbox: bytes) -> None:
        super().__init__(link, deliver)
        self.spec: ConsumerSpec | None = None
        self.consumer: Consumer | None = None
        self.find: Callable[[], Consumer | None] = lambda: None
        """Returns the consumer that has this name now; None if it was deleted."""
        self.progress: Progress = Progress(0, in_use=False)
        self.went_back: str | None = None
        self.left_unacked: Sequence[int] = ()
        self.lifted: Sequence[str] = ()
        self._inbox = inbox
        self._proved: Callable[[float], None] = _ignore
        self._refused: Callable[[], None] = _ignore_refusal

    async def opened(self, spec: ConsumerSpec, consumer: Consumer) -> None:
        """Read the position of a consumer that was found or created.

        If the spec has no position in this incarnation of the stream, first listen for other processes that use it.
        """
        self.spec = spec
        self.consumer = consumer
        self.lifted = consumer.take_lifted()
        before = consumer.answers_of_others(self._link.inbox)
        first = (spec.stream_created is None or consumer.differs(spec) is not None) and not consumer.progress.in_use
        listen = not spec.standby and (first or spec.others_seen) and bool(consumer.left_unacked())
        if listen:
            try:
                await trio.sleep(LISTEN_FOR)
            except BaseException:
                self.close()
                raise
        progress = consumer.progress
        waits = progress.in_use and not (listen and spec.others_seen)
        answered = consumer.answers_of_others(self._link.inbox) > before
        self.progress = replace(progress, in_use=not spec.standby and (waits or answered))
        self.left_unacked = consumer.left_unacked()
        self.went_back = consumer.differs(spec)

    @property
    def ack_wait(self) -> float:
        return self._opened().spec.ack_wait

    @property
    def limits(self) -> Limits:
        consumer = self._opened()
        spec = consumer.spec
        return Limits(
            spec.max_deliver,
            spec.max_ack_pending,
            "limits",
            consumer.stream_subjects,
            consumer.began,
            stores=consumer.stream_stores,
        )

    @property
    def stream_created(self) -> str:
        return self._opened().stream_created

    def pull(self, batch: int, expires: float, max_bytes: int = 0, heartbeat: float = IDLE_HEARTBEAT) -> None:
        """Request messages. Does nothing on a dead link or when closed."""
        if expires <= 2 * heartbeat:
            heartbeat = inf
        if not self.closed:
            self._link.publishing(
                self._next_subject,
                lambda now: self._named().pull(
                    self._inbox,
                    self.receive,
                    batch,
                    now,
                    expires=expires,
                    max_bytes=max_bytes,
                    heartbeat=heartbeat,
                    pin=self._pin,
                ),
            )

    @property
    def _next_subject(self) -> bytes:
        spec = self._opened().spec
        return f"$JS.API.CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}".encode()

    @property
    def _pin(self) -> str | None:
        return None if self.spec is None else self.spec.pin

    def say_at_work(self) -> None:
        self._link.publishing(self._ack_subject(0), lambda now: self._named().say_at_work(now, self._link.inbox))

    def hold_lead(self) -> bool:
        pin, sent_at = self._pin, trio.current_time()
        if pin is None:
            return False

        def arrive(now: float) -> None:
            held = self._named().hold(pin, now)
            self._link.notify(lambda: self._proved(sent_at) if held else self._refused())

        self._link.publishing(self._next_subject, arrive)
        return True

    def watch_lead(self, proved: Callable[[float], None], refused: Callable[[], None]) -> None:
        self._proved, self._refused = proved, refused

    async def acks_processed(self) -> None:
        await self._link.request(lambda _: None)

    def release_lead(self) -> None:
        pin = self._pin
        if pin is not None:
            spec = self._opened().spec
            subject = f"$JS.API.CONSUMER.UNPIN.{spec.stream}.{spec.durable}".encode()
            self._link.publishing(subject, lambda now: self._named().drop_pin(pin, now))

    async def check(self, *, oldest: bool = False) -> ConsumerState:
        assert self.spec is not None, "opened() sets it"
        return await self._link.check_consumer(self.spec, self._opened(), oldest=oldest)

    async def unacked(self, first: int) -> Sequence[int] | None:
        return [sequence for sequence in self.left_unacked if sequence >= first]

    async def gone(self, awaited: Mapping[int, bytes], in_hand: Callable[[], int]) -> Collection[int]:
        """Return which of these will never be redelivered. Raises `LinkError` if the link dies. Can be cancelled."""
        spec = self._opened().spec
        asked = [f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.durable}", f"$JS.API.STREAM.MSG.GET.{spec.stream}"]
        answer = await self._link.asking(asked, lambda now: self._named().look_for(awaited, now))
        if isinstance(answer, SourceError):
            raise answer
        state, removed = answer
        # A server only counts what is unacked: it does not say which messages these are.
        answered = state.delivered if state.unacked <= in_hand() else state.passed
        return removed.union(one for one in awaited if one <= answered)

    async def stored(self, first: int, last: int, most: int) -> Sequence[RawMessage]:
        """Return stored messages. Raises `LinkError` if the link dies. Can be cancelled."""
        subject = f"$JS.API.STREAM.MSG.GET.{self._opened().spec.stream}"
        answer = await self._link.asking([subject], lambda now: self._named().stored(first, last, most))
        if isinstance(answer, SourceError):
            raise answer
        return answer

    async def claim(self, sequence: int, counted: int) -> bool | None:
        """Terminate a message. Raises `LinkError` if the link dies. Can be cancelled."""
        spec = self._opened().spec
        subjects = [f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.durable}", text(self._ack_subject(sequence))]
        answer = await self._link.asking(subjects, lambda now: self._named().claim(sequence, counted, self._link.inbox))
        if isinstance(answer, SourceError):
            raise answer
        return answer

    async def again(self, sequences: Sequence[int]) -> bool:
        """Have these redelivered. Raises `LinkError` if the link dies meanwhile. Can be cancelled."""
        received: list[int] = []

        def redeliver(sequence: int, now: float) -> None:
            self._named().again([sequence], now, self._link.inbox)
            received.append(sequence)

        if self._pin is not None and sequences:
            # Ends the requests of the former leader, as a real link does.
            self._link.publishing(
                self._ack_subject(sequences[0]), partial(self._named().again, sequences[:1], by=self._link.inbox)
            )
            await self._link.request(lambda _: None)
        for sequence in sequences:
            self._link.publishing(self._ack_subject(sequence), partial(redeliver, sequence))
        await self._link.request(lambda _: None)
        return len(received) == len(sequences)

    def _ack_subject(self, sequence: int) -> bytes:
        spec = self._opened().spec
        return ack_reply.subject(spec.stream.encode(), spec.durable.encode(), sequence=sequence, number=0)

    def _named(self) -> Consumer:
        # A request is sent to a name, and a consumer that was created under it since then answers.
        return self.find() or self._opened()

    def _opened(self) -> Consumer:
        assert self.consumer is not None, "opened() sets it"
        return self.consumer
