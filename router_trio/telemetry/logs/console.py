"""Log lines for a terminal: time, level and message, followed by the fields that the message does not contain.

`16:08:44 WARN  Connection main could not connect (attempt 1 of 10): connection refused by 127.0.0.1:4222; ...`
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

_COLOURS = {"DEBUG": "2", "INFO": "32", "WARN": "33", "ERROR": "31"}
_FIRST = ("timestamp", "level", "message", "error_code")
_IMPLIED = frozenset({"error_tag", "attempt", "max_attempts", "trace_id", "span_id"})
"""Fields that repeat the code or the message, or that only programs read."""


def console_line(line: Mapping[str, Any], *, colours: bool) -> str:
    """Return a log line for a terminal, with the local time."""
    time = datetime.fromisoformat(line["timestamp"]).astimezone().strftime("%H:%M:%S")
    level, message = str(line["level"]), _one_line(str(line["message"]))
    facts = " ".join((*_facts(line, message), str(line["error_code"])))
    if not colours:
        return f"{time} {level:5} {message}  [{facts}]"
    return f"\x1b[2m{time}\x1b[0m \x1b[{_COLOURS.get(level, '0')}m{level:5}\x1b[0m {message}  \x1b[2m[{facts}]\x1b[0m"


def _facts(line: Mapping[str, Any], message: str) -> Iterator[str]:
    for name, value in line.items():
        if name in _FIRST or name in _IMPLIED or value is None or (name == "count" and value == 1):
            continue
        if isinstance(value, str):
            text = _one_line(value)
            # The message may contain the address without its scheme, or the parts of the text at other places.
            address = text.rpartition("://")[2]
            if address in message or all(part in message for part in text.split("; ")):
                continue
        elif isinstance(value, Mapping | list | tuple):
            text = json.dumps(value, default=str, separators=(",", ":"))
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            if _is_number_of(text, message) and name != "worker":  # always shown, to find all lines of a worker
                continue
        yield f'{name}="{text}"' if " " in text and isinstance(value, str) else f"{name}={text}"


def _is_number_of(text: str, message: str) -> bool:
    return text in message.replace("(", " ").replace(")", " ").replace(",", " ").replace(";", " ").split()


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
