"""Making a stream that is absent, over a link that is there. One that is there is never changed."""

from __future__ import annotations

import json

from router_trio.errors import SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.nats.jetstream.api import ApiError, StreamInfo, stream_info
from router_trio.nats.jetstream.lookups import NOT_ENABLED, NOT_FOUND, UNAVAILABLE, Lookups, is_name, said
from router_trio.protocol.stream_config import StreamConfig

NAME_IN_USE = 10058
"""Error code of the JetStream API: there is such a stream, and it is configured otherwise."""

SUBJECTS_OVERLAP = 10065
"""Error code of the JetStream API: another stream has subjects of this one."""


async def ensure_stream(lookups: Lookups, wanted: StreamConfig) -> tuple[StreamConfig, bool]:
    """See `link.Link.ensure_stream`."""
    if not is_name(wanted.name):
        raise SourceError(f"{excerpt(wanted.name)!r} is not a valid name of a stream", reason=reasons.INVALID_NAME)
    found = await _find(lookups, wanted.name)
    if found is not None:
        return _config(found), False
    body = json.dumps(_request(wanted)).encode()
    try:
        made = await lookups.ask(f"STREAM.CREATE.{wanted.name}", body, stream_info)
    except ApiError as error:
        # Somebody else was faster.
        found = await _find(lookups, wanted.name) if error.error_code == NAME_IN_USE else None
        if found is not None:
            return _config(found), False
        if error.code == UNAVAILABLE or error.error_code in NOT_ENABLED:
            raise said(error) from error
        told = f"the server refused to make the stream {wanted.name!r}: {excerpt(error.description)}"
        if error.error_code == SUBJECTS_OVERLAP:
            told += await _overlapping(lookups, wanted)
        raise SourceError(told, reason=reasons.STREAM_REFUSED) from error
    return _config(made), True


async def _overlapping(lookups: Lookups, wanted: StreamConfig) -> str:
    """Return which stream has subjects of the wanted one, as far as the server says."""
    for subject in wanted.subjects:
        try:
            names = await lookups.find_streams(subject)
        except SourceError:
            break
        if names:
            return f"; stream {excerpt(names[0])!r} takes {excerpt(subject)!r} already"
    return ""


async def _find(lookups: Lookups, name: str) -> StreamInfo | None:
    try:
        return await lookups.ask(f"STREAM.INFO.{name}", b"", stream_info)
    except ApiError as error:
        if error.code == NOT_FOUND:
            return None
        raise said(error) from error


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
    }
    if wanted.duplicate_window is not None:
        request["duplicate_window"] = round(wanted.duplicate_window * 1e9)
    # Only where it is wanted: an older server that is strict refuses a field that it does not know.
    if wanted.allow_batched:
        request["allow_batched"] = True
    if wanted.allow_message_ttl:
        request["allow_msg_ttl"] = True
    return request


def _config(info: StreamInfo) -> StreamConfig:
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
    )


def _limit(number: int) -> int:
    return number if number > 0 else -1
