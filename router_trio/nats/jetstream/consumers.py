"""Durable pull consumers: found or created through the JetStream API, with messages delivered over the wire.

`api` sends requests and reads their answers. Every failure becomes a `SourceError` here, with
what differs and how to correct it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import trio

from router_trio.errors import SourceError, codes, reasons
from router_trio.errors.quotes import excerpt
from router_trio.link import (
    IDLE_HEARTBEAT,
    LISTEN_FOR,
    LOOKUP_WITHIN,
    ConsumerSpec,
    ConsumerState,
    Deliver,
    Limits,
    Progress,
    Subscription,
)
from router_trio.nats.jetstream.api import (
    API_TIMEOUT,
    NOT_FOUND,
    UNAVAILABLE,
    Api,
    ApiError,
    ConsumerConfig,
    ConsumerInfo,
    NoResponders,
    Reached,
    config_fields,
    consumer_info,
    nanoseconds,
    no_jetstream,
    required_level,
    stored_message,
    stream_info,
    too_old,
)
from router_trio.nats.jetstream.consumer_config import LEAD_GROUP, began, compare, config_of, state_of
from router_trio.nats.jetstream.holds import Holds
from router_trio.nats.jetstream.oldest import OldestMessage
from router_trio.nats.jetstream.streams import (
    Lookups,
    evidence_of_going_back,
    has_last_message,
    is_doubtful,
    is_name,
    look_up,
    lookup_error,
    other_message,
)
from router_trio.nats.jetstream.unacked import find_between
from router_trio.protocol import ack_reply, framing
from router_trio.protocol.consumer import beyond_end
from router_trio.protocol.framing import RawMessage

STALE_PULLS_END_WITHIN = 0.5
STALE_PULLS_POLL = 0.05
"""Seconds that the server gets to notice that our previous link is dead, and to drop its pull requests."""

NEVER_UNUSED_FOR = 10 * 365 * 86_400.0
"""Seconds, set in place of a shorter time after which an unused durable would be deleted."""

MOST_LOOKED_FOR = 16
"""Messages that one call of `gone` looks up in the stream."""

NOTE_TAKEN_WITHIN = 5.0
"""Seconds to wait for the answer that naks were processed, behind a round trip of the link: see `Api.ask`.

Without it a route requests nothing for the ack wait.
"""

NOT_DELIVERED = 2**62
"""A sequence that no message has: the server accepts an answer to it, and confirms it if requested."""

HOLD_EVERY = 1.0
"""Seconds between two requests that keep the lead of a standby consumer."""

OTHERS_END_WITHIN = 2.5
"""Seconds to wait for the end of the requests of processes that did not get the lead: see `standby.ASK_FOR`."""

Subscribe = Callable[[str, Deliver], Awaitable[Subscription]]
OwnAnswers = Callable[[], contextlib.AbstractContextManager[Collection[bytes]]]
"""Returns a context that yields the subjects of all answers to deliveries that this link sends while it is entered."""


@dataclass(frozen=True, slots=True)
class FoundConsumer:
    """A durable as found on the server. `ack_wait` in seconds."""

    ack_wait: float
    stream_created: str
    went_back: str | None
    progress: Progress
    limits: Limits
    unacked: range
    num_unacked: int
    lifted: Sequence[str]
    ahead: bool
    """True if its ack floor is beyond the last message of the stream, which was rolled back."""
    state: ConsumerState
    created: str = ""
    """When it was created; `""` if unknown."""


class WirePullConsumer:
    """A `link.PullConsumer` whose messages are sent to an inbox on the wire. Created by `open_consumer` of a link."""

    def __init__(
        self,
        spec: ConsumerSpec,
        found: FoundConsumer,
        inbox: bytes,
        api: Api,
        lookups: Lookups,
        send: Callable[[bytes], None],
        subscription: Subscription,
        lookup_limit: trio.CapacityLimiter,
        holds: Holds,
    ) -> None:
        self.ack_wait: float = found.ack_wait
        self.stream_created: str = found.stream_created
        self.went_back: str | None = found.went_back
        self.progress: Progress = found.progress
        self._last_delivery = found.progress.deliveries
        """The consumer's number of its last delivery that was looked up."""
        self.limits: Limits = found.limits
        self.lifted: Sequence[str] = found.lifted
        self._unacked = found.unacked
        self._num_unacked = found.num_unacked
        self._ahead = found.ahead
        self._created = found.created
        self._spec = spec
        self._api = api
        self._lookups = lookups
        self._lead: dict[str, object] = {"group": LEAD_GROUP, "id": spec.pin} if spec.standby else {}
        self._held_at = -inf
        self._holds = holds
        self._proved: Callable[[float], None] | None = None
        self._refused: Callable[[], None] | None = None
        self._request_subject = framing.wire(api.subject_of(f"CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}"))
        self._inbox = inbox
        self._send = send
        self._subscription = subscription
        self._lookup_limit = lookup_limit
        self._oldest = OldestMessage(api, spec, lookup_limit)

    async def check(self, *, oldest: bool = False) -> ConsumerState:
        spec = self._spec
        try:
            info = await self._lookups.ask(f"CONSUMER.INFO.{spec.stream}.{spec.durable}", b"", consumer_info)
        except ApiError as error:
            if error.code == NOT_FOUND and error.error_code != codes.STREAM_NOT_FOUND:
                detail = f"the durable {spec.durable!r} of stream {spec.stream!r} was deleted; it is created again"
                raise SourceError(detail, reason=reasons.CONSUMER_NOT_FOUND) from error
            raise _refused(spec, error) from error
        if self._created and info.created != self._created:
            detail = f"the durable {spec.durable!r} of stream {spec.stream!r} was deleted and created again"
            raise SourceError(detail, reason=reasons.CONSUMER_DELETED)
        self._last_delivery = info.delivered.delivery
        compare(spec, info)
        lifted: Sequence[str] = ()
        config, limits = info.config, self.limits
        expires = _expires(config) and config.inactive_threshold != limits.expires_after
        if expires or (0 < config.max_deliver not in (spec.max_deliver, limits.max_deliver)):
            with trio.move_on_after(LOOKUP_WITHIN):
                config, lifted = await _lift(self._api, spec, config)
            if 0 < config.max_deliver not in (spec.max_deliver, limits.max_deliver):
                # It is opened again with that limit, which the route then goes by and reports.
                detail = (
                    f"the durable {spec.durable!r} of stream {spec.stream!r} was edited: it now delivers a message "
                )
                raise SourceError(f"{detail}{config.max_deliver} times at most", reason=reasons.CONSUMER_MISMATCH)
            if expires and _expires(config):
                detail = f"the durable {spec.durable!r} of stream {spec.stream!r} now expires when it is unused for "
                detail += f"{config.inactive_threshold:g} s (inactive_threshold)"
                raise SourceError(detail, reason=reasons.CONSUMER_EXPIRES)
        first = await self._oldest.find(info) if oldest else None
        state = replace(state_of(spec, info), lifted=lifted, oldest=first)
        return replace(state, passed=0, redelivered=0) if self._ahead else state

    def pull(self, batch: int, expires: float, max_bytes: int = 0, heartbeat: float = IDLE_HEARTBEAT) -> None:
        request: dict[str, object] = {"batch": batch, "max_bytes": max_bytes, "expires": int(expires * 1e9)}
        request |= self._lead
        if expires > 2 * heartbeat:
            request["idle_heartbeat"] = int(heartbeat * 1e9)
        self._send(framing.publish(self._request_subject, json.dumps(request).encode(), reply=self._inbox))

    async def unacked(self, first: int) -> Sequence[int] | None:
        between = range(max(first, self._unacked.start), self._unacked.stop)
        spec = self._spec
        return await find_between(self._api, spec.stream, spec.filters, between, self._num_unacked, self._lookup_limit)

    async def gone(self, awaited: Mapping[int, bytes], in_hand: Callable[[], int]) -> Collection[int]:
        with api_errors(self._spec, self._api):
            info = await _consumer(self._api, self._spec)
            nothing_else = info.num_ack_pending <= in_hand()
            answered = info.delivered.sequence if nothing_else else info.ack_floor.sequence
            found = {sequence for sequence in awaited if sequence <= answered}
            for sequence in [one for one in awaited if one not in found][:MOST_LOOKED_FOR]:
                try:
                    stored = await look_up(self._api, self._spec.stream, {"seq": sequence})
                    if awaited[sequence].isdigit() and nanoseconds(stored.time) != int(awaited[sequence][:20]):
                        found.add(sequence)  # this is another stream by now
                except ApiError as error:
                    if error.code != NOT_FOUND or error.error_code == codes.STREAM_NOT_FOUND:
                        raise
                    found.add(sequence)
            return found

    async def stored(self, first: int, last: int, most: int) -> Sequence[RawMessage]:
        found: dict[int, RawMessage] = {}
        for one in self._spec.filters or (">",):
            await self._find(one, first, last, most, found)
        return [found[sequence] for sequence in sorted(found)[:most]]

    async def claim(self, sequence: int, counted: int) -> bool | None:
        before = await self.check()
        if before.redelivered != counted:
            return None
        if not await self._answered(self._ack_subject(sequence), b"+TERM"):
            return None
        after = await self.check()
        return None if after.redelivered > counted else after.redelivered < counted

    async def _find(self, wanted: str, first: int, last: int, most: int, found: dict[int, RawMessage]) -> None:
        """Add the first messages of a range that one filter matches."""
        for _ in range(most):
            body = json.dumps({"seq": first, "next_by_subj": wanted}).encode()
            try:
                message = await self._lookups.ask(f"STREAM.MSG.GET.{self._spec.stream}", body, stored_message)
            except ApiError as error:
                if error.code == NOT_FOUND and error.error_code != codes.STREAM_NOT_FOUND:
                    return
                raise lookup_error(error) from error
            if not first <= message.sequence <= last:
                return
            reply = self._ack_subject(message.sequence, message.time_ns)
            frame = framing.publish(framing.wire(message.subject), message.payload, reply, message.headers)
            found[message.sequence] = framing.published(frame)
            first = message.sequence + 1

    async def again(self, sequences: Sequence[int]) -> bool:
        subjects = [self._ack_subject(sequence) for sequence in sequences]
        *most, last = subjects
        if self._lead:
            # Requests of the former leader may wait. The server ends them when a message is due, and moves that one
            # behind all others: so only one is due.
            await self._answered(subjects[0], b"-NAK")
            await self._others_end()
        # Some of them are queued for redelivery already: those that the server was about to send when the dead link was
        # closed. They would be delivered before the others. A nak with a delay removes a message from that queue, one
        # without puts it at the end. On a busy server a message may be queued only now, between the two. An answer
        # takes the same path as the messages for the dead link: when it arrives, none of them is left.
        await self._answered(self._ack_subject(NOT_DELIVERED), b"+WPI")
        self._send(b"".join(framing.publish(subject, b'-NAK {"delay": 1}') for subject in subjects))
        self._send(b"".join(framing.publish(subject, b"-NAK") for subject in most))
        # The server processes naks and pulls independently. Only an answer shows that the naks are processed.
        return await self._answered(last, b"-NAK")

    async def _others_end(self) -> None:
        """Wait until the requests of processes that did not get the lead have ended, for a while at most.

        As long as one waits, a message that is due when this process has no request there is moved behind all others.
        """
        spec = self._spec
        with trio.move_on_after(OTHERS_END_WITHIN), contextlib.suppress(SourceError, ApiError):
            while (
                await self._lookups.ask(f"CONSUMER.INFO.{spec.stream}.{spec.durable}", b"", consumer_info)
            ).num_waiting:
                self.hold_lead()
                await trio.sleep(STALE_PULLS_POLL)

    async def _answered(self, ack_subject: bytes, answer: bytes) -> bool:
        """Answer a delivery, and wait until the server has processed the answer. Returns True if it has.

        Waits for `NOTE_TAKEN_WITHIN` seconds at most, behind a round trip.
        """
        with contextlib.suppress(TimeoutError, SourceError, NoResponders):
            await self._api.request(framing.text(ack_subject), answer, NOTE_TAKEN_WITHIN)
            return True
        return False

    def say_at_work(self) -> None:
        self._send(framing.publish(self._ack_subject(NOT_DELIVERED), b"+WPI"))

    def hold_lead(self) -> bool:
        now = trio.current_time()
        if not self._lead or now < self._held_at + HOLD_EVERY:
            return False
        # A request with the pin keeps it, whatever its result: this one has no room for any message.
        self._held_at = now
        request = {"batch": 1, "max_bytes": 1, "no_wait": True, **self._lead}
        body = json.dumps(request).encode()
        self._send(framing.publish(self._request_subject, body, reply=self._holds.reply(self, now)))
        return True

    def watch_lead(self, proved: Callable[[float], None], refused: Callable[[], None]) -> None:
        self._proved, self._refused = proved, refused

    def lead_proved(self, sent_at: float) -> None:
        """Record that a request with the pin, sent at that time, was answered as one with the lead."""
        if self._proved is not None and self._lead:
            self._proved(sent_at)

    def lead_refused(self) -> None:
        """Record that the server answered a request that its pin is not the one with the lead."""
        if self._refused is not None and self._lead:
            self._refused()

    async def acks_processed(self) -> None:
        await self._answered(self._ack_subject(NOT_DELIVERED), b"+WPI")

    def release_lead(self) -> None:
        if self._lead:
            self._lead = {}
            subject = self._api.subject_of(f"CONSUMER.UNPIN.{self._spec.stream}.{self._spec.durable}")
            body = json.dumps({"group": LEAD_GROUP}).encode()
            self._send(framing.publish(framing.wire(subject), body, reply=self._inbox + b"-unpin"))

    def _ack_subject(self, sequence: int, time: int = 0) -> bytes:
        """Return where a delivery of that message is acked. The server reads only the sequence in it.

        The number of the delivery has to be an existing one.
        """
        spec = self._spec
        return ack_reply.subject(
            spec.stream.encode(), spec.durable.encode(), sequence=sequence, number=self._last_delivery, time=time
        )

    def close(self) -> None:
        """End the inbox. The consumer itself is durable and remains."""
        self._subscription.close()

    async def drain(self) -> None:
        """End the inbox once the messages on their way have arrived."""
        await self._subscription.drain()


async def ensure_consumer(api: Api, spec: ConsumerSpec, subscribe: Subscribe, own_answers: OwnAnswers) -> FoundConsumer:
    """Find the durable, or create it. Raises `SourceError`. Can be cancelled."""
    for name in (spec.stream, spec.durable):
        if not is_name(name):
            detail = (
                "is not a valid name of a stream or consumer: use up to 255 characters, no space and none of . * > / \\"
            )
            raise SourceError(f"{excerpt(name)!r} {detail}", reason=reasons.INVALID_NAME)
    with api_errors(spec, api):
        stream = await api.ask(f"STREAM.INFO.{spec.stream}", b"", stream_info)
        if stream.name != spec.stream:
            raise SourceError(
                f"the answer to a lookup of stream {spec.stream!r} is about another stream", reason=reasons.BAD_ANSWER
            )
        if spec.found_by_message and spec.stream_created != stream.created and await has_last_message(api, spec):
            spec = replace(spec, stream_created=stream.created)
        doubtful = is_doubtful(spec, stream)
        went_back = evidence_of_going_back(spec, stream)
        looks_up = doubtful or (spec.owes_acks and spec.stream_created is not None)
        if went_back is None and looks_up:
            went_back = await other_message(api, spec, stream)
        began_behind = 0
        try:
            info = await _consumer(api, spec)
        except ApiError as missing:
            if missing.code != NOT_FOUND or missing.error_code == codes.STREAM_NOT_FOUND:
                raise
            if went_back is None and not looks_up:
                # The start must not be wrong: messages before it are never delivered.
                went_back = await other_message(api, spec, stream)
            if (wrong := beyond_end(spec, stream.last_sequence)) is not None:
                raise wrong from missing
            resumes = spec.start_sequence is not None and spec.stream_created is not None and went_back is None
            info = await _create(api, spec, resumes=resumes)
            # A server before 2.14 doesn't report it.
            if began(info.config) == "new":
                began_behind = stream.last_sequence
            elif isinstance(spec.deliver, int) and spec.stream_created is None:
                began_behind = spec.deliver - 1
        fresh = spec.stream_created is None or went_back is not None
        progress, info = await _progress(api, spec, info, subscribe, own_answers, fresh=fresh)
        last = stream.last_sequence
        if info.ack_floor.sequence > last:
            last = (await api.ask(f"STREAM.INFO.{spec.stream}", b"", stream_info)).last_sequence
    compare(spec, info)
    # Before 2.14 a consumer may be ahead of a stream that was rolled back. It then proves nothing about what is stored
    # there.
    ahead = info.ack_floor.sequence > last
    all_done = not ahead and not info.num_pending and not info.num_ack_pending
    passed = max(began_behind, 0 if ahead else info.ack_floor.sequence, stream.last_sequence if all_done else 0)
    floor = 0 if ahead else info.ack_floor.sequence
    progress = replace(progress, passed=passed, floor=floor, delivered=info.delivered.sequence)
    first = info.ack_floor.sequence + 1
    unacked = range(first, info.delivered.sequence + 1 if info.num_ack_pending else first)
    config, lifted = await _lift(api, spec, info.config)
    return FoundConsumer(
        ack_wait=config.ack_wait or spec.ack_wait,
        stream_created=stream.created,
        went_back=went_back,
        progress=progress,
        limits=Limits(
            config.max_deliver,
            config.max_ack_pending,
            stream.retention,
            () if stream.has_others else stream.subjects,
            began(config),
            config.inactive_threshold if _expires(config) else 0.0,
            config.max_waiting,
            stream.stores,
            stream.allow_message_ttl,
        ),
        unacked=unacked,
        num_unacked=info.num_ack_pending,
        lifted=lifted,
        ahead=ahead,
        created=info.created,
        state=replace(state_of(spec, info), passed=passed),
    )


@contextlib.contextmanager
def api_errors(spec: ConsumerSpec, api: Api) -> Iterator[None]:
    """Turn every error of a request to the API into a `SourceError`."""
    try:
        yield
    except ApiError as error:
        raise _refused(spec, error) from error
    except NoResponders as error:
        raise SourceError(no_jetstream(api.prefix), reason=reasons.JETSTREAM_UNAVAILABLE) from error
    except TimeoutError as error:
        raise SourceError(
            f"the JetStream API did not answer within {API_TIMEOUT:g} s; check that this user may publish to "
            f"{api.prefix}.> and subscribe below its inbox_prefix",
            reason=reasons.TIMEOUT,
        ) from error


async def _create(api: Api, spec: ConsumerSpec, *, resumes: bool) -> ConsumerInfo:
    """Create the durable, allowing as many unacked messages as the server permits.

    Returns the one of another process that was faster, unchanged.
    """
    create = f"CONSUMER.DURABLE.CREATE.{spec.stream}.{spec.durable}"
    most = spec.max_ack_pending
    while True:
        config = config_of(spec, resumes=resumes, max_ack_pending=most)
        body = json.dumps({"stream_name": spec.stream, "config": config, "action": "create"}).encode()
        try:
            return await api.ask(create, body, consumer_info, headers=required_level(config))
        except ApiError as error:
            if error.error_code == codes.CONSUMER_EXISTS:
                return await _consumer(api, spec)
            if error.error_code == codes.LEVEL_REQUIRED:
                text = too_old(f"the durable {spec.durable!r} of stream {spec.stream!r}", config)
                raise SourceError(f"{text}; upgrade it", reason=reasons.SERVER_TOO_OLD) from error
            if error.error_code != codes.TOO_MANY_ACK_PENDING:
                raise
            limit = re.search(r"([0-9]{1,18})\D*$", error.description)
            allowed = 0 if limit is None else int(limit[1])
            if not max(1, spec.least_ack_pending) <= allowed < most:
                raise _too_many_ack_pending(spec, allowed, error.description) from error
            most = allowed


def _too_many_ack_pending(spec: ConsumerSpec, allowed: int, description: str) -> SourceError:
    where = f"in consumer_limits of the stream {spec.stream!r}, or in the limits of the server or account"
    if allowed <= 0:
        return SourceError(
            f"JetStream refused the consumer: {excerpt(description)}; lower max_in_flight of this route, or raise "
            f"max_ack_pending {where}",
            reason=reasons.CONSUMER_REFUSED,
        )
    return SourceError(
        f"a consumer may have at most {allowed} unacked messages there (max_ack_pending), and this route may have "
        f"{spec.least_ack_pending} in hand; set max_in_flight = {allowed} in [routes.from], or raise max_ack_pending "
        f"{where}",
        reason=reasons.CONSUMER_REFUSED,
    )


def _expires(config: ConsumerConfig) -> bool:
    """Return True if the server deletes the durable after being unused for a time for which a router may be stopped."""
    return 0 < config.inactive_threshold < NEVER_UNUSED_FOR


async def _lift(api: Api, spec: ConsumerSpec, config: ConsumerConfig) -> tuple[ConsumerConfig, Sequence[str]]:
    """Lift limits that would silently end the durable or the deliveries of a message.

    Returns the configuration that is then in force, and each lifted limit as it was.

    A delivery limit counts all deliveries, to any client, and not failures. A durable that expires while the router is
    stopped takes with it what was settled.
    """
    changes = {}
    before = []
    if 0 < config.max_deliver != spec.max_deliver:
        changes["max_deliver"] = spec.max_deliver
        before.append(f"max_deliver = {config.max_deliver}")
    if _expires(config):
        # If it is set to 0, the server's timer continues and deletes the durable (nats-server 2.15.1).
        changes["inactive_threshold"] = round(NEVER_UNUSED_FOR * 1e9)
        before.append(f"inactive_threshold = {config.inactive_threshold:g}s")
    if not changes:
        return config, ()
    subject = f"{spec.stream}.{spec.durable}"
    try:
        fields = await api.ask(f"CONSUMER.INFO.{subject}", b"", config_fields)
        changed = {"stream_name": spec.stream, "config": fields | changes}
        body = json.dumps(changed).encode()
        return (await api.ask(f"CONSUMER.DURABLE.CREATE.{subject}", body, consumer_info)).config, before
    except (ApiError, SourceError, NoResponders, TimeoutError):
        return config, ()  # it stays as it is, and the route reports that


async def _consumer(api: Api, spec: ConsumerSpec) -> ConsumerInfo:
    return await api.ask(f"CONSUMER.INFO.{spec.stream}.{spec.durable}", b"", consumer_info)


def _refused(spec: ConsumerSpec, error: ApiError) -> SourceError:
    if error.code == NOT_FOUND and error.error_code == codes.CONSUMER_NOT_FOUND:
        detail = f"the durable {spec.durable!r} of stream {spec.stream!r} was deleted"
        return SourceError(detail, reason=reasons.CONSUMER_DELETED)
    if error.code == NOT_FOUND:
        detail = f"there is no stream {spec.stream!r}; create it, or correct `stream` of this route"
        return SourceError(detail, reason=reasons.STREAM_NOT_FOUND)
    if error.code == UNAVAILABLE:
        return SourceError(f"JetStream answered: {error.explained}", reason=reasons.JETSTREAM_UNAVAILABLE)
    return SourceError(f"JetStream refused the consumer: {error.explained}", reason=reasons.CONSUMER_REFUSED)


async def _progress(
    api: Api, spec: ConsumerSpec, info: ConsumerInfo, subscribe: Subscribe, own_answers: OwnAnswers, *, fresh: bool
) -> tuple[Progress, ConsumerInfo]:
    """Return how far the consumer has read, once the server has dropped the requests of a dead link.

    `fresh`: nothing is known of what it has delivered, because the process is new, or the stream was replaced.
    """
    if spec.standby:
        return Progress(info.delivered.delivery, in_use=False), info  # the process that has the lead is the only one
    until = trio.current_time() + STALE_PULLS_END_WITHIN
    while info.num_waiting and trio.current_time() < until:
        # A lookup is not cut short: over a long round trip no second answer would ever arrive.
        await trio.sleep(STALE_PULLS_POLL)
        info = await _consumer(api, spec)
    in_use: bool | None = bool(info.num_waiting)
    if spec.others_seen and info.num_ack_pending:
        # The waiting requests may be those of our previous link, which the server takes for alive: it answers nothing.
        in_use = await others_answer(subscribe, own_answers, spec)
        info = await _consumer(api, spec)
    elif fresh and info.num_ack_pending and not in_use:
        # A process with as many messages as it can hold doesn't wait, but sends signs of work. A process that was there
        # before us doesn't any more. If the durable was created again, its first deliveries may have answered a pull
        # that we had sent to its predecessor of this name: then no process works on them.
        before = info
        in_use = await others_answer(subscribe, own_answers, spec)
        info = await _consumer(api, spec)
        if info.num_waiting or _numbers(info) != _numbers(before):
            in_use = True
    return Progress(info.delivered.delivery, in_use), info


def _numbers(info: ConsumerInfo) -> tuple[Reached, Reached, int]:
    return info.delivered, info.ack_floor, info.num_ack_pending


# --- does another process have messages in hand? ---
#
# Only its answers show that: a process that holds as many messages as it can does not wait for more, and may not ack
# for long. Every route with messages in hand sends a sign of work every `link.SIGN_OF_WORK_EVERY` seconds, to a subject
# that anyone with the permission may subscribe to. The route itself acks meanwhile what it received on its last link.


async def others_answer(subscribe: Subscribe, own_answers: OwnAnswers, spec: ConsumerSpec) -> bool | None:
    """Return True if another client answers deliveries of a consumer; None if this user may not listen.

    Blocks for `LISTEN_FOR` seconds at most. Can be cancelled.
    """
    heard = trio.Event()
    older_form, newer_form = ack_reply.subscriptions(spec.stream, spec.durable)
    with own_answers() as own:

        def hear(batch: list[RawMessage]) -> None:
            if any(raw[0] not in own for raw in batch):
                heard.set()

        try:
            answers = await subscribe(older_form, hear)
            try:
                of_domain = await subscribe(newer_form, hear)
                try:
                    with trio.move_on_after(LISTEN_FOR):
                        await heard.wait()
                finally:
                    of_domain.close()
            finally:
                answers.close()
        except SourceError:
            return None
    return heard.is_set()
