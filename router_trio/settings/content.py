"""Identify a configuration by a short hash that anyone may read: equal wherever the same configuration is in force.

The hash covers the values that a reload compares, in the form in which the log would show them. Comments, the order of
tables, the number of files and explicitly given defaults do not change it. Credentials are removed before anything is
hashed, wherever they came from: a hash on `/metrics` must not let anyone verify a guessed password. So a changed
password alone does not change the hash. A digest of the files would miss the environment and settings from code, and
would cover the passwords in the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from router_trio.errors.quotes import redact

DIGITS = 12
"""Length of a shown hash, in hexadecimal digits."""

OF_THE_PLACE = ("router.workers", "telemetry.listen", "telemetry.allowed_hosts")
"""Keys about where a router runs and with how many processes. Neither the hash covers them nor do workers use them."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def content_hash(router: BaseModel, telemetry: BaseModel, positions: Mapping[str, BaseModel], messages: str) -> str:
    """Return the hash of a configuration; `messages` is the result of `hash_of_messages` for its other sections.

    `positions` are those of `[[positions]]`, by their keys.
    """
    sections = {"router": _section(router), "telemetry": _section(telemetry)}
    if positions:
        sections["positions"] = {key: _section(one) for key, one in positions.items()}
    for path in OF_THE_PLACE:
        section, _, key = path.partition(".")
        sections[section].pop(key, None)
    return _hash({**sections, "messages": messages})[:DIGITS]


def hash_of_messages(
    connections: Mapping[str, BaseModel], routes: Mapping[str, BaseModel], streams: Mapping[str, BaseModel]
) -> str:
    """Return the hash of the sections that decide about messages, each given by name. The expensive part."""
    return _hash([{name: _section(one) for name, one in part.items()} for part in (connections, routes, streams)])


def without_keys(value: Any, *, path_shown: bool = False) -> Any:
    """Remove from a URL what may hold a secret: user, path, query and fragment. Return any other value as it is.

    Only HTTP has paths with keys, which `path_shown` leaves in.
    """
    if not isinstance(value, str) or not _URL.match(value):
        return value
    scheme, _, rest = value.partition("://")
    where, mark, _ = rest.partition("?") if "?" in rest else rest.partition("#")
    authority, slash, path = where.partition("/")
    if scheme.lower() in ("http", "https") and path and not path_shown:
        path = "..."
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}{mark and mark + '...'}"


def _section(section: BaseModel) -> dict[str, Any]:
    shown: dict[str, Any] = _shown(section.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    return shown


def _shown(value: Any) -> Any:
    """Return a value as the log would show it."""
    if isinstance(value, dict):
        return {key: _shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return redact(without_keys(value)) if isinstance(value, str) else value


def _hash(value: Mapping[str, Any] | Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
