"""What is asked of JetStream beside the messages: which streams there are, how they and a consumer are.

A question that this user may not ask, or that nobody answers in time, is a `SourceError` with a reason of
`reasons.LOOKUP_FAILED`: it says nothing of what was looked up. Nothing here is tried again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from math import inf
from typing import TypeVar

import nats.errors

from router_trio.errors import SourceError, reasons
from router_trio.link import LOOKUP_WITHIN, StreamState
from router_trio.nats.jetstream.api import ApiError, StreamInfo, stream_info, stream_names
from router_trio.nats.jetstream.ask import API, Api, no_jetstream
from router_trio.nats.jetstream.consumer_config import cut_off

T = TypeVar("T")

NOT_FOUND = 404
STREAM_NOT_FOUND = 10059
"""Error code of the JetStream API; an absent consumer is 10014."""
UNAVAILABLE = 503

NOT_ENABLED = frozenset({10039, 10076})
"""Error codes of nats-server: JetStream is not enabled for the account, or on the server."""

_NAME = re.compile(r"[^\s.*>/\\]{1,255}")


def is_name(name: str) -> bool:
    """Return True if a stream or a consumer can have this name: only then it may be a token of a request's subject."""
    return _NAME.fullmatch(name) is not None and name.isprintable()


class Lookups:
    """The questions of one link."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def ask(self, request: str, body: bytes, read: Callable[[bytes], T], api: Api | None = None) -> T:
        """Send a request, and read its answer. Raises `SourceError`, or `ApiError` for an answer that is an error.

        `api` asks another JetStream than that of the connection.
        """
        api = api or self._api
        named = api.subject_of(request)
        try:
            return await api.ask(request, body, read, LOOKUP_WITHIN)
        except nats.errors.NoRespondersError as error:
            raise _not_enabled(api.prefix) from error
        except TimeoutError as error:
            told = f"no answer to {named} within {LOOKUP_WITHIN:g} s"
            raise SourceError(told, reason=reasons.TIMEOUT) from error
        except nats.errors.Error as error:
            raise SourceError(f"{named} could not be asked", reason=reasons.JETSTREAM_UNAVAILABLE) from error

    async def find_streams(self, subject: str) -> Sequence[str]:
        """See `link.Link.find_streams`."""
        try:
            return await self.ask("STREAM.NAMES", json.dumps({"subject": subject}).encode(), stream_names)
        except ApiError as error:
            raise said(error) from error

    async def may_exist(self, name: str, domain: str = "") -> bool:
        """Return False if the server says that there is no stream of this name; True also if it does not say.

        With an API of the connection's own, that is asked as well: the domain is that of another account's server.
        """
        if not is_name(name) or not (domain == "" or is_name(domain)):
            return False
        prefixes = {self._api.prefix} - {API} | {f"$JS.{domain}.API" if domain else API}
        for prefix in sorted(prefixes):
            try:
                await self.ask(
                    f"STREAM.INFO.{name}", b"", stream_info, Api(self._api.control, self._api.denials, prefix)
                )
            except ApiError as error:
                if error.error_code == STREAM_NOT_FOUND:
                    continue
            except SourceError:
                pass
            return True
        return False

    async def stream_state(self, name: str, domain: str = "") -> StreamState | None:
        """See `link.Link.stream_state`. One that the connection's JetStream lacks is looked for in `domain` as well."""
        if not is_name(name):
            return None
        try:
            info = await self.ask(f"STREAM.INFO.{name}", b"", stream_info)
        except ApiError as error:
            if error.code != NOT_FOUND:
                raise said(error) from error
            if not is_name(domain):
                return None
            try:
                other = Api(self._api.control, self._api.denials, f"$JS.{domain}.API")
                info = await self.ask(f"STREAM.INFO.{name}", b"", stream_info, other)
            except ApiError as error:
                if error.code == NOT_FOUND:
                    return None
                raise said(error) from error
        if info.name != name:
            raise SourceError(f"the answer about stream {name!r} is about another one", reason=reasons.BAD_ANSWER)
        limits = (info.max_messages, info.max_bytes, info.max_messages_per_subject, info.max_message_size)
        return StreamState(
            info.name,
            info.subjects,
            _refuses(info),
            _room(info),
            info.messages,
            limits,
            info.duplicate_window,
            info.persist_mode == "async",
            info.created,
            info.stores,
        )


def said(error: ApiError) -> SourceError:
    """Return the error for an answer that is one, and says nothing of what was asked about."""
    if error.error_code in NOT_ENABLED:
        return _not_enabled(API)
    return SourceError(f"JetStream answered: {error.description}", reason=reasons.JETSTREAM_UNAVAILABLE)


def _not_enabled(prefix: str) -> SourceError:
    return SourceError(no_jetstream(prefix), reason=reasons.NO_JETSTREAM)


def _refuses(info: StreamInfo) -> tuple[str, str] | None:
    if info.sealed:
        return "stream_sealed", f"stream {info.name!r} is sealed and takes no messages; send to another stream"
    if info.no_ack:
        told = f"stream {info.name!r} confirms nothing (no_ack), so nothing counts as stored; switch its acks on"
        return "stream_without_acks", told
    if info.group.trouble is not None:
        return "stream_cut_off", cut_off("stream", info.name, info.group.trouble)
    messages, octets = _room(info)
    if messages <= 0:
        limit = f"{info.max_messages} messages (max_messages, or max_msgs for nats)"
    elif octets <= 0:
        limit = f"{info.max_bytes} bytes (max_bytes)"
    else:
        return None
    told = f"stream {info.name!r} is full and refuses new messages: it has its {limit}; raise the limit, or delete some"
    return "stream_full", told


def _room(info: StreamInfo) -> tuple[float, float]:
    """Return how many messages and bytes there is room for, as far as limits refuse new messages."""
    if info.discard != "new":
        return inf, inf
    messages = info.max_messages - info.messages if info.max_messages > 0 else inf
    octets = info.max_bytes - info.bytes if info.max_bytes > 0 else inf
    return messages, octets
