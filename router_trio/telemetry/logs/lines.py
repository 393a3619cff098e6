"""Turn events into log lines: one JSON object per line, or text for a console.

Logs only observe events. Events that can happen for every message are merged into one line per second for each code and
connection, with the number of merged events. Warnings of libraries become lines in the same format. No line contains a
credential, nor a payload, unless a handler quotes it in `Reject` or `Retry`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import trio

from router_trio.events import Event, Level, RouterStopped, catalogue
from router_trio.telemetry.logs.console import console_line
from router_trio.telemetry.logs.merge import INTERVAL, Merged, Merger
from router_trio.telemetry.logs.redact import redact_all
from router_trio.telemetry.logs.writer import LineWriter, write_to_stderr
from router_trio.terminals import is_terminal, shows_colours

LIBRARY = "LIBRARY"
LIBRARIES = ("nats", "opentelemetry", "trio", "asyncio", "router_trio")
"""Loggers of the standard library's `logging` whose warnings become log lines."""

ASYNCIO = "asyncio"
"""The logger that reports errors of tasks and callbacks of handlers, with their texts and arguments."""

_COROUTINE = re.compile(r"coro=<(.+?\(\)) .*?\bat ([^\s>]+)>")

LEVELS = {"debug": Level.DEBUG, "info": Level.INFO, "warning": Level.WARN, "error": Level.ERROR}

SpanIds = tuple[str, str]
"""A trace id and a span id, in hexadecimal."""

Render = Callable[[dict[str, Any]], str]


@dataclass(frozen=True, slots=True)
class LogCode:
    """The error code of a log line, with its level and help text."""

    code: str
    level: str
    help: str


def log_codes() -> list[LogCode]:
    """Return all error codes, sorted by name."""
    codes = [LogCode(kind.code, kind.level.name, " ".join((kind.__doc__ or "").split())) for kind in catalogue()]
    codes.append(LogCode(LIBRARY, Level.WARN.name, "A warning or an error of a library, under its logger's name."))
    return sorted(codes, key=lambda one: one.code)


class Logs:
    """The log of one router.

    `level`, `form` and `handler_errors` are the values of the settings; events less severe than `least` are not logged.
    In a worker process every line has the number `worker`. `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        *,
        level: str = "info",
        least: Level | None = None,
        form: str = "json",
        handler_errors: str = "type",
        worker: int | None = None,
        write: Callable[[bytes], object] = write_to_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._level = max(LEVELS[level], least or Level.DEBUG)
        self._render = _renderer(form)
        self._of_worker = {} if worker is None else {"worker": worker}
        self._handler_errors = handler_errors == "full"
        self._writer = LineWriter(write)
        self._events: Merger[tuple[Event, SpanIds | None]] = Merger(clock)
        self._records: Merger[logging.LogRecord] = Merger(clock)
        self._lock = threading.Lock()
        self._to_flush = trio.Event()
        self._wake: Callable[[], object] = lambda: None

    @property
    def lines_dropped(self) -> int:
        """Lines dropped because stderr did not accept them."""
        return self._writer.dropped

    def write(self, event: Event, ids: SpanIds | None = None) -> None:
        """Log an event, at once or merged. `ids` are the ids of the span that it belongs to. Never blocks."""
        if event.severity < self._level:
            return
        if not event.per_message:
            if isinstance(event, RouterStopped):
                self.flush(everything=True)  # what was merged happened before: the ledger is the last line
            self._write_event(event, ids)
            return
        subject = getattr(event, "connection", None) or getattr(event, "route", None)
        reason = getattr(event, "reason", None)
        merged = self._events.offer((event.code, subject), (event, ids), getattr(event, "count", 1), reason)
        self._to_flush.set()
        if merged is not None:
            self._write_merged(merged)

    def flush(self, *, everything: bool = False) -> None:
        """Log the merged events whose interval is over, or with `everything` all merged events."""
        for merged in self._events.due(everything=everything):
            self._write_merged(merged)
        with self._lock:
            records = self._records.due(everything=everything)
        for record in records:
            self._write_record(record)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write lines, including the libraries' warnings, while this is entered. Leaving flushes, within a second."""
        async with self._writer.writing():
            try:
                with self._libraries():
                    yield
            finally:
                self.flush(everything=True)

    async def flush_regularly(self) -> None:
        """Flush due events periodically until cancelled. Sleeps while there is nothing to flush."""
        token = trio.lowlevel.current_trio_token()
        self._wake = partial(_soon, token, self._notify_flush)
        while True:
            while self._events or self._records:
                await trio.sleep(INTERVAL / 2)
                self.flush()
            self._to_flush = trio.Event()
            await self._to_flush.wait()

    def library(self, record: logging.LogRecord) -> None:
        """Log a record of the standard library's `logging`, merged by its text. Thread-safe."""
        if _level_of(record) < max(self._level, Level.WARN):
            return
        text = str(record.msg)
        if record.name == ASYNCIO:  # it formats its texts itself, with the number of a task
            text = _without_values(text)
        with self._lock:
            merged = self._records.offer((record.name, text), record)
        self._wake()
        if merged is not None:
            self._write_record(merged)

    # --- inside ---

    def _notify_flush(self) -> None:
        self._to_flush.set()

    @contextmanager
    def _libraries(self) -> Iterator[None]:
        handler = _Handler(self)
        loggers = [logging.getLogger(name) for name in LIBRARIES]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)

    def _write_event(self, event: Event, ids: SpanIds | None, **changes: Any) -> None:
        line: dict[str, Any] = {"error_tag": event.tag} if event.tag else {}
        line |= event.shown_details(handler_errors=self._handler_errors) | changes
        if ids is not None:
            line["trace_id"], line["span_id"] = ids
        if "outage_seconds" in line:
            line["outage_seconds"] = round(line["outage_seconds"], 3)
        self._put(event.severity, event.sentence(), event.code, line)

    def _write_merged(self, merged: Merged[tuple[Event, SpanIds | None]]) -> None:
        event, ids = merged.latest
        changes: dict[str, Any] = {"count": merged.count}
        if len(merged.reasons) > 1:
            changes["reasons"] = merged.reasons
        self._write_event(event, ids, **changes)

    def _write_record(self, merged: Merged[logging.LogRecord]) -> None:
        record = merged.latest
        line: dict[str, Any] = {"logger": record.name, "count": merged.count}
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error_type"] = type(error).__qualname__
            line["where"] = _where(error)
        try:
            text = record.getMessage()
        except Exception:
            text = str(record.msg)
        if record.name == ASYNCIO and not self._handler_errors:
            text = _without_values(text)
        self._put(_level_of(record), " ".join(text.split()), LIBRARY, line)

    def _put(self, level: Level, message: str, code: str, line: dict[str, Any]) -> None:
        timestamp = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
        fields = {
            "timestamp": timestamp,
            "level": level.name,
            "message": message,
            "error_code": code,
            **self._of_worker,
            **line,
        }
        self._writer.put(self._render(redact_all(fields)))


def _soon(token: trio.lowlevel.TrioToken, call: Callable[[], object]) -> None:
    with suppress(trio.RunFinishedError):  # a library may log from a thread that outlives the event loop
        token.run_sync_soon(call, idempotent=True)


class _Handler(logging.Handler):
    def __init__(self, logs: Logs) -> None:
        super().__init__(logging.WARNING)
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._logs.library(record)
        except Exception:
            self.handleError(record)


def _level_of(record: logging.LogRecord) -> Level:
    return max((level for level in Level if level <= record.levelno), default=Level.DEBUG)


def _where(error: BaseException) -> str | None:
    """Return the file and line that raised. A full traceback could quote a payload in its last line."""
    traceback = error.__traceback__
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"


def _without_values(text: str) -> str:
    """Return a text of asyncio without the errors, results and arguments in it, which may quote a payload."""
    first, _, more = text.partition("\n")
    begin, end = first.find("("), first.rfind(")")
    if begin >= 0:  # the arguments of a callback
        first = first[:begin] + (first[end + 1 :] if end > begin else "")
    coroutine = _COROUTINE.search(more)
    return first if coroutine is None else f"{first}: {coroutine[1]} at {coroutine[2]}"


def _renderer(form: str) -> Render:
    if form == "auto":
        form = "console" if is_terminal(sys.stderr) else "json"
    if form == "json":
        return partial(json.dumps, default=repr)
    return partial(console_line, colours=shows_colours(sys.stderr))
