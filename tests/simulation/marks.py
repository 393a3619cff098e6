"""Sometimes-marks: which lines of the important modules were ever reached, over all seeds.

Found by tracing, so that the package knows nothing of it. Tracing is slow: a part of the seeds is enough.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

MODULES = (
    *("connection.supervisor", "connection.session", "connection.attempts", "connection.backoff"),
    *("connection.listener", "outbox.refusals", "outbox.sender"),
    *("outbox.outbox", "outbox.settlement", "outbox.capacity", "outbox.queue", "outbox.retry_lanes", "outbox.retries"),
    *("connection.pull_credit", "routing.stream.source", "routing.stream.pulling.pull_loop"),
    *("routing.schedule", "routing.failures", "routing.stream.keeper", "routing.kept_route"),
    *("routing.stream.in_hand", "routing.stream.cursor"),  # the place in a stream
    *("routing.stream.subject_order", "routing.stream.acks", "routing.stream.delivery"),  # the order
    *("routing.core.keeper", "routing.core.in_hand", "routing.core.batch_route"),
    *("routing.core.source", "routing.core.forwarding", "routing.core.passthrough", "routing.core.intake_queue"),
    *("routing.pipeline", "routing.core.handler_batch"),
    *("client.publisher", "client.ack_deadlines", "client.receipt", "router"),
)
"""Modules below `router_trio`."""

Trace = Callable[[FrameType, str, Any], Any]

Place = tuple[str, int]
"""A file and one of its lines."""


class Marks:
    """Every reachable line of `MODULES`, and those that were reached: of those that are compiled, none can be."""

    def __init__(self) -> None:
        self.reached: set[Place] = set()
        self._files = {str(file): name for name in MODULES if (file := _file(name)).suffix == ".py"}
        self._left: dict[CodeType, set[int]] = {}

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Record the lines that run in this thread during the context."""
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, event: str, argument: object) -> Trace | None:
        code = frame.f_code
        left = self._left.get(code)
        if left is None:
            left = self._left[code] = _lines_of(code) if code.co_filename in self._files else set()
        # Once all lines of a function were reached, it costs no more than this lookup.
        return self._ran if left else None

    def _ran(self, frame: FrameType, event: str, argument: object) -> Trace:
        line, left = frame.f_lineno, self._left[frame.f_code]
        if line in left:
            left.remove(line)
            self.reached.add((frame.f_code.co_filename, line))
        return self._ran

    def unreached(self) -> list[tuple[str, int, str]]:
        """Return module, line and text of each line of a function that was never reached."""
        found = []
        for file, name in self._files.items():
            text = Path(file).read_text()
            lines = text.splitlines()
            for line in sorted(_lines(compile(text, file, "exec"))):
                if (file, line) not in self.reached:
                    found.append((name, line, lines[line - 1].strip()))
        return found

    def count(self) -> tuple[int, int]:
        """Return the number of lines that were reached, and of all."""
        there = {(file, line) for file in self._files for line in _lines(compile(Path(file).read_text(), file, "exec"))}
        return len(there & self.reached), len(there)


def report(marks: Marks) -> Sequence[str]:
    """Return a report of the marks."""
    reached, there = marks.count()
    traced = sum(_file(name).suffix == ".py" for name in MODULES)
    lines = [f"marks: {reached} of {there} lines of {traced} modules were reached; not reached:"]
    return [*lines, *(f"  {name}:{line}: {text}" for name, line, text in marks.unreached())]


def _file(name: str) -> Path:
    return Path(str(import_module(f"router_trio.{name}").__file__))


def _lines(module: CodeType) -> set[int]:
    """Return the lines of all functions in a module, without those that run on import."""
    found: set[int] = set()
    todo = [one for one in module.co_consts if isinstance(one, CodeType)]
    while todo:
        code = todo.pop()
        todo += [one for one in code.co_consts if isinstance(one, CodeType)]
        found |= _lines_of(code)
    return found


def _lines_of(code: CodeType) -> set[int]:
    """Return the lines of one function except its first; the lines of a class body are not included."""
    if not code.co_flags & CO_OPTIMIZED:
        return set()
    return {line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno}
