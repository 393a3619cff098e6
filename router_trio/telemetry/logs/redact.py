"""Redact everything that leaves the process as a log line, a span or a page: no credentials, bounded lengths.

The router's own texts hold no secret and quote nothing at length. But an error message of a library or a server may
repeat a URL with its user part, and whoever writes the next event may forget to cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_trio.errors.quotes import LONGEST_TEXT, bounded, excerpt, redact

__all__ = ["redact", "redact_all", "shown_text"]


def shown_text(text: str) -> str:
    """Return the text as a page or a span may show it: redacted, at most `LONGEST_TEXT` characters on one line."""
    return excerpt(_redacted(text), LONGEST_TEXT)


def _redacted(text: str) -> str:
    # What is longer is redacted as far as it is read.
    return bounded(redact(text) if len(text) <= LONGEST_TEXT else text)


def redact_all(value: Any) -> Any:
    """Return the value with every string in it redacted and bounded, also inside mappings and lists."""
    if isinstance(value, str):
        return _redacted(value)
    if isinstance(value, Mapping):
        return {_redacted(key) if isinstance(key, str) else key: redact_all(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(one) for one in value]
    return value
