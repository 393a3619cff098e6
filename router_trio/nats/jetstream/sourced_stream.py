"""A stream with the messages of another one, each with the token of its partition in front of its subject.

The server copies the messages: the stream sources the other one, with subject transforms. A stream whose own subject
transform adds the token needs no other. The transforms are the record of the partitions, which all processes compare
with their configuration. An existing stream is never changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from router_trio.errors import SourceError, codes, reasons
from router_trio.errors.quotes import excerpt
from router_trio.link import PartitionedSpec, PartitionedStream
from router_trio.nats.info import ServerInfo
from router_trio.nats.jetstream.api import (
    MAX_SUBJECTS,
    NOT_FOUND,
    ApiError,
    ConsumerInfo,
    StreamInfo,
    answer_of,
    consumer_info,
    nanoseconds,
    stream_info,
)
from router_trio.nats.jetstream.rolled_back_source import (
    NEVER,
    RolledBack,
    RolledBackSource,
    rolled_back,
    source_of,
)
from router_trio.nats.jetstream.streams import Lookups, creation_error, is_name, lookup_error
from router_trio.protocol import bounded_json
from router_trio.protocol.bounded_json import AnswerError, Object
from router_trio.protocol.copies import notation_of
from router_trio.protocol.stream_config import StreamConfig
from router_trio.subjects.partitions import Partitioning, read_transforms
from router_trio.subjects.patterns import covers

LOSSLESS_SINCE = (2, 14)
"""The first version of nats-server that sources streams with another retention than limits without a loss."""

NO_WINDOW_SINCE = (2, 14)
"""The first version of nats-server with which a stream that sources another one may have no duplicate window.

With one it drops messages that have the id of an earlier one, although its source has stored both. Older versions wait
until the window is over.
"""

SHORTEST_WINDOW = 0.1
"""Seconds: the shortest duplicate window that older versions accept."""

ENTIRE_SUBJECTS_SINCE = (2, 12)
"""The first version of nats-server that computes the partition of an entire subject."""

MAX_TRANSFORMS = 256

MADE_FOR = "router-trio.durable"
"""Key in the metadata of a stream that a router has created: the durable of the route that reads it."""

CHANGING = "router-trio.changing"
"""Key in the metadata of a stream that copies nothing, because its partitions are being changed: see `Changing`."""

MAX_CHANGING = 64 * 1024
"""Bytes of that value, most of them the transforms."""

_CHANGE = "correct the route, or change the stream with `router-trio partitions CONFIG ROUTE --change --apply`"
_OTHER = "use another `durable`"
"""Cures for a stream with other partitions, and for one that was not made for the route."""


@dataclass(frozen=True, slots=True)
class Changing:
    """The record of a stream that stopped to copy `source`, so that its partitions can be changed.

    `transforms` are those that it copied with. `copied` is the last message that it had copied some time before. `next`
    is the first message that it has not copied; 0 until that is known.
    """

    source: str
    transforms: tuple[tuple[str, str], ...]
    copied: int
    next: int = 0

    @property
    def partitioning(self) -> Partitioning | None:
        """The partitions of its messages; None if the transforms are not those of partitions."""
        return read_transforms(self.transforms)

    def as_text(self) -> str:
        """Return it as the value of the key `CHANGING`."""
        record = {"source": self.source, "transforms": self.transforms, "copied": self.copied, "next": self.next}
        return json.dumps(record)


def changing(config: Object) -> Changing | None:
    """Return what a stream records about the change of its partitions; None without a change. Raises `AnswerError`."""
    metadata = config.object("metadata")
    if metadata is None or not metadata.has(CHANGING):
        return None
    record = bounded_json.read(metadata.text(CHANGING, most=MAX_CHANGING).encode(), MAX_CHANGING)
    transforms = record.fields.get("transforms")
    if not isinstance(transforms, list) or not all(_is_pair(one) for one in transforms):
        raise AnswerError(f"metadata.{CHANGING} has no list of transforms")
    found = tuple((source, destination) for source, destination in transforms)
    return Changing(record.text("source"), found, record.number("copied"), record.number("next"))


def _is_pair(one: object) -> bool:
    return isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one)


@dataclass(frozen=True, slots=True)
class Partitioned:
    """The partitions of a stream, and from where it gets its messages.

    `source` is the stream that it sources; empty if publishers send to it. `sequence` is the last message of the source
    that was copied, `lag` the number of those that were not copied yet. `heard_at` is the server's time in nanoseconds
    since 1970 when the source was last heard of; 0 if unknown. `of_others` is True for a work queue that another
    program has made, such as an elastic group of Orbit: it deletes what the consumers of that program ack.
    """

    partitioning: Partitioning
    source: str = ""
    sequence: int = 0
    lag: int = 0
    heard_at: int = 0
    of_others: bool = False
    window: float = 0.0
    """Seconds for which it remembers the ids of messages that it copied."""
    changing: Changing | None = None
    """The record of the change of its partitions; it then copies nothing, and has the old ones. None without a change.
    """
    rolled_back: RolledBack = NEVER
    notation: int = 0
    """Notation of the transforms in its source, which changes when that is rolled back: see `protocol.copies`."""


def partitioned(config: Object, answer: Object) -> Partitioned | None:
    """Return the partitions of a stream, from its `config` and the entire answer of `STREAM.INFO`; None without any.

    A stream has none if some of its messages may have another first token. Raises `AnswerError`.
    """
    sources, own = config.objects("sources", most=MAX_TRANSFORMS), config.object("subject_transform")
    if not sources and (change := changing(config)) is not None and change.partitioning is not None:
        return Partitioned(change.partitioning, change.source, change.copied, changing=change)
    if config.object("mirror") is not None or len(sources) > 1:
        return None
    if own is not None and own.optional_subject("dest"):
        made = None if sources else read_transforms([_transform(own)])
        # Other subjects than the source of the transform are stored as they are.
        taken = config.subjects("subjects", most=MAX_SUBJECTS)
        if made is None or not all(covers(made.patterns[0], one) for one in taken):
            return None
        return Partitioned(made)
    if not sources or config.has("subjects"):
        return None
    (source,) = sources
    transforms = source.objects("subject_transforms", most=MAX_TRANSFORMS)
    made = read_transforms([_transform(one) for one in transforms])
    if made is None:
        return None
    window = config.duration("duplicate_window")
    found = Partitioned(
        made,
        source.text("name"),
        of_others=_is_of_others(config),
        window=window,
        rolled_back=rolled_back(config),
        notation=notation_of(transforms[0].optional_subject("dest").encode()),
    )
    states = answer.objects("sources", most=MAX_TRANSFORMS)
    if not states:
        return found
    (state, *_), now = states, nanoseconds(answer.time("ts", ""))
    silent_for = state.number("active", -1, low=-1)
    return replace(
        found,
        sequence=state.number("seq", 0),
        lag=state.number("lag", 0),
        heard_at=now - silent_for if now and 0 <= silent_for < now else 0,
    )


def _is_of_others(config: Object) -> bool:
    metadata = config.object("metadata")
    made_here = metadata is not None and metadata.has(MADE_FOR)
    return not made_here and config.text("retention", "") == "workqueue" and config.text("discard", "") == "new"


def _transform(one: Object) -> tuple[str, str]:
    return one.optional_subject("src"), one.optional_subject("dest")


def config_of(
    name: str,
    stream: StreamInfo,
    partitioning: Partitioning,
    deliver: str | int = "all",
    declared: StreamConfig | None = None,
    version: tuple[int, int] | None = None,
) -> dict[str, object]:
    """Return the configuration of the stream to create, which sources `stream`, on a server of that version.

    `deliver` is where it begins, as of `ConsumerSpec`. It has the limits of `stream`, unless it is `declared`.
    """
    source = source_of(stream.name, partitioning) | _start(stream, deliver)
    metadata = {MADE_FOR: name.removeprefix(f"{stream.name}-")}
    config: dict[str, object] = {"name": name, "sources": [source], "metadata": metadata}
    if version is not None and version < NO_WINDOW_SINCE:
        config["duplicate_window"] = round(SHORTEST_WINDOW * 1e9)
    if stream.allow_message_ttl if declared is None else declared.allow_message_ttl:
        config["allow_msg_ttl"] = True
    if declared is not None:
        return config | {
            "storage": declared.storage,
            "retention": declared.retention,
            "num_replicas": declared.replicas,
            "max_age": round(declared.max_age * 1e9),
            "max_bytes": declared.max_bytes,
            "max_msgs": declared.max_messages,
            "discard": declared.discard,
        }
    # A stream that deletes what is acked holds only what is needed, and so does its copy.
    retention = "limits" if stream.retention == "limits" else "workqueue"
    return config | {
        "storage": stream.storage,
        "retention": retention,
        "num_replicas": stream.replicas,
        "max_age": round(stream.max_age * 1e9),
        "max_bytes": stream.max_bytes,
        "max_msgs": stream.max_messages,
        "max_msgs_per_subject": stream.max_messages_per_subject,
        # A full copy must not stop: the source goes on, and deletes its oldest messages.
        "discard": "old",
    }


def _start(stream: StreamInfo, deliver: str | int) -> dict[str, object]:
    if deliver == "all":
        return {}
    if deliver == "new":
        return {"opt_start_seq": stream.last_sequence + 1}
    return {"opt_start_seq": deliver} if isinstance(deliver, int) else {"opt_start_time": deliver}


def unsuitable(stream: StreamInfo, version: tuple[int, int] | None) -> str | None:
    """Return why a stream can't be sourced without a loss by a server of a version, and the cure; None if it can."""
    if stream.retention == "limits" or version is None or version >= LOSSLESS_SINCE:
        return None
    return (
        f"the stream {stream.name!r} has {stream.retention} retention, which nats-server copies without a loss from "
        "2.14 on; upgrade it, or give that stream a subject transform that adds the partition"
    )


def differs(name: str, wanted: Partitioning, source: str, found: Partitioned | None) -> str | None:
    """Return why the existing stream `name` can't be read as the partitions that a route wants, and the cure.

    Return None if it can.
    `source` is the stream that it should source; empty if it is the stream of the route itself.
    """
    if found is None:
        return f"the stream {name!r} exists, and does not put a partition in front of its subjects; {_OTHER}"
    if source and found.source != source:
        origin = f"sources {found.source!r}" if found.source else "sources no other"
        return f"the stream {name!r} exists and {origin}; {source!r} is needed; {_OTHER}"
    compare = wanted.difference if source else wanted.disorder
    other = compare(found.partitioning)
    if other is not None and found.changing is not None:
        other += "; it is being changed now"
    return None if other is None else f"the stream {name!r} has other partitions: {other}; {_CHANGE}"


def drops(name: str, found: Partitioned, version: tuple[int, int] | None) -> str | None:
    """Return why a stream does not copy all messages of its source, and the cure; None if it does."""
    if not found.window or found.changing is not None or (version is not None and version < NO_WINDOW_SINCE):
        return None
    return (
        f"the stream {name!r} has a duplicate window of {found.window:g} s, so that it drops messages with the id of "
        f"an earlier one that {found.source!r} has stored as well; run `nats stream edit {name} --dupe-window 0s`"
    )


def of_others(name: str) -> str:
    """Return why a work queue that another program has made can't be read, and the cure."""
    return (
        f"the stream {name!r} is a work queue that another program has made, such as an elastic consumer group of "
        "Orbit: it deletes what the consumers of that program ack; use another `durable`"
    )


# --- on a link ---


async def ensure_partitioned(lookups: Lookups, wanted: PartitionedSpec, info: ServerInfo) -> PartitionedStream:
    """Return the stream that has the partitions, created if it was missing. Raises as `link.Link.ensure_partitioned`.

    `info` is that of the server of the link.
    """
    for name in (wanted.stream, wanted.derived):
        if not is_name(name):
            raise SourceError(f"{excerpt(name)!r} is not a valid name of a stream", reason=reasons.INVALID_NAME)
    source, own = await _required(lookups, wanted.stream)
    if own is not None:
        _compare(wanted, wanted.stream, "", own)
        return _as_found(wanted.stream, own, source)
    found = await _find(lookups, wanted.derived)
    created = found is None
    if found is None:
        found = await _create(lookups, wanted, source, info)
    _compare(wanted, wanted.derived, wanted.stream, found[1])
    if found[1] is not None and (why := drops(wanted.derived, found[1], info.major_minor)) is not None:
        raise SourceError(why, reason=reasons.PARTITIONS_DIFFER)
    assert found[1] is not None, "a stream without partitions differs"
    here = replace(_as_found(wanted.derived, found[1], source), created=created)
    return here if created or found[1].changing is not None else await _looked_at(lookups, wanted, here, found, info)


async def _looked_at(
    lookups: Lookups,
    wanted: PartitionedSpec,
    here: PartitionedStream,
    found: tuple[StreamInfo, Partitioned | None],
    info: ServerInfo,
) -> PartitionedStream:
    """Return a copy with what became of the stream that it copies."""
    copy, partitions = found
    assert partitions is not None, "it was compared"
    source = RolledBackSource(
        lookups,
        wanted,
        copy,
        partitions.partitioning,
        partitions.rolled_back,
        partitions.notation,
        info.major_minor,
    )
    seen = await source.look(partitions.sequence)
    return replace(
        here,
        reused=seen.record.reused,
        went_back=seen.went_back,
        stuck=seen.stuck,
        is_announced=seen.is_announced,
        known=seen.known,
    )


def read_partitioned(body: bytes) -> tuple[StreamInfo, Partitioned | None]:
    """Read the answer to `STREAM.INFO`, with the partitions of the stream. Raises as `api.stream_info`."""
    answer = answer_of(body)
    return stream_info(body), partitioned(answer.required("config"), answer)


def _compare(wanted: PartitionedSpec, name: str, source: str, found: Partitioned | None) -> None:
    if (why := differs(name, wanted.partitioning, source, found)) is not None:
        raise SourceError(why, reason=reasons.PARTITIONS_DIFFER)
    if found is not None and found.of_others:
        raise SourceError(of_others(name), reason=reasons.PARTITIONS_DIFFER)


def _as_found(name: str, found: Partitioned, source: StreamInfo) -> PartitionedStream:
    return PartitionedStream(
        name,
        found.source,
        found.lag,
        found.sequence,
        found.heard_at,
        source.replicas,
        source.storage,
    )


async def _required(lookups: Lookups, name: str) -> tuple[StreamInfo, Partitioned | None]:
    found = await _find(lookups, name)
    if found is None:
        detail = f"there is no stream {name!r}; create it, or correct `stream` of this route"
        raise SourceError(detail, reason=reasons.STREAM_NOT_FOUND)
    return found


async def _find(lookups: Lookups, name: str) -> tuple[StreamInfo, Partitioned | None] | None:
    try:
        found = await lookups.ask(f"STREAM.INFO.{name}", b"", read_partitioned)
    except ApiError as error:
        if error.code == NOT_FOUND:
            return None
        raise lookup_error(error) from error
    if found[0].name != name:
        detail = f"the answer to a lookup of stream {name!r} is about another stream"
        raise SourceError(detail, reason=reasons.BAD_ANSWER)
    return found


async def _create(
    lookups: Lookups, wanted: PartitionedSpec, source: StreamInfo, info: ServerInfo
) -> tuple[StreamInfo, Partitioned | None]:
    why = unsuitable(source, info.major_minor) or _too_old(wanted.partitioning, info)
    if why is not None:
        raise SourceError(why, reason=reasons.SERVER_TOO_OLD)
    await _refuse_earlier(lookups, wanted)
    config = config_of(wanted.derived, source, wanted.partitioning, wanted.deliver, wanted.declared, info.major_minor)
    try:
        return await lookups.ask(f"STREAM.CREATE.{wanted.derived}", json.dumps(config).encode(), read_partitioned)
    except ApiError as error:
        # Another process was faster. Its stream differs in its start if something was published in between.
        found = await _find(lookups, wanted.derived) if error.error_code == codes.NAME_IN_USE else None
        if found is not None:
            return found
        raise creation_error(error, f"stream {wanted.derived!r}") from error


async def _refuse_earlier(lookups: Lookups, wanted: PartitionedSpec) -> None:
    """Raise `SourceError` if the route has read the stream without partitions: all would be copied and routed again."""
    durable = wanted.derived.removeprefix(f"{wanted.stream}-")
    try:
        info = await lookups.ask(f"CONSUMER.INFO.{wanted.stream}.{durable}", b"", consumer_info)
    except ApiError as error:
        if error.code == NOT_FOUND:
            return
        raise lookup_error(error) from error
    raise SourceError(read_before(info, wanted.deliver), reason=reasons.CONSUMER_MISMATCH)


def read_before(info: ConsumerInfo, deliver: str | int) -> str:
    """Return why a stream is not copied that a route without partitions has read by a durable, and the cure."""
    floor = info.ack_floor.sequence
    text = (
        f"the durable {info.name!r} of stream {info.stream!r} exists, so the route has read it without partitions, up "
        f"to message {floor}. To go on there, stop what uses the durable once nothing is unacked, set "
        f"deliver = {floor + 1} and delete it. To read all"
    )
    return f"{text} from deliver = {deliver!r} on, use another `durable`"


def _too_old(partitioning: Partitioning, info: ServerInfo) -> str | None:
    if partitioning.by or info.major_minor is None or info.major_minor >= ENTIRE_SUBJECTS_SINCE:
        return None
    return (
        f"nats-server {excerpt(info.version)} can't compute the partition of an entire subject (2.12 or later); "
        "upgrade it, or set `partition_by`"
    )
