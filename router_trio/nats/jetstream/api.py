"""The JetStream API: sends requests, reports refusals, and reads answers into values.

The forms of the answers are those of the JetStream API reference. Fields missing in the answer of an older server get
the value that means the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import trio

from router_trio.errors import SourceError, codes, reasons
from router_trio.errors.quotes import quoted
from router_trio.nats.requests import Request, Requests
from router_trio.protocol import framing, permissions
from router_trio.protocol.bounded_json import AnswerError, Object, read
from router_trio.protocol.framing import LAST_SEQUENCE
from router_trio.protocol.headers import Headers, encode, status
from router_trio.protocol.metadata import CONTINUES, ROUTE, SENDS, sends_of
from router_trio.protocol.stream_config import StreamSubjects

T = TypeVar("T")

API_TIMEOUT = 5.0
"""Seconds to wait for an answer, behind a round trip of the link: see `Api.ask`."""

API = permissions.API
"""Prefix of the API's subjects unless the connection configures another one."""

NOT_FOUND = 404
UNAVAILABLE = 503
"""Status codes of an answer, as in HTTP."""

PAUSED_BY = "router-trio.paused-by"
PAUSED_UNTIL = "router-trio.paused-until"
"""Keys in the metadata of a consumer: who has paused it, and until when, as `pause_until` then."""

LEVELS: Mapping[str, int] = {"allow_msg_ttl": 1, "priority_groups": 1, "allow_msg_schedules": 2, "allow_batched": 4}
"""Levels of the API since which a server knows these fields. An older one drops such a field without an error."""

MAX_ANSWER = 1024 * 1024
"""Bytes of an answer, which contains subjects, metadata and replicas."""

MAX_MESSAGE_ANSWER = 128 * 1024 * 1024
"""Bytes of an answer that contains a message: the largest that a server can be configured to accept, in base64."""

MAX_SUBJECTS = 10_000

SOON = 0.1
"""Seconds for an answer before the time for it is measured."""

MAX_REPLICAS = 100
"""Replicas in one answer, without the leader: a server creates four at most."""

SILENT_AFTER = 4.0
"""Seconds of silence of a replica after which its leader counts as cut off from it: four heartbeats.

A leader that has lost its quorum remains leader for up to twenty seconds: it stores nothing, and its consumers send
heartbeats.
"""

MAX_LOST = 1_000_000
"""Sequences of lost messages in one answer, which is no longer than `MAX_ANSWER`."""

MAX_LEVEL_DIGITS = 6

MAX_PRIORITY_GROUPS = 100
"""Priority groups of a consumer: a server accepts one."""

MAX_NAMES = 1024
"""Names of streams in one answer: a server returns no more at a time."""

NEVER = "0001-01-01T00:00:00Z"
"""The time that a server gives for a message that does not exist."""

_TIME = re.compile(r"([^.Z+]{19})(?:\.([0-9]+))?(Z|[+-][0-9:]{5})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ApiError(Exception):
    """JetStream answered with an error: `code` as in HTTP, `error_code` of nats-server, 0 if it is missing."""

    def __init__(self, code: int, error_code: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.error_code = error_code
        self.description = description

    @property
    def explained(self) -> str:
        """The description, what it means for a route, and the cure: see `errors.codes`."""
        return codes.explained(self.error_code, self.description)


class NoResponders(Exception):
    """No server answers requests to a subject: it has no JetStream, or there is no such domain."""


class Api:
    """The JetStream API of one link. `prefix` begins its subjects, as configured for a domain or an import.

    `hide` removes secrets of the connection from the description of an error.
    """

    __slots__ = ("_hide", "denials", "prefix", "requests")

    def __init__(
        self, requests: Requests, denials: Denials, prefix: str = API, hide: Callable[[str], str] = str
    ) -> None:
        self.requests: Requests = requests
        self.denials: Denials = denials
        self.prefix: str = prefix
        self._hide = hide

    def at(self, prefix: str) -> Api:
        """Return the API below another prefix, on the same link."""
        return Api(self.requests, self.denials, prefix, self._hide)

    def subject_of(self, request: str) -> str:
        """Return the subject of a request."""
        return f"{self.prefix}.{request}"

    async def ask(
        self,
        request: str,
        body: bytes,
        read: Callable[[bytes], T],
        within: float = API_TIMEOUT,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send a request and read its answer. Can be cancelled.

        Raises what `read` raises, with the request named; `TimeoutError` without an answer within `within` seconds;
        `SourceError` if the server denies the request or its answer, or has no room for the subscription to answers;
        `NoResponders`; and `LinkError` if the link ends. The seconds are counted from the PONG to a PING that was sent
        after the request, so that a server that is far away, or has much else to send, gets the time that the link
        takes. On a dead link the liveness fence ends the wait.
        """
        subject = self.subject_of(request)
        answer = await self.request(subject, body, within, headers)
        try:
            return read(answer)
        except ApiError as error:
            raise ApiError(error.code, error.error_code, self._hide(error.description)) from None
        except AnswerError as error:
            raise SourceError(
                f"the answer to {subject} is not a valid JetStream answer: {error}", reason=reasons.BAD_ANSWER
            ) from error

    async def request(
        self, subject: str, body: bytes, within: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the answer to a request to any subject. Waits, can be cancelled, and raises as `ask`."""
        raw = framing.wire(subject)
        refused = self.requests.too_many
        with self.denials.raised(raw):
            request = self.requests.send(raw, body, encode(Headers(headers)))
            try:
                await self._arrival(request, within)
            finally:
                request.forget()
            if request.answer is None:
                request.raise_refusal()
                # Which subscription the server refused it does not report. It may be the one to answers.
                raise TimeoutError if self.requests.too_many == refused else self.requests.no_room()
            if status(framing.header_block(request.answer))[0] == UNAVAILABLE:
                raise NoResponders(subject)
            return framing.payload(request.answer)
        raise AssertionError("unreachable: the block returns or raises")

    async def _arrival(self, request: Request, within: float) -> None:
        """Wait for the answer, its denial or the end of the link, but not longer than `within`, as `ask` counts it."""
        if request.waits:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._limit, nursery.cancel_scope, within)
                await request.arrived.wait()
                nursery.cancel_scope.cancel()

    async def _limit(self, scope: trio.CancelScope, within: float) -> None:
        """Set the deadline of `scope`, counted from when the server has processed the request.

        Most answers arrive within `SOON`. Only the others are timed, since each PING takes as long as half a request.
        """
        await trio.sleep(SOON)
        for _ in range(2):  # the first PONG may answer a PING that was sent before the request
            await self.requests.ping()
        scope.deadline = trio.current_time() + within - SOON


def required_level(config: Mapping[str, object]) -> dict[str, str]:
    """Return the headers of a request to create something, with which a server that drops a field refuses it instead.

    Servers before 2.12 ignore them.
    """
    level = max((LEVELS[name] for name in config if name in LEVELS), default=0)
    return {"Nats-Required-Api-Level": str(level)} if level else {}


def too_old(what: str, config: Mapping[str, object]) -> str:
    """Return the text for a server that refuses to create something because of `required_level`."""
    fields = ", ".join(sorted(name for name in config if name in LEVELS))
    return f"the server is too old for {fields} of {what}"


def no_jetstream(prefix: str) -> str:
    """Return the text for a request without a responder."""
    if prefix == API:
        return "JetStream is not enabled on this server or for this account"
    return (
        f"no server answers below {prefix}; correct `domain` or `api_prefix` of the connection, or enable JetStream "
        "there"
    )


class _WaitingRequest:
    __slots__ = ("denied", "scope", "words")

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.denied = b""
        self.words = ""


class Denials:
    """The requests of one link that wait for an answer, by subject, and that the server may deny."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[_WaitingRequest]] = {}

    @contextmanager
    def raised(self, subject: bytes) -> Iterator[None]:
        """Cancel the block if the server denies a publish to `subject`, and raise `SourceError` instead."""
        scope = trio.CancelScope()
        one = _WaitingRequest(scope)
        with scope:
            self._waiting.setdefault(subject, []).append(one)
            try:
                yield
            finally:
                waiting = self._waiting[subject]
                waiting.remove(one)
                if not waiting:
                    del self._waiting[subject]
        if scope.cancelled_caught:
            name = quoted(framing.text(one.denied))
            raise SourceError(
                f"this user may not publish to {name}: {one.words}; grant this user the permission",
                reason=reasons.PERMISSION_DENIED,
            )

    def denied(self, subject: bytes, words: str) -> bool:
        """End the requests to `subject`, which the server denied, or that it maps to it. Return False without any."""
        waiting = self._waiting.get(subject) or [
            one
            for asked, requests in self._waiting.items()
            if permissions.mapped_at_own_domain(asked) == subject
            for one in requests
        ]
        for one in waiting:
            one.denied, one.words = subject, words
            one.scope.cancel()
        return bool(waiting)


# --- answers ---


@dataclass(frozen=True, slots=True)
class Group:
    """The servers that hold a stream or a consumer, as seen by the one that answers, nearly always the leader.

    `leader` is empty if it knows none. `silent_for` contains, for each of the other replicas, the seconds since it was
    last heard from.
    """

    leader: str
    silent_for: tuple[float, ...]
    behind: tuple[str, ...] = ()
    """The names of the replicas that are offline, or do not have everything yet."""
    cluster: str = ""
    """The name of the cluster; empty for a single server."""

    @property
    def trouble(self) -> str | None:
        """Return why nothing can be stored now: there is no leader, or it hears from too few replicas. Else None."""
        replicas = len(self.silent_for)
        if not replicas:
            return None
        if not self.leader:
            return "it has no leader"
        silent = sum(seconds > SILENT_AFTER for seconds in self.silent_for)
        if 2 * (1 + replicas - silent) > 1 + replicas:
            return None
        return f"its leader {self.leader} has heard nothing of {silent} of its {replicas} replicas for some seconds"


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as it is now. Durations in seconds, sizes in bytes, -1 for no limit. Times in the server's format."""

    name: str
    created: str
    subjects: tuple[str, ...]
    retention: str
    storage: str
    discard: str
    replicas: int
    max_messages: int
    max_bytes: int
    max_messages_per_subject: int
    max_message_size: int
    max_age: float
    duplicate_window: float
    persist_mode: str
    sealed: bool
    no_ack: bool
    mirror: bool
    has_others: bool
    """True if it may hold messages of other subjects than its own: those of other streams, or under mapped subjects."""
    stores: StreamSubjects
    deny_delete: bool
    deny_purge: bool
    allow_rollup: bool
    allow_direct: bool
    allow_message_ttl: bool
    allow_atomic: bool
    allow_batched: bool
    allow_counter: bool
    allow_schedules: bool
    messages: int
    bytes: int
    first_sequence: int
    first_time: str
    last_sequence: int
    last_time: str
    group: Group
    consumers: int
    lost: int
    """The number of messages that its server knows to have lost, for example in a damaged file."""
    level: int
    """The level of the JetStream API of the server that holds it; 0 before nats-server 2.11."""
    now: str
    """The server's time when it answered; empty from a server before 2.10."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The sequence and the time under which a stream stored a message. The time is as the server writes it."""

    sequence: int
    time: str


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as a stream holds it, with its raw header block. `time_ns` is in nanoseconds since 1970."""

    sequence: int
    time_ns: int
    subject: str
    headers: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class ConsumerConfig:
    """The configuration of a consumer. Limits that it does not set are -1 or 0."""

    durable: str
    deliver_policy: str
    start_sequence: int
    start_time: str
    deliver_subject: str
    deliver_group: str
    filter_subjects: tuple[str, ...]
    ack_policy: str
    ack_wait: float
    backoff: int
    max_deliver: int
    max_ack_pending: int
    max_waiting: int
    max_batch: int
    max_expires: float
    max_bytes: int
    headers_only: bool
    replay_policy: str
    rate_limit: int
    inactive_threshold: float
    pause_until: str
    paused_by: str
    priority_policy: str
    priority_groups: tuple[str, ...]
    route: str
    """The route that created the consumer, as it is in the metadata; empty if another client did."""
    continues: bool
    """True if the route created it to continue where a deleted one was, as it is in the metadata."""
    sends: tuple[tuple[str, str], ...] = ()
    """Where that route sends: servers, `""` for that of the stream, and templates of subjects."""


@dataclass(frozen=True, slots=True)
class Reached:
    """The position of a consumer: the number of its delivery, and the sequence of that message in the stream."""

    delivery: int
    sequence: int


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """A consumer as it is now."""

    stream: str
    name: str
    created: str
    config: ConsumerConfig
    delivered: Reached
    ack_floor: Reached
    num_pending: int
    num_ack_pending: int
    num_redelivered: int
    num_waiting: int
    paused: bool
    group: Group
    now: str
    """The server's time when it answered; empty from a server before 2.10."""
    pinned_at: str = ""
    """When the client with the lead of a pinned consumer got it; empty if none has it."""


def stream_info(body: bytes) -> StreamInfo:
    """Read the answer to `STREAM.INFO`. Raises `ApiError` for an error, `AnswerError` for a malformed answer."""
    answer = answer_of(body)
    config, state = answer.required("config"), answer.required("state")
    subjects = config.subjects("subjects", most=MAX_SUBJECTS)
    return StreamInfo(
        name=config.text("name"),
        created=answer.time("created"),
        subjects=subjects,
        retention=config.text("retention", "limits"),
        storage=config.text("storage", "file"),
        discard=config.text("discard", "old"),
        replicas=config.number("num_replicas", 1),
        max_messages=config.number("max_msgs", -1, low=-1),
        max_bytes=config.number("max_bytes", -1, low=-1),
        max_messages_per_subject=config.number("max_msgs_per_subject", -1, low=-1),
        max_message_size=config.number("max_msg_size", -1, low=-1),
        max_age=config.duration("max_age"),
        duplicate_window=config.duration("duplicate_window"),
        persist_mode=config.text("persist_mode", "default"),
        sealed=config.flag("sealed"),
        no_ack=config.flag("no_ack"),
        mirror=config.object("mirror") is not None,
        has_others=any(config.has(name) for name in ("mirror", "sources", "subject_transform")),
        stores=StreamSubjects(
            () if config.flag("sealed") else subjects,
            _transform(config.object("subject_transform")),
            any(config.has(name) for name in ("mirror", "sources")),
        ),
        deny_delete=config.flag("deny_delete"),
        deny_purge=config.flag("deny_purge"),
        allow_rollup=config.flag("allow_rollup_hdrs"),
        allow_direct=config.flag("allow_direct"),
        allow_message_ttl=config.flag("allow_msg_ttl"),
        allow_atomic=config.flag("allow_atomic"),
        allow_batched=config.flag("allow_batched"),
        allow_counter=config.flag("allow_msg_counter"),
        allow_schedules=config.flag("allow_msg_schedules"),
        messages=_count(state, "messages"),
        bytes=_count(state, "bytes"),
        first_sequence=_count(state, "first_seq"),
        first_time=state.time("first_ts", NEVER),
        last_sequence=_count(state, "last_seq"),
        last_time=state.time("last_ts", NEVER),
        group=_group(answer.object("cluster")),
        consumers=_count(state, "consumer_count"),
        lost=_lost(state.object("lost")),
        level=_level(config.object("metadata")),
        now=answer.time("ts", ""),
    )


def _lost(lost: Object | None) -> int:
    return 0 if lost is None else len(lost.numbers("msgs", most=MAX_LOST))


def _level(metadata: Object | None) -> int:
    level = "" if metadata is None else metadata.text("_nats.level", "")
    return int(level) if level.isdecimal() and len(level) <= MAX_LEVEL_DIGITS else 0


def _transform(mapping: Object | None) -> tuple[str, str] | None:
    """Return the source and destination of a stream's subject transform; None if it keeps subjects."""
    destination = "" if mapping is None else mapping.optional_subject("dest")
    return (mapping.optional_subject("src") or ">", destination) if mapping is not None and destination else None


def stream_names(body: bytes) -> tuple[str, ...]:
    """Read the answer to `STREAM.NAMES`: its first page. Raises as `stream_info` does."""
    return answer_of(body).names("streams", most=MAX_NAMES)


def stored(body: bytes) -> Stored:
    """Read the answer to `STREAM.MSG.GET`. Raises as `stream_info` does."""
    message = answer_of(body, MAX_MESSAGE_ANSWER).required("message")
    return Stored(_count(message, "seq"), message.time("time"))


def stored_message(body: bytes) -> StoredMessage:
    """Read the answer to `STREAM.MSG.GET`, including the message. Raises as `stream_info` does."""
    message = answer_of(body, MAX_MESSAGE_ANSWER).required("message")
    return StoredMessage(
        sequence=_count(message, "seq"),
        time_ns=nanoseconds(message.time("time")),
        subject=message.optional_subject("subject"),
        headers=message.octets("hdrs"),
        payload=message.octets("data"),
    )


def done(body: bytes) -> bool:
    """Read an answer that only reports success. Raises as `stream_info` does."""
    return answer_of(body).flag("success")


def nanoseconds(time: str) -> int:
    """Return a server's time in nanoseconds since 1970; 0 for `NEVER` and for an invalid time."""
    match = _TIME.fullmatch(time)
    if match is None:
        return 0
    try:
        seconds = (datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")) - _EPOCH) // timedelta(seconds=1)
    except (ValueError, OverflowError):
        return 0
    return max(0, seconds * 1_000_000_000 + int((match[2] or "")[:9].ljust(9, "0")))


def consumer_info(body: bytes) -> ConsumerInfo:
    """Read the answer to `CONSUMER.INFO` or `CONSUMER.CREATE`. Raises as `stream_info` does."""
    return _consumer_info(answer_of(body))


def consumer_list(body: bytes) -> tuple[tuple[ConsumerInfo, ...], int]:
    """Read the answer to `CONSUMER.LIST`: one page, and the total number of consumers. Raises as `stream_info` does."""
    answer = answer_of(body)
    found = tuple(_consumer_info(one) for one in answer.objects("consumers", most=MAX_NAMES))
    return found, answer.number("total", 0)


def _consumer_info(answer: Object) -> ConsumerInfo:
    return ConsumerInfo(
        stream=answer.text("stream_name"),
        name=answer.text("name"),
        created=answer.time("created"),
        config=_consumer_config(answer.required("config")),
        delivered=_reached(answer.object("delivered")),
        ack_floor=_reached(answer.object("ack_floor")),
        num_pending=_count(answer, "num_pending"),
        num_ack_pending=_count(answer, "num_ack_pending"),
        num_redelivered=_count(answer, "num_redelivered"),
        num_waiting=_count(answer, "num_waiting"),
        paused=answer.flag("paused"),
        group=_group(answer.object("cluster")),
        now=answer.time("ts", ""),
        pinned_at=_pinned_at(answer),
    )


def _pinned_at(answer: Object) -> str:
    for one in answer.objects("priority_groups", most=MAX_PRIORITY_GROUPS):
        if one.text("pinned_client_id", ""):
            return one.time("pinned_ts", "")
    return ""


def pauses(body: bytes) -> bool:
    """Read the answer to `CONSUMER.PAUSE`: True if the consumer is paused now. Raises as `stream_info` does."""
    return answer_of(body).flag("paused")


def config_fields(body: bytes) -> dict[str, Any]:
    """Read the answer to `CONSUMER.INFO`: every field of the configuration, to be sent back with changes.

    The fields are returned as the server sent them, without validation. Raises as `stream_info` does.
    """
    return answer_of(body).required("config").fields


def _consumer_config(config: Object) -> ConsumerConfig:
    one = config.optional_subject("filter_subject")
    return ConsumerConfig(
        durable=config.text("durable_name", ""),
        deliver_policy=config.text("deliver_policy", "all"),
        start_sequence=_count(config, "opt_start_seq"),
        start_time=config.time("opt_start_time", ""),
        deliver_subject=config.optional_subject("deliver_subject"),
        deliver_group=config.text("deliver_group", ""),
        filter_subjects=(one,) if one else config.subjects("filter_subjects", most=MAX_SUBJECTS),
        ack_policy=config.text("ack_policy", "none"),
        ack_wait=config.duration("ack_wait"),
        backoff=len(config.numbers("backoff", most=1000)),
        max_deliver=config.number("max_deliver", -1, low=-1),
        max_ack_pending=config.number("max_ack_pending", 0, low=-1),
        max_waiting=config.number("max_waiting", 0, low=-1),
        max_batch=config.number("max_batch", 0),
        max_expires=config.duration("max_expires"),
        max_bytes=config.number("max_bytes", 0),
        headers_only=config.flag("headers_only"),
        replay_policy=config.text("replay_policy", "instant"),
        rate_limit=_count(config, "rate_limit_bps"),
        inactive_threshold=config.duration("inactive_threshold"),
        pause_until=config.time("pause_until", ""),
        paused_by=_paused_by(config),
        priority_policy=config.text("priority_policy", ""),
        priority_groups=config.subjects("priority_groups", most=MAX_PRIORITY_GROUPS),
        route=_metadata(config, ROUTE),
        continues=bool(_metadata(config, CONTINUES)),
        sends=sends_of(_metadata(config, SENDS)),
    )


def _metadata(config: Object, key: str) -> str:
    metadata = config.object("metadata")
    value = None if metadata is None else metadata.fields.get(key)
    return value if type(value) is str else ""


def _paused_by(config: Object) -> str:
    """Return who has paused a consumer with this router's command; `""` for a pause by another client."""
    metadata = config.object("metadata")
    if metadata is None:
        return ""
    until, recorded = (one.fields.get(name) for one, name in ((config, "pause_until"), (metadata, PAUSED_UNTIL)))
    if type(until) is not str or type(recorded) is not str or nanoseconds(until) != nanoseconds(recorded):
        return ""  # the record of an earlier pause
    return metadata.description(PAUSED_BY)


def _group(cluster: Object | None) -> Group:
    if cluster is None:
        return Group("", ())
    replicas = cluster.objects("replicas", most=MAX_REPLICAS)
    behind = tuple(one.text("name", "") for one in replicas if one.flag("offline") or not one.flag("current"))
    silent_for = tuple(one.duration("active") for one in replicas)
    return Group(cluster.text("leader", ""), silent_for, behind, cluster.text("name", ""))


def _reached(at: Object | None) -> Reached:
    return Reached(0, 0) if at is None else Reached(_count(at, "consumer_seq"), _count(at, "stream_seq"))


def _count(counted: Object, name: str) -> int:
    return counted.number(name, 0, high=LAST_SEQUENCE)


def answer_of(body: bytes, most: int = MAX_ANSWER) -> Object:
    """Return an entire answer. Raises as `stream_info` does."""
    answer = read(body, most)
    error = answer.object("error")
    if error is not None:
        raise ApiError(
            error.number("code", high=999), error.number("err_code", 0, high=99_999), error.description("description")
        )
    return answer
