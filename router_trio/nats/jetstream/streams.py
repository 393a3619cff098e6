"""Looks up streams, creates a missing one, and detects that a stream was rolled back.

A request that this user may not send, or that is not answered in time, raises a `SourceError` with a reason of
`reasons.LOOKUP_FAILED`: it proves nothing about what was looked up. Nothing is retried here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import TypeVar

from router_trio.errors import SourceError, codes, reasons
from router_trio.errors.quotes import excerpt
from router_trio.link import LOOKUP_WITHIN, ConsumerSpec, Newest, StreamState
from router_trio.nats.jetstream.api import (
    API,
    NOT_FOUND,
    UNAVAILABLE,
    Api,
    ApiError,
    NoResponders,
    Stored,
    StreamInfo,
    answer_of,
    nanoseconds,
    no_jetstream,
    required_level,
    stored,
    stored_message,
    stream_info,
    stream_names,
    too_old,
)
from router_trio.nats.jetstream.consumer_config import cut_off
from router_trio.protocol.metadata import monitored_stream
from router_trio.protocol.stream_config import StreamConfig

T = TypeVar("T")

LOOK_UP_WITHIN = 2.0
"""Seconds to wait for the answer to one lookup of a message."""

_BEHIND_ALL = 2**31 - 1
"""An offset behind all subjects of a stream."""

_NAME = re.compile(r"[^\s.*>/\\]{1,255}")


def is_name(name: str) -> bool:
    """Return True if a stream or a consumer can have this name, so that it may be a token of a request's subject."""
    return _NAME.fullmatch(name) is not None and name.isprintable()


class Lookups:
    """Look things up for a `link.Link`. Nothing that exists is changed."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def ask(
        self,
        request: str,
        body: bytes,
        read: Callable[[bytes], T],
        api: Api | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """Send a request, and read its answer. Raises `SourceError`, or `ApiError` if the answer is an error.

        `api` sends it to another JetStream than the connection's.
        """
        api = api or self._api
        named = api.subject_of(request)
        try:
            return await api.ask(request, body, read, LOOKUP_WITHIN, headers=headers)
        except NoResponders as error:
            raise _not_enabled(api.prefix) from error
        except TimeoutError as error:
            detail = f"JetStream did not answer {named} within {LOOKUP_WITHIN:g} s"
            raise SourceError(detail, reason=reasons.TIMEOUT) from error

    async def find_streams(self, subject: str) -> Sequence[str]:
        try:
            return await self.ask("STREAM.NAMES", json.dumps({"subject": subject}).encode(), stream_names)
        except ApiError as error:
            raise lookup_error(error) from error

    async def may_exist(self, name: str, domain: str = "") -> bool:
        """Return False if the server reports that there is no stream of this name; True also if it does not answer.

        If the connection has an API prefix of its own, that is asked as well: the domain belongs to another account's
        server.
        """
        if not is_name(name) or not (domain == "" or is_name(domain)):
            return False
        prefixes = {self._api.prefix} - {API} | {f"$JS.{domain}.API" if domain else API}
        for prefix in sorted(prefixes):
            try:
                await self.ask(f"STREAM.INFO.{name}", b"", stream_info, self._api.at(prefix))
            except ApiError as error:
                if error.error_code == codes.STREAM_NOT_FOUND:
                    continue
            except SourceError:
                pass
            return True
        return False

    async def stream_state(self, name: str, domain: str = "") -> StreamState | None:
        """Return the current state of a stream of the connection's JetStream, or else of `domain`; None without one.

        Raises as `link.Link.stream_state` does.
        """
        if not is_name(name):
            return None
        try:
            info = await self.ask(f"STREAM.INFO.{name}", b"", stream_info)
        except ApiError as error:
            if error.code != NOT_FOUND:
                raise lookup_error(error) from error
            if not is_name(domain):
                return None
            try:
                info = await self.ask(f"STREAM.INFO.{name}", b"", stream_info, self._api.at(f"$JS.{domain}.API"))
            except ApiError as error:
                if error.code == NOT_FOUND:
                    return None
                raise lookup_error(error) from error
        if info.name != name:
            raise SourceError(
                f"the answer to a lookup of stream {name!r} is about another stream", reason=reasons.BAD_ANSWER
            )
        limits = (info.max_messages, info.max_bytes, info.max_messages_per_subject, info.max_message_size)
        return StreamState(
            info.name,
            info.subjects,
            refuses(info),
            _room(info),
            info.messages,
            limits,
            info.duplicate_window,
            info.persist_mode == "async",
            info.created,
            info.stores,
            stream_config(info).loses_schedules,
            info.allow_message_ttl,
            nanoseconds(info.now),
        )

    async def count_subjects(self, stream: str, pattern: str) -> int:
        """Return on how many subjects of `pattern` a stream has messages, as `link.Link.count_subjects` does."""
        # A page behind all subjects has their number and none of them.
        body = json.dumps({"subjects_filter": pattern, "offset": _BEHIND_ALL}).encode()
        try:
            return await self.ask(f"STREAM.INFO.{stream}", body, lambda answer: answer_of(answer).number("total", 0))
        except ApiError as error:
            raise lookup_error(error) from error

    async def newest(self, stream: str, subject: str) -> Newest | None:
        """Return the newest message with this subject, as `link.Link.newest` does."""
        body = json.dumps({"last_by_subj": subject}).encode()
        try:
            found = await self.ask(f"STREAM.MSG.GET.{stream}", body, stored_message)
        except ApiError as error:
            if error.error_code == codes.NO_MESSAGE:
                return None
            raise lookup_error(error) from error
        return Newest(found.sequence, found.time_ns, found.headers, found.payload)

    async def ensure_stream(self, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
        """Create a stream if there is none of that name, as `link.Link.ensure_stream` does."""
        if not is_name(wanted.name):
            raise SourceError(f"{excerpt(wanted.name)!r} is not a valid name of a stream", reason=reasons.INVALID_NAME)
        found = await self._find(wanted.name)
        if found is not None:
            return stream_config(found), False
        config = _request(wanted)
        body, headers = json.dumps(config).encode(), required_level(config)
        try:
            made = await self.ask(f"STREAM.CREATE.{wanted.name}", body, stream_info, headers=headers)
        except ApiError as error:
            # Another client was faster.
            found = await self._find(wanted.name) if error.error_code == codes.NAME_IN_USE else None
            if found is not None:
                return stream_config(found), False
            if error.error_code == codes.LEVEL_REQUIRED:
                raise SourceError(too_old(f"stream {wanted.name!r}", config), reason=reasons.SERVER_TOO_OLD) from error
            overlaps = error.error_code == codes.SUBJECTS_OVERLAP
            more = await self._overlapping(wanted) if overlaps else ""
            raise creation_error(error, f"stream {wanted.name!r}", more) from error
        return stream_config(made), True

    async def _overlapping(self, wanted: StreamConfig) -> str:
        """Return which stream already takes subjects of the wanted one, if the server reports it."""
        for subject in wanted.subjects:
            try:
                names = await self.find_streams(subject)
            except SourceError:
                break
            if names:
                return f"; stream {excerpt(names[0])!r} takes {excerpt(subject)!r} already"
        return ""

    async def _find(self, name: str) -> StreamInfo | None:
        try:
            return await self.ask(f"STREAM.INFO.{name}", b"", stream_info)
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise lookup_error(error) from error


def lookup_error(error: ApiError) -> SourceError:
    """Return the error for an error answer that proves nothing about what was looked up."""
    if error.error_code in codes.NO_JETSTREAM:
        return _not_enabled(API)
    return SourceError(f"JetStream answered: {error.explained}", reason=reasons.JETSTREAM_UNAVAILABLE)


def creation_error(error: ApiError, what: str, more: str = "") -> SourceError:
    """Return the error for a refused request to create a stream, or a bucket. `more` is added to a final refusal."""
    if error.code == UNAVAILABLE or error.error_code in codes.NO_JETSTREAM:
        return lookup_error(error)
    detail = f"the server refused to create the {what}: {error.explained}{more}"
    return SourceError(detail, reason=reasons.STREAM_REFUSED)


def _not_enabled(prefix: str) -> SourceError:
    return SourceError(no_jetstream(prefix), reason=reasons.NO_JETSTREAM)


def refuses(info: StreamInfo) -> tuple[str, str] | None:
    """Return the reason and detail if a stream accepts no messages, with the cure; None if it does."""
    if info.sealed:
        return "stream_sealed", f"stream {info.name!r} is sealed and accepts no messages; send to another stream"
    if info.mirror:
        detail = f"stream {info.name!r} is a mirror, which accepts no messages; send to the stream that it mirrors"
        return "stream_is_mirror", detail
    if info.no_ack:
        detail = f"stream {info.name!r} sends no PubAcks (no_ack), so nothing counts as stored; turn no_ack off"
        return "stream_without_acks", detail
    if info.group.trouble is not None:
        return "stream_cut_off", cut_off("stream", info.name, info.group.trouble)
    messages, octets = _room(info)
    if messages <= 0:
        limit = f"{info.max_messages} messages (max_messages, or max_msgs for nats)"
    elif octets <= 0:
        limit = f"{info.max_bytes} bytes (max_bytes)"
    else:
        return None
    detail = (
        f"stream {info.name!r} is full and refuses new messages: its limit is {limit}; raise it, or delete messages"
    )
    return "stream_full", detail


def _room(info: StreamInfo) -> tuple[float, float]:
    """Return the room for messages and bytes, as far as limits refuse new messages."""
    if info.discard != "new":
        return inf, inf
    messages = info.max_messages - info.messages if info.max_messages > 0 else inf
    octets = info.max_bytes - info.bytes if info.max_bytes > 0 else inf
    return messages, octets


def _request(wanted: StreamConfig) -> dict[str, object]:
    request: dict[str, object] = {
        "name": wanted.name,
        "subjects": list(wanted.subjects),
        "storage": wanted.storage,
        "retention": wanted.retention,
        "num_replicas": wanted.replicas,
        "max_age": round(wanted.max_age * 1e9),
        "max_bytes": wanted.max_bytes,
        "max_msgs": wanted.max_messages,
        "discard": wanted.discard,
        "metadata": {**monitored_stream(wanted.replicas), **wanted.metadata()},
    }
    if wanted.duplicate_window is not None:
        request["duplicate_window"] = round(wanted.duplicate_window * 1e9)
    # Only if wanted: an older server in strict mode refuses a field that it does not know.
    if wanted.allow_batched:
        request["allow_batched"] = True
    if wanted.allow_message_ttl:
        request["allow_msg_ttl"] = True
    if wanted.allow_message_schedules:
        request["allow_msg_schedules"] = True
    if wanted.transform is not None:
        source, destination = wanted.transform
        request["subject_transform"] = {"src": source, "dest": destination}
    return request


def stream_config(info: StreamInfo) -> StreamConfig:
    """Return the configuration of a stream, as `[[streams]]` describes one."""
    return StreamConfig(
        name=info.name,
        subjects=info.subjects,
        storage=info.storage,
        retention=info.retention,
        replicas=info.replicas,
        max_age=info.max_age,
        max_bytes=_limit(info.max_bytes),
        max_messages=_limit(info.max_messages),
        discard=info.discard,
        duplicate_window=info.duplicate_window,
        allow_batched=info.allow_batched,
        allow_message_ttl=info.allow_message_ttl,
        allow_message_schedules=info.allow_schedules,
        transform=info.stores.transform,
    )


def _limit(number: int) -> int:
    return number if number > 0 else -1


# --- is it still the same stream? ---
#
# A stream that is restored from a backup, becomes empty, or is deleted and created again numbers its messages from the
# start, often under the same name and creation time. A message that a stream still has is the same one if its time is
# the same. Times alone prove nothing: the clock of a server may be set back.


def evidence_of_going_back(spec: ConsumerSpec, stream: StreamInfo) -> str | None:
    """Return the evidence that a stream was rolled back; None if there is none."""
    if spec.stream_created is None:
        return None
    if stream.created != spec.stream_created:
        return f"it was created again at {stream.created}"
    if stream.last_sequence < spec.last_sequence:
        return f"its last sequence is {stream.last_sequence}, but message {spec.last_sequence} was received before"
    if spec.start_sequence is not None and stream.last_sequence < spec.start_sequence - 1:
        # Known from the durable alone, by a process that has received nothing.
        return f"its last sequence is {stream.last_sequence}, but the durable had passed {spec.start_sequence - 1}"
    for sequence, time in (
        (stream.first_sequence, stream.first_time),
        (stream.last_sequence, stream.last_time),
    ):
        if stream.messages and _known(spec).get(sequence, nanoseconds(time)) != nanoseconds(time):
            return _another(sequence)
    return None


def is_doubtful(spec: ConsumerSpec, stream: StreamInfo) -> bool:
    """Return True if all messages of a stream seem to be newer than a message that it should have."""
    return any(_lacks(stream, sequence, time) for sequence, time in _known(spec).items())


async def other_message(api: Api, spec: ConsumerSpec, stream: StreamInfo) -> str | None:
    """Check whether a stream has other messages under the sequences of known ones. Can be cancelled.

    Returns the evidence that the stream was rolled back; None if there is none. A message that can't be read proves
    nothing, unless all messages of the stream seem to be newer.
    """
    for sequence, time in _known(spec).items():
        try:
            found = await look_up(api, spec.stream, {"seq": sequence})
        except (ApiError, SourceError, TimeoutError, NoResponders):
            if _lacks(stream, sequence, time):
                return "all its messages are newer than those received before"
        else:
            if nanoseconds(found.time) != time:
                return _another(sequence)
    return None


def _known(spec: ConsumerSpec) -> dict[int, int]:
    """Return the times of the messages by which a stream is recognized, by sequence.

    The last known message is first. The last one before the start is the same message, unless deliveries are unsettled,
    or went to other processes.
    """
    known = {spec.last_sequence: spec.last_time, spec.passed_sequence: spec.passed_time}
    known.pop(0, None)
    return known


def _lacks(stream: StreamInfo, sequence: int, time: int) -> bool:
    """Return True if all messages of a stream seem to be newer than that message, which it should have."""
    return stream.first_sequence <= sequence and time < nanoseconds(stream.first_time)


async def has_last_message(api: Api, spec: ConsumerSpec) -> bool:
    """Return True if a stream is seen to have the last message that is known. Can be cancelled."""
    try:
        found = await look_up(api, spec.stream, {"seq": spec.last_sequence})
    except (ApiError, SourceError, TimeoutError, NoResponders):
        return False
    return nanoseconds(found.time) == spec.last_time


async def look_up(api: Api, stream: str, which: dict[str, object]) -> Stored:
    """Return the sequence and time of a stored message. Raises as `Api.ask` does, `ApiError` if there is none."""
    return await api.ask(f"STREAM.MSG.GET.{stream}", json.dumps(which).encode(), stored, LOOK_UP_WITHIN)


def _another(sequence: int) -> str:
    return f"it has another message under sequence {sequence}"
