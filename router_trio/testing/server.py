"""The server behind the fake links: it delivers publishes to subscriptions, and has streams and consumers.

Synchronous, without links and without a clock: callers pass the time and the functions that receive messages.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from router_trio.errors import FilterDiffersError, SourceError, reasons
from router_trio.link import (
    ConsumerSpec,
    ConsumerState,
    CopiedUpTo,
    LeadState,
    Newest,
    PartitionedSpec,
    PartitionedStream,
    SchedulesCount,
    SchedulesSpec,
    StreamState,
)
from router_trio.protocol.advisories import CREATED, DELETED, subject_of
from router_trio.protocol.consumer import beyond_end
from router_trio.protocol.framing import text, wire
from router_trio.protocol.headers import decode
from router_trio.protocol.stream_config import StreamConfig
from router_trio.subjects.partitions import read_transforms
from router_trio.subjects.patterns import covers, matches, overlaps
from router_trio.testing.consumers import Consumer, Receive
from router_trio.testing.frames import Publish, raw, status
from router_trio.testing.losses import ADVISORY, Losses, Timed
from router_trio.testing.members import STREAM as MEMBERS
from router_trio.testing.members import Bucket
from router_trio.testing.streams import EPOCH, Copying, Schedule, Stored, Stream, refusal_of
from router_trio.testing.watch import PublishedMessage, Watch

DUPLICATE_WINDOW = 120.0
"""The default duplicate window of a stream, in seconds."""

SCHEDULES_EVERY = 0.25
"""Seconds between two looks of a stream for schedules that are due."""


@dataclass(frozen=True, eq=False, slots=True)
class Interest:
    """A subscription on the server."""

    pattern: str
    queue: str | None
    receive: Receive


class Server:
    """Subscriptions, streams, consumers and permissions. `epoch`: see `Stream`."""

    def __init__(self, epoch: float = EPOCH) -> None:
        self.watch: Watch = Watch()
        self.losses: Losses = Losses()
        self.when_stored: dict[Callable[[], object], None] = {}
        """Functions to call when a stream has stored a message."""
        self._epoch = epoch
        self.published: list[PublishedMessage] = []
        self.streams: dict[str, Stream] = {}
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self.bucket: Bucket | None = None
        """The bucket of the members of partitioned routes, once it was created."""
        self.jetstream: bool = True
        """False if JetStream is disabled, so that no stream can be created."""
        self.denied_publishes: list[str] = []
        self.denied_subscriptions: list[str] = []
        self.half_open = False
        """True while links that die count as open, so that their pull requests still get messages."""
        self._streams_created = 0
        self._polled_at = 0.0
        self._interests: list[Interest] = []
        self._turns: Counter[str] = Counter()

    # --- publish and subscribe ---

    def may_publish(self, subject: str) -> bool:
        """Return True if the permissions allow to publish to a subject."""
        return not any(matches(pattern, subject) for pattern in self.denied_publishes)

    def may_not_ask(self, subject: str) -> SourceError | None:
        """Return the error of a request that the permissions deny; None if they allow it."""
        if self.may_publish(subject):
            return None
        detail = f"this user may not publish to {subject!r}; grant this user the permission"
        return SourceError(detail, reason=reasons.PERMISSION_DENIED)

    def receive(self, publish: Publish, now: float, is_own: Callable[[Receive], bool]) -> None:
        """Record a publish from a link, and deliver it. See `publish` for `is_own`."""
        self.published.append(PublishedMessage(text(publish.subject), decode(publish.header), publish.payload))
        self.watch.received(publish, now)
        self.publish(publish, now, is_own)

    def publish(self, publish: Publish, now: float, is_own: Callable[[Receive], bool] = lambda receive: False) -> None:
        """Deliver to subscriptions, store in the stream that takes the subject, and answer on the reply subject.

        The PubAck of a stream is delivered to all subscribers of the reply subject. If nothing takes the subject, a
        503 status is delivered only to the publisher: to receivers for which `is_own` is true.
        """
        subject = text(publish.subject)
        delivered = self._deliver(subject, publish)
        takers = [stream for stream in self.streams.values() if stream.takes(subject)]
        stream = min(takers, key=lambda stream: stream.fallback, default=None)
        if stream is not None and stream.cut_off:
            return
        if stream is not None and now >= stream.leaderless_until:
            self._store(stream, publish, now)
        elif publish.reply:
            self.watch.refused(publish, reasons.NO_RESPONDERS, now)
            if delivered:
                return  # a receiver may answer
            for receive in filter(is_own, self._receivers(text(publish.reply))):
                receive(status(publish.reply, "503"))

    def _store(self, stream: Stream, publish: Publish, now: float) -> None:
        before = len(stream.stored)
        pub_ack = stream.store(publish, now)
        if len(stream.stored) > before:
            self._notify(stream, stream.stored[before:], now)
            if (schedule := stream.schedules.get(text(publish.subject))) is not None:
                self._wait_for(stream, text(publish.subject), schedule, now)
        elif b"error" in pub_ack:
            self.watch.refused(publish, refusal_of(json.loads(pub_ack)["error"]["err_code"]), now)
        if not publish.reply:
            return
        answer = partial(self._deliver, text(publish.reply), Publish(publish.reply, b"", b"", pub_ack))
        if stream.answers_after:
            self.losses.schedule(now + stream.answers_after, answer)
        else:
            self.losses.apply("puback", now, answer)

    def _wait_for(self, stream: Stream, subject: str, schedule: Schedule, now: float) -> None:
        """Publish a schedule when it is due, also after a time without a leader. Core subscribers do not receive it."""
        due = schedule.due_ns / 1e9 - stream.epoch
        at = max(due, now + SCHEDULES_EVERY, stream.leaderless_until)
        self.losses.schedule(at, lambda: self._due(stream, subject, schedule, max(at, self.losses.now)))

    def _due(self, stream: Stream, subject: str, schedule: Schedule, now: float) -> None:
        if self.streams.get(stream.name) is not stream or stream.schedules.get(subject) != schedule:
            return
        if stream.cut_off or now < stream.leaderless_until or not stream.is_due(subject, now):
            self._wait_for(stream, subject, schedule, now)
        else:
            self._notify(stream, [stream.publish_schedule(subject, now)], now)

    def _notify(self, stream: Stream, stored: Iterable[Stored], now: float) -> None:
        for one in stored:
            self.watch.stored(stream, one, now)
            for notify in tuple(self.when_stored):
                notify()

    def subscribe(self, pattern: str, queue: str | None, receive: Receive) -> Interest | SourceError:
        """Add a subscription, or return the error."""
        if any(matches(denied, pattern) for denied in self.denied_subscriptions):
            return SourceError(
                f'Permissions Violation for Subscription to "{pattern}"', reason=reasons.PERMISSION_DENIED
            )
        interest = Interest(pattern, queue, receive)
        self._interests.append(interest)
        return interest

    def remove_receiver(self, receive: Receive, *, unnoticed: bool = False) -> None:
        """Remove the subscriptions of a receiver, and its pull requests unless its link died `unnoticed`."""
        self._interests = [interest for interest in self._interests if interest.receive != receive]
        for consumer in self.consumers.values():
            if unnoticed:
                consumer.strand_requests(receive)
            else:
                consumer.remove_requests(receive)

    def _deliver(self, subject: str, publish: Publish) -> bool:
        receivers = self._receivers(subject)
        message = raw(*publish)
        for receive in receivers:
            receive(message)
        return bool(receivers)

    def advise(self, kind: str, stream: str, durable: str = "", **fields: object) -> None:
        """Send an advisory to its subscribers, once."""
        body = {"stream": stream, **({"consumer": durable} if durable else {}), **fields}
        subject = subject_of(kind, stream, durable)
        publish = Publish(wire(subject), b"", b"", json.dumps(body).encode())
        self.losses.apply(ADVISORY, self._polled_at, lambda: self._deliver(subject, publish))

    def _receivers(self, subject: str) -> list[Receive]:
        receivers: list[Receive] = []
        groups: dict[str, list[Receive]] = {}
        for interest in self._interests:
            if matches(interest.pattern, subject):
                group = receivers if interest.queue is None else groups.setdefault(interest.queue, [])
                group.append(interest.receive)
        for queue, members in groups.items():
            # In turn, where a real server chooses at random: a test must know the next receiver.
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
        copying: Copying | None = None,
    ) -> None:
        """Create a stream. Raises `ValueError` if the name or a subject is taken, `SubjectError` for a bad subject."""
        stream = Stream(
            name,
            subjects,
            # Streams of two servers with one name are different streams.
            created=f"incarnation {self._streams_created + 1}"
            + (f" since {self._epoch}" if self._epoch != EPOCH else ""),
            duplicate_window=duplicate_window,
            max_messages=max_messages,
            epoch=self._epoch,
            fallback=fallback,
            config=config,
            copying=copying,
        )
        if name in self.streams:
            raise ValueError(f"stream {name!r} already exists: delete it first, or use another name")
        for other in self.streams.values():
            if other.fallback == fallback and other.overlaps(stream):
                raise ValueError(f"stream {name!r}: subjects overlap with those of stream {other.name!r}")
        self.streams[name] = stream
        self._streams_created += 1
        self.advise(CREATED, name)

    def set_clock(self, seconds: float) -> None:
        """Set the clock of the server forward, or back by a negative number: see `trouble.Trouble.set_clock`."""
        self._epoch += seconds
        for stream in self.streams.values():
            stream.epoch += seconds

    def delete_stream(self, name: str) -> None:
        """Delete a stream and its consumers. Raises `KeyError` if it does not exist."""
        del self.streams[name]
        self.advise(DELETED, name)
        for stream, durable in list(self.consumers):
            if stream == name:
                self.delete_consumer(stream, durable)

    def open_consumer(self, spec: ConsumerSpec, now: float = inf) -> Consumer | SourceError:
        """Return the durable consumer, created if missing, or the error."""
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
            if (wrong := beyond_end(spec, len(stream.stored))) is not None:
                return wrong
            consumer = self.consumers[spec.stream, spec.durable] = Consumer(
                spec, stream, self.losses, partial(self.advise, stream=spec.stream, durable=spec.durable)
            )
        if now < consumer.leaderless_until:
            return SourceError(f"the durable {spec.durable!r} has no leader", reason=reasons.JETSTREAM_UNAVAILABLE)
        mismatch = _mismatch(spec, consumer)
        if mismatch is not None:
            return mismatch
        consumer.lifted = _lifted(spec, consumer) or consumer.lifted
        return consumer

    def pin_for(self, spec: ConsumerSpec, now: float) -> str | SourceError | None:
        """Return the pin of a standby consumer; None if another pin has the lead; or the error."""
        denied = self.may_not_ask(f"$JS.API.CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}")
        if denied is not None:
            return denied
        if (spec.stream, spec.durable) not in self.consumers:
            detail = f"the durable {spec.durable!r} of stream {spec.stream!r} does not answer"
            return SourceError(detail, reason=reasons.CONSUMER_DELETED)
        consumer = self.open_consumer(spec, now)
        return consumer if isinstance(consumer, SourceError) else consumer.take_pin(spec.pin, now)

    def unpin(self, spec: ConsumerSpec, now: float) -> None:
        """End the lead of the pin of a spec."""
        consumer = self.consumers.get((spec.stream, spec.durable))
        if consumer is not None:
            consumer.drop_pin(spec.pin, now)

    def lead_state(self, stream: str, durable: str, now: float) -> LeadState | SourceError:
        """Return what `link.Link.lead_state` does, or the error."""
        if (denied := self.may_not_ask(f"$JS.API.CONSUMER.INFO.{stream}.{durable}")) is not None:
            return denied
        consumer = self.consumers.get((stream, durable))
        if consumer is None:
            return LeadState(unled=True)
        if not consumer.has_leader(now):
            return SourceError(f"the durable {durable!r} has no leader, which alone answers", reason=reasons.TIMEOUT)
        return consumer.lead_state(now)

    def check_consumer(
        self, spec: ConsumerSpec, opened: Consumer | None, now: float, *, oldest: bool = False
    ) -> ConsumerState | SourceError:
        """Return the state of the durable consumer of a spec, or the error. See `link.PullConsumer.check`.

        `opened` is the durable that the link found when it was opened; None to check none.
        """
        if (denied := self.may_not_ask(f"$JS.API.CONSUMER.INFO.{spec.stream}.{spec.durable}")) is not None:
            return denied
        consumer = self.consumers.get((spec.stream, spec.durable))
        if consumer is None:
            detail = f"the durable {spec.durable!r} of stream {spec.stream!r} was deleted; it is created again"
            return SourceError(detail, reason=reasons.CONSUMER_NOT_FOUND)
        if not consumer.has_leader(now):
            detail = f"the durable {spec.durable!r} has no leader, which alone answers"
            return SourceError(detail, reason=reasons.TIMEOUT)
        if opened not in (None, consumer):
            detail = f"the durable {spec.durable!r} of stream {spec.stream!r} was deleted and created again"
            return SourceError(detail, reason=reasons.CONSUMER_DELETED)
        refused = _mismatch(spec, consumer)
        if refused is not None:
            return refused
        may_look = oldest and self.may_not_ask(f"$JS.API.STREAM.MSG.GET.{spec.stream}") is None
        first, lifted = consumer.oldest if may_look else None, _lifted(spec, consumer)
        return replace(consumer.state_at(now), oldest=first, lifted=lifted)

    def streams_of(self, subject: str) -> list[str] | SourceError:
        """Return the names of the streams that take subjects of this pattern, or the error."""
        if (denied := self.may_not_ask("$JS.API.STREAM.NAMES")) is not None:
            return denied
        return [
            name
            for name, stream in self.streams.items()
            if any(overlaps(subject, theirs) for theirs in stream.subjects)
        ]

    def state_of_stream(self, name: str, now: float) -> StreamState | SourceError | None:
        """Return the state of a stream; None if it does not exist; or the error."""
        if (denied := self.may_not_ask(f"$JS.API.STREAM.INFO.{name}")) is not None:
            return denied
        stream = self.streams.get(name)
        if stream is not None and now < stream.leaderless_until:
            return SourceError(f"the stream {name!r} has no leader, which alone answers", reason=reasons.TIMEOUT)
        return None if stream is None else stream.state(now)

    def count_subjects(self, name: str, pattern: str, now: float) -> int | SourceError:
        """Return on how many subjects of `pattern` a stream has messages, or the error."""
        state = self.state_of_stream(name, now)
        if isinstance(state, SourceError):
            return state
        return 0 if state is None else self.streams[name].count_subjects(pattern)

    def count_schedules(self, spec: SchedulesSpec, now: float) -> SchedulesCount | SourceError:
        """Return the schedules of a stream, or the error. Published messages stay in the stream."""
        for request in (f"STREAM.INFO.{spec.stream}", f"STREAM.MSG.GET.{spec.stream}"):
            if (denied := self.may_not_ask(f"$JS.API.{request}")) is not None:
                return denied
        stream = self.streams.get(spec.stream)
        if stream is None or now < stream.leaderless_until:
            detail = f"the stream {spec.stream!r} has no leader, which alone answers"
            return SourceError(detail, reason=reasons.JETSTREAM_UNAVAILABLE)
        return stream.count_schedules()

    def newest(self, name: str, subject: str, now: float) -> Newest | SourceError | None:
        """Return the newest message of a stream with this subject; None if there is none; or the error."""
        if (denied := self.may_not_ask(f"$JS.API.STREAM.MSG.GET.{name}")) is not None:
            return denied
        stream = self.streams.get(name)
        if stream is None:
            return SourceError(f"there is no stream {name!r}", reason=reasons.STREAM_NOT_FOUND)
        if now < stream.leaderless_until:
            return SourceError(f"the stream {name!r} has no leader, which alone answers", reason=reasons.TIMEOUT)
        return stream.newest(subject)

    def ensure_stream(self, config: StreamConfig, now: float) -> tuple[StreamConfig, bool] | SourceError:
        """Return the configuration of a stream, created if missing, and True if it was created; or the error.

        Streams delete nothing: limits with `discard` "old" have no effect.
        """
        if not self.jetstream:
            return SourceError("JetStream is not enabled", reason=reasons.NO_JETSTREAM)
        state = self.state_of_stream(config.name, now)
        if isinstance(state, SourceError):
            return state
        if state is not None:
            return self.streams[config.name].config, False
        if (denied := self.may_not_ask(f"$JS.API.STREAM.CREATE.{config.name}")) is not None:
            return denied
        window = DUPLICATE_WINDOW if config.duplicate_window is None else config.duplicate_window
        if config.duplicate_window is None and config.max_age:
            window = min(window, config.max_age)
        refuses_at = config.max_messages if config.discard == "new" and config.max_messages > 0 else None
        try:
            self.add_stream(
                config.name, config.subjects, duplicate_window=window, max_messages=refuses_at, config=config
            )
        except ValueError as error:
            return SourceError(str(error), reason=reasons.STREAM_REFUSED)
        return self.streams[config.name].config, True

    # --- partitions ---

    def ensure_bucket(self, now: float) -> Bucket | SourceError:
        """Return the bucket of the members, created if missing; or the error."""
        if not self.jetstream:
            return SourceError("JetStream is not enabled", reason=reasons.NO_JETSTREAM)
        if (denied := self.may_not_ask(f"$JS.API.STREAM.INFO.{MEMBERS}")) is not None:
            return denied
        if self.bucket is None:
            if (denied := self.may_not_ask(f"$JS.API.STREAM.CREATE.{MEMBERS}")) is not None:
                return denied
            self.bucket = Bucket()
        if now < self.bucket.leaderless_until:
            return SourceError("the bucket has no leader, which alone answers", reason=reasons.TIMEOUT)
        if self.bucket.keeps:
            return SourceError("the keys of the bucket do not expire", reason=reasons.BUCKET_MISMATCH)
        return self.bucket

    def ensure_partitioned(self, wanted: PartitionedSpec, now: float) -> PartitionedStream | SourceError:
        """Return the stream that has the partitions of a route, created if missing; or the error."""
        state = self.state_of_stream(wanted.stream, now)
        if isinstance(state, SourceError):
            return state
        if state is None:
            detail = f"there is no stream {wanted.stream!r}; create it first"
            return SourceError(detail, reason=reasons.STREAM_NOT_FOUND)
        source = self.streams[wanted.stream]
        if _has_partitions(source):
            return self._with_partitions(source, wanted, source, now)
        found = self.state_of_stream(wanted.derived, now)
        if isinstance(found, SourceError):
            return found
        if found is None and (denied := self.may_not_ask(f"$JS.API.STREAM.CREATE.{wanted.derived}")) is not None:
            return denied
        earlier = wanted.derived.removeprefix(f"{wanted.stream}-")
        if found is None and (wanted.stream, earlier) in self.consumers:
            detail = (
                f"the durable {earlier!r} of stream {wanted.stream!r} exists: the route has read it without partitions"
            )
            return SourceError(detail, reason=reasons.CONSUMER_MISMATCH)
        if found is None:
            config = wanted.declared or replace(source.config, name=wanted.derived, discard="old")
            self.add_stream(
                wanted.derived,
                (),
                duplicate_window=source.duplicate_window,
                max_messages=None,
                config=replace(config, subjects=()),
                copying=Copying(wanted.stream, wanted.partitioning, source.first_since(wanted.deliver)),
            )
            self._copy(now)
        answer = self._with_partitions(self.streams[wanted.derived], wanted, source, now)
        return answer if isinstance(answer, SourceError) else replace(answer, created=found is None)

    def _with_partitions(
        self, stream: Stream, wanted: PartitionedSpec, source: Stream, now: float
    ) -> PartitionedStream | SourceError:
        """Return a stream as one with the partitions of a route; or the error."""
        copying, partitioning = stream.copying, wanted.partitioning
        origin = "" if copying is None else copying.source
        transform = stream.config.transform
        has = copying.partitioning if copying else read_transforms([transform] if transform else ())
        compare = partitioning.disorder if stream is source else partitioning.difference
        why = "it has none" if has is None else compare(has)
        if why is None and stream is not source and origin != source.name:
            why = f"it sources {origin!r}"
        if why is not None:
            detail = f"the stream {stream.name!r} has other partitions: {why}; correct the route"
            return SourceError(detail, reason=reasons.PARTITIONS_DIFFER)
        found = PartitionedStream(stream.name, origin, replicas=source.config.replicas, storage=source.config.storage)
        if copying is None or (copied := self.streams.get(copying.source)) is None:
            return found
        went_back = copying.look(copied, stream.stored, wanted, now)
        heard_at = int((stream.epoch + copying.copied_at) * 1e9)
        is_announced = copying.announced_at < inf
        known = None
        if not is_announced and 0 < copying.copied <= len(copied.stored):
            time = copied.stored[copying.copied - 1].timestamp
            known = CopiedUpTo(copying.copied, time, int((stream.epoch + now) * 1e9))
        return replace(
            found,
            lag=len(copying.behind(copied)),
            sourced=copying.copied,
            sourced_at=max(heard_at, 0),
            reused=copying.reused,
            is_announced=is_announced,
            went_back=went_back,
            known=known,
        )

    def _copy(self, now: float) -> None:
        """Have each stream that copies another one copy its new messages."""
        for stream in list(self.streams.values()):
            source = None if stream.copying is None else self.streams.get(stream.copying.source)
            if source is not None:
                self._notify(stream, stream.copy_from(source, now), now)

    def _copies_at(self) -> float:
        """Return the next time at which a stream has something to copy; or infinity."""
        waits = [
            max(copying.stalled_until, stream.leaderless_until, source.leaderless_until)
            for stream in self.streams.values()
            if (copying := stream.copying) is not None
            and (source := self.streams.get(copying.source)) is not None
            and copying.next <= len(source.stored)
        ]
        return min(waits, default=inf)

    # --- answers ---

    def delete_consumer(self, stream: str, durable: str) -> None:
        """Delete a consumer and end its pull requests with a status. Raises `KeyError` if it does not exist."""
        self.consumers.pop((stream, durable)).delete()
        self.advise(DELETED, stream, durable)

    def ack(self, reply: bytes, now: float, by: bytes = b"") -> None:
        """Ack the message with this reply subject. `by`, here and below: the inbox of the link that answers."""
        consumer, sequence = self._delivered(reply, now)
        self.watch.answered("ack")
        if consumer is not None:
            self.losses.apply("ack", now, lambda: self._acked(consumer, sequence, now, by))

    def _acked(self, consumer: Consumer, sequence: int, now: float, by: bytes) -> None:
        if consumer.ack(sequence, by):
            self.watch.ack_taken(consumer.spec.stream, consumer.spec.durable, sequence, now)

    def term(self, reply: bytes, now: float, by: bytes = b"") -> None:
        """Terminate the message with this reply subject: it is not redelivered."""
        consumer, sequence = self._delivered(reply, now)
        self.watch.answered("nak")
        if consumer is not None:
            self.losses.apply("nak", now, lambda: self._termed(consumer, sequence, now, by))

    def _termed(self, consumer: Consumer, sequence: int, now: float, by: bytes) -> None:
        if consumer.ack(sequence, by):
            self.watch.term_taken(consumer.spec.stream, consumer.spec.durable, sequence, now)

    def nak(self, reply: bytes, now: float, delay: float, by: bytes = b"") -> None:
        """Redeliver the message with this reply subject after `delay` seconds."""
        consumer, sequence = self._delivered(reply, now)
        self.watch.answered("nak")
        if consumer is not None:
            self.losses.apply("nak", now, lambda: consumer.nak(sequence, now, delay, by))

    def in_progress(self, reply: bytes, now: float, by: bytes = b"") -> None:
        """Restart the ack wait of the message with this reply subject."""
        consumer, sequence = self._delivered(reply, now)
        if consumer is not None:
            self.losses.apply("in_progress", now, lambda: consumer.extend_ack_wait(sequence, now, by))

    def _delivered(self, reply: bytes, now: float) -> tuple[Consumer | None, int]:
        words = reply.decode("ascii", "replace").split(".")
        if len(words) != 9 or words[:2] != ["$JS", "ACK"]:
            raise ValueError(f"{reply!r} is not the reply subject of a JetStream message; only those can be acked")
        consumer = self.consumers.get((words[2], words[3]))
        # An answer to a consumer without a leader reaches nothing.
        return None if consumer is not None and now < consumer.leaderless_until else consumer, int(words[5])

    # --- time ---

    def poll(self, now: float) -> None:
        """Do everything that is due: deliver to pull requests, and end expired ones."""
        self._polled_at = now
        self._copy(now)
        for part in self._timed():
            part.poll(now)

    def next_due(self) -> float:
        """Return the next time at which `poll` has something to do, unless something else happens; or infinity."""
        return min(self._copies_at(), *(part.next_due() for part in self._timed()))

    def _timed(self) -> Iterator[Timed]:
        yield self.losses
        yield from self.consumers.values()


def _has_partitions(stream: Stream) -> bool:
    """Return True if every message of a stream has its partition as the first token of its subject."""
    transform = stream.config.transform
    if stream.copying is not None:
        return True
    found = read_transforms([transform]) if transform else None
    return found is not None and all(covers(found.patterns[0], one) for one in stream.subjects)


def _lifted(spec: ConsumerSpec, consumer: Consumer) -> Sequence[str]:
    """Remove the limit of deliveries of a durable as a router does. Return it as it was; nothing if there was none."""
    before = consumer.spec.max_deliver
    if consumer.is_fixed or not 0 < before != spec.max_deliver:
        return ()
    consumer.spec = replace(consumer.spec, max_deliver=spec.max_deliver)
    return (f"max_deliver = {before}",)


def _mismatch(spec: ConsumerSpec, consumer: Consumer) -> SourceError | None:
    """Return the error of a real link: waits and limits may differ, but not the messages that a consumer delivers."""
    actual, expected = (", ".join(sorted(consumer_spec.filters)) or ">" for consumer_spec in (consumer.spec, spec))
    differences = [f"its filter is {actual}, the route's is {expected}"] if actual != expected else []
    if spec.standby is not consumer.spec.standby:
        differences.append("only one of durable and route uses a priority group, which standby needs")
    if consumer.headers_only:
        differences.append("it delivers only headers (headers_only), but the route needs payloads")
    if not differences:
        return None
    error = SourceError if actual == expected or len(differences) > 1 else FilterDiffersError
    return error(
        f"the durable {spec.durable!r} of stream {spec.stream!r} exists with another configuration: "
        f"{'; '.join(differences)}. Use another `durable`, or delete that consumer",
        reason=reasons.CONSUMER_MISMATCH,
    )
