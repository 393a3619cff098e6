"""Takes credentials out of texts that other programs wrote.

The router's own texts never hold a secret. But an error message of a library or a server may repeat a URL with the
user part in it, and everything that leaves the process as a log line or a status page passes here first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Greedy up to the last @ of the word: a password may itself hold an @ or a slash.
_URL_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*@")
_BARE_CREDENTIALS = re.compile(r"[^\s'\"(\[]+:\S+@(?=[\w\[])")


def redact(text: str) -> str:
    """The text with `user:password@` and `token@` of every URL taken out."""
    if "@" not in text:
        return text
    return _BARE_CREDENTIALS.sub("", _URL_CREDENTIALS.sub(r"\1", text))


def redact_all(value: Any) -> Any:
    """The value with every string in it redacted, also inside mappings and lists."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_all(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(one) for one in value]
    return value
