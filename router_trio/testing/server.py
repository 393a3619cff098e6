"""The server behind the fake links: routes publishes to subscriptions, stores them in streams, feeds consumers.

Synchronous, knows no links and no clock: whoever calls gives the time and the functions that take messages.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf

from router_trio.errors import SourceError, reasons
from router_trio.link import ConsumerSpec, ConsumerState, StreamState
from router_trio.protocol.framing import text
from router_trio.protocol.headers import decode
from router_trio.protocol.stream_config import StreamConfig
from router_trio.subjects.patterns import matches, overlaps
from router_trio.testing.consumers import Consumer, Receive
from router_trio.testing.frames import Publish, raw, status
from router_trio.testing.losses import Losses, Timed
from router_trio.testing.streams import EPOCH, Stream, refusal_of
from router_trio.testing.watch import PublishedMessage, Watch

DUPLICATE_WINDOW = 120.0
"""Seconds, of a stream for which nobody says another one."""


@dataclass(frozen=True, eq=False, slots=True)
class Interest:
    """A subscription as the server sees it."""

    pattern: str
    queue: str | None
    receive: Receive


class Server:
    """Subscriptions, streams, consumers and permissions. `epoch`: see `Stream`."""

    def __init__(self, epoch: float = EPOCH) -> None:
        self.watch: Watch = Watch()
        self.losses: Losses = Losses()
        self._epoch = epoch
        self.published: list[PublishedMessage] = []
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self.jetstream: bool = True
        """False: it makes no streams."""
        self.denied_publishes: list[str] = []
        self.denied_subscriptions: list[str] = []
        self.half_open = False
        """True while links that die are taken for alive: their pull requests still get messages."""
        self._streams_created = 0
        self._interests: list[Interest] = []
        self._turns: Counter[str] = Counter()

    # --- publish and subscribe ---

    def may_publish(self, subject: str) -> bool:
        """Return True if permissions allow it."""
        return not any(matches(pattern, subject) for pattern in self.denied_publishes)

    def may_not_ask(self, subject: str) -> SourceError | None:
        """Return why a request to a subject gets no answer; None if permissions allow it."""
        if self.may_publish(subject):
            return None
        told = f"this user may not publish to {subject!r}; give this user the permission"
        return SourceError(told, reason=reasons.PERMISSION_DENIED)

    def receive(self, publish: Publish, now: float, is_own: Callable[[Receive], bool]) -> None:
        """Take a publish from a link: it is recorded, and then routed. `is_own`: see `publish`."""
        self.published.append(PublishedMessage(text(publish.subject), decode(publish.header), publish.payload))
        self.watch.received(publish, now)
        self.publish(publish, now, is_own)

    def publish(self, publish: Publish, now: float, is_own: Callable[[Receive], bool] = lambda receive: False) -> None:
        """Route to subscriptions, store in the stream that takes the subject, and answer at the reply subject.

        A stream answers there whoever listens. That nothing takes the subject is said to the publisher alone: to
        those receivers that are its own.
        """
        subject = text(publish.subject)
        wanted = self._route(subject, publish)
        takers = [stream for stream in self.streams.values() if stream.takes(subject)]
        stream = min(takers, key=lambda stream: stream.fallback, default=None)
        if stream is not None and stream.cut_off:
            return
        if stream is not None and now >= stream.leaderless_until:
            self._store(stream, publish, now)
        elif publish.reply:
            self.watch.refused(publish, reasons.NO_RESPONDERS, now)
            if wanted:
                return  # whoever got it may answer
            for receive in filter(is_own, self._receivers(text(publish.reply))):
                receive(status(publish.reply, "503"))

    def _store(self, stream: Stream, publish: Publish, now: float) -> None:
        before = len(stream.stored)
        pub_ack = stream.store(publish, now)
        if len(stream.stored) > before:
            self.watch.stored(stream, stream.stored[-1], now)
        elif b"error" in pub_ack:
            self.watch.refused(publish, refusal_of(json.loads(pub_ack)["error"]["err_code"]), now)
        if not publish.reply:
            return
        answer = partial(self._route, text(publish.reply), Publish(publish.reply, b"", b"", pub_ack))
        if stream.answers_after:
            self.losses.later(now + stream.answers_after, answer)
        else:
            self.losses.meets("puback", now, answer)

    def subscribe(self, pattern: str, queue: str | None, receive: Receive) -> Interest | SourceError:
        """Add a subscription, or say why not."""
        if any(matches(denied, pattern) for denied in self.denied_subscriptions):
            return SourceError(
                f'Permissions Violation for Subscription to "{pattern}"', reason=reasons.PERMISSION_DENIED
            )
        interest = Interest(pattern, queue, receive)
        self._interests.append(interest)
        return interest

    def remove_receiver(self, receive: Receive, *, died: bool = False) -> None:
        """Forget a receiver: what it subscribed to, and its pull requests unless its link `died` half-open."""
        self._interests = [interest for interest in self._interests if interest.receive != receive]
        for consumer in self.consumers.values():
            if died and self.half_open:
                consumer.strand_requests(receive)
            else:
                consumer.remove_requests(receive)

    def _route(self, subject: str, publish: Publish) -> bool:
        receivers = self._receivers(subject)
        message = raw(*publish)
        for receive in receivers:
            receive(message)
        return bool(receivers)

    def _receivers(self, subject: str) -> list[Receive]:
        receivers: list[Receive] = []
        groups: dict[str, list[Receive]] = {}
        for interest in self._interests:
            if matches(interest.pattern, subject):
                group = receivers if interest.queue is None else groups.setdefault(interest.queue, [])
                group.append(interest.receive)
        for queue, members in groups.items():
            # In turn, where a real server draws lots: a test wants to know who comes next.
            receivers.append(members[self._turns[queue] % len(members)])
            self._turns[queue] += 1
        return receivers

    # --- streams and consumers ---

    def add_stream(
        self,
        name: str,
        subjects: Iterable[str],
        *,
        duplicate_window: float,
        max_messages: int | None,
        fallback: bool = False,
        config: StreamConfig | None = None,
    ) -> None:
        """Create a stream. Raises `ValueError` if the name or a subject is taken, `SubjectError` for a bad subject."""
        stream = Stream(
            name,
            subjects,
            created=f"incarnation {self._streams_created + 1}",
            duplicate_window=duplicate_window,
            max_messages=max_messages,
            epoch=self._epoch,
            fallback=fallback,
            config=config,
        )
        if name in self.streams:
            raise ValueError(f"there is a stream {name!r} already: delete it first, or use another name")
        for other in self.streams.values():
            if other.fallback == fallback and other.overlaps(stream):
                raise ValueError(f"stream {name!r}: subjects overlap with those of stream {other.name!r}")
        self.streams[name] = stream
        self._streams_created += 1

    def set_clock(self, seconds: float) -> None:
        """Set the clock of the server forward, or back by a negative number: see `trouble.Trouble.set_clock`."""
        self._epoch += seconds
        for stream in self.streams.values():
            stream.epoch += seconds

    def delete_stream(self, name: str) -> None:
        """Delete a stream with its consumers. Raises `KeyError` if there is none."""
        del self.streams[name]
        for stream, durable in list(self.consumers):
            if stream == name:
                self.delete_consumer(stream, durable)

    def open_consumer(self, spec: ConsumerSpec, now: float = inf) -> Consumer | SourceError:
        """Find the durable consumer or create it, or say why not."""
        created = (spec.stream, spec.durable) not in self.consumers and spec.stream in self.streams
        for request in (f"STREAM.INFO.{spec.stream}", f"CONSUMER.INFO.{spec.stream}.{spec.durable}") + (
            (f"CONSUMER.DURABLE.CREATE.{spec.stream}.{spec.durable}",) if created else ()
        ):
            if (denied := self.may_not_ask(f"$JS.API.{request}")) is not None:
                return denied
        stream = self.streams.get(spec.stream)
        if stream is not None and now < stream.leaderless_until:
            return SourceError(f"the stream {spec.stream!r} has no leader", reason=reasons.JETSTREAM_UNAVAILABLE)
        if stream is None:
            return SourceError(f"there is no stream {spec.stream!r}; create it first", reason=reasons.STREAM_NOT_FOUND)
        consumer = self.consumers.get((spec.stream, spec.durable))
        if consumer is None:
            consumer = self.consumers[spec.stream, spec.durable] = Consumer(spec, stream, self.losses)
        mismatch = _mismatch(spec, consumer)
        if mismatch is not None:
            return mismatch
        if 0 < consumer.spec.max_deliver != spec.max_deliver and not consumer.is_fixed:
            consumer.lift(spec.max_deliver)
        return consumer

    def pin_for(self, spec: ConsumerSpec, now: float) -> str | SourceError | None:
        """Return the pin of a standby consumer if nobody else has the lead; or why it can't be had."""
        denied = self.may_not_ask(f"$JS.API.CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}")
        if denied is not None:
            return denied
        if (spec.stream, spec.durable) not in self.consumers:
            told = f"nobody answers for the durable {spec.durable!r} of stream {spec.stream!r}"
            return SourceError(told, reason=reasons.CONSUMER_DELETED)
        consumer = self.open_consumer(spec, now)
        return consumer if isinstance(consumer, SourceError) else consumer.take_pin(spec.pin, now)

    def unpin(self, spec: ConsumerSpec, now: float) -> None:
        """Take the lead from whoever has it by the pin of a spec."""
        consumer = self.consumers.get((spec.stream, spec.durable))
        if consumer is not None:
            consumer.drop_pin(spec.pin, now)

    def check_consumer(self, spec: ConsumerSpec, now: float) -> ConsumerState | SourceError:
        """Say how the durable consumer of a spec is, or what became of it."""
        if (denied := self.may_not_ask(f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.durable}")) is not None:
            return denied
        consumer = self.consumers.get((spec.stream, spec.durable))
        if consumer is None:
            told = f"the durable {spec.durable!r} of stream {spec.stream!r} was deleted; it is created again"
            return SourceError(told, reason=reasons.CONSUMER_NOT_FOUND)
        return _mismatch(spec, consumer) or consumer.state_at(now)

    def streams_of(self, subject: str) -> list[str] | SourceError:
        """Return the names of the streams that take subjects of this pattern."""
        if (denied := self.may_not_ask("$JS.API.STREAM.NAMES")) is not None:
            return denied
        return [name for name, one in self.streams.items() if any(overlaps(subject, theirs) for theirs in one.subjects)]

    def state_of_stream(self, name: str, now: float) -> StreamState | SourceError | None:
        """Return what there is to know of a stream."""
        if (denied := self.may_not_ask(f"$JS.API.STREAM.INFO.{name}")) is not None:
            return denied
        stream = self.streams.get(name)
        if stream is not None and now < stream.leaderless_until:
            return SourceError(f"the stream {name!r} has no leader, and only that answers", reason=reasons.TIMEOUT)
        return None if stream is None else stream.state

    def ensure_stream(self, wanted: StreamConfig, now: float) -> tuple[StreamConfig, bool] | SourceError:
        """Return what a stream is, made if there is none of that name, and True if it was made; or why not.

        It deletes nothing: limits with `discard` "old" are not kept.
        """
        if not self.jetstream:
            return SourceError("JetStream is not enabled", reason=reasons.NO_JETSTREAM)
        state = self.state_of_stream(wanted.name, now)
        if isinstance(state, SourceError):
            return state
        if state is not None:
            return self.streams[wanted.name].config, False
        if (denied := self.may_not_ask(f"$JS.API.STREAM.CREATE.{wanted.name}")) is not None:
            return denied
        window = DUPLICATE_WINDOW if wanted.duplicate_window is None else wanted.duplicate_window
        if wanted.duplicate_window is None and wanted.max_age:
            window = min(window, wanted.max_age)
        refuses_at = wanted.max_messages if wanted.discard == "new" and wanted.max_messages > 0 else None
        try:
            self.add_stream(
                wanted.name, wanted.subjects, duplicate_window=window, max_messages=refuses_at, config=wanted
            )
        except ValueError as error:
            return SourceError(str(error), reason=reasons.STREAM_REFUSED)
        return self.streams[wanted.name].config, True

    def delete_consumer(self, stream: str, durable: str) -> None:
        """Delete a consumer; whoever waits for its messages is told. Raises `KeyError` if there is none."""
        self.consumers.pop((stream, durable)).delete()

    def ack(self, reply: bytes, now: float) -> None:
        """The message with this reply subject is done."""
        consumer, sequence = self._delivered(reply)
        self.watch.answered("ack")
        if consumer is not None:
            self.losses.meets("ack", now, lambda: self._acked(consumer, sequence, now))

    def _acked(self, consumer: Consumer, sequence: int, now: float) -> None:
        if consumer.ack(sequence):
            self.watch.ack_taken(consumer.spec.stream, consumer.spec.durable, sequence, now)

    def term(self, reply: bytes, now: float) -> None:
        """The message with this reply subject is given up."""
        consumer, sequence = self._delivered(reply)
        self.watch.answered("nak")
        if consumer is not None:
            self.losses.meets("nak", now, lambda: self._termed(consumer, sequence, now))

    def _termed(self, consumer: Consumer, sequence: int, now: float) -> None:
        if consumer.ack(sequence):
            self.watch.term_taken(consumer.spec.stream, consumer.spec.durable, sequence, now)

    def nak(self, reply: bytes, now: float, delay: float) -> None:
        """Deliver the message with this reply subject again, after `delay` seconds."""
        consumer, sequence = self._delivered(reply)
        self.watch.answered("nak")
        if consumer is not None:
            self.losses.meets("nak", now, lambda: consumer.nak(sequence, now + delay))

    def in_progress(self, reply: bytes, now: float) -> None:
        """The ack wait of the message with this reply subject starts anew."""
        consumer, sequence = self._delivered(reply)
        if consumer is not None:
            self.losses.meets("in_progress", now, lambda: consumer.extend_ack_wait(sequence, now))

    def _delivered(self, reply: bytes) -> tuple[Consumer | None, int]:
        words = reply.decode("ascii", "replace").split(".")
        if len(words) != 9 or words[:2] != ["$JS", "ACK"]:
            raise ValueError(f"{reply!r} is not the reply subject of a JetStream message: only those can be acked")
        return self.consumers.get((words[2], words[3])), int(words[5])

    # --- time ---

    def poll(self, now: float) -> None:
        """Do what is due: deliver to waiting pull requests, and end those whose time is over."""
        for part in self._timed():
            part.poll(now)

    def next_due(self) -> float:
        """Return when `poll` has something to do if nothing else happens before; infinity for never."""
        return min(part.next_due() for part in self._timed())

    def _timed(self) -> Iterator[Timed]:
        yield self.losses
        yield from self.consumers.values()


def _mismatch(spec: ConsumerSpec, consumer: Consumer) -> SourceError | None:
    """Refuse what a real link would: waits and limits may differ, but not what a consumer delivers."""
    has, wanted = (", ".join(sorted(one.filters)) or ">" for one in (consumer.spec, spec))
    differences = [f"its filter is {has}, the route's is {wanted}"] if has != wanted else []
    if spec.standby is not consumer.spec.standby:
        differences.append("it has a priority group, as standby needs, or the route does, and the other has none")
    if consumer.headers_only:
        differences.append("it delivers only headers (headers_only), the payloads are needed")
    if not differences:
        return None
    return SourceError(
        f"the durable {spec.durable!r} of stream {spec.stream!r} exists with another configuration: "
        f"{'; '.join(differences)}. Use another `durable`, or delete that consumer",
        reason=reasons.CONSUMER_MISMATCH,
    )
