"""Redact everything that leaves the process in a log line, a span or a page: no credentials, bounded lengths.

The router's own texts contain no secrets and no long quotes. But an error message of a library or a server may repeat a
URL with credentials, and an event added later may not limit its texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_trio.errors.quotes import LONGEST_TEXT, REDACTED, bounded, excerpt, names_secret, redact

__all__ = ["redact", "redact_all", "shown_header", "shown_text"]


def shown_text(text: str) -> str:
    """Return the text for a page or a span: redacted, on one line of at most `LONGEST_TEXT` characters."""
    return excerpt(_redacted(text), LONGEST_TEXT)


def shown_header(name: str, value: str) -> str:
    """Return the value of a message's header: redacted as any text, and entirely if its name is that of a secret."""
    return REDACTED if names_secret(name) else shown_text(value)


def _redacted(text: str) -> str:
    # `bounded` redacts what it keeps of a longer text; the rest of the text need not be read.
    return bounded(redact(text) if len(text) <= LONGEST_TEXT else text)


def redact_all(value: Any) -> Any:
    """Return the value with every string in it redacted and bounded, including strings in mappings and lists."""
    if isinstance(value, str):
        return _redacted(value)
    if isinstance(value, Mapping):
        return {_redacted(key) if isinstance(key, str) else key: redact_all(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(one) for one in value]
    return value
