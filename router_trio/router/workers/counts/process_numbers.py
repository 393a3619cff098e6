"""The metrics that begin with `process_`, of one process and of several together, as reported by the system."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from router_trio.telemetry.metrics.metric import Form, ProcessMetric, head
from router_trio.telemetry.metrics.table import TABLE

_PAGE = resource.getpagesize()
_LIMIT = "process_max_fds"
_PROCESSOR = "process_cpu_seconds_total"
_START = "process_start_time_seconds"


def processor_microseconds() -> int:
    """Return the processor time of this process."""
    return time.process_time_ns() // 1000


def process_numbers() -> dict[str, float]:
    """Return the gauges of this process, or nothing if the system has no /proc."""
    try:
        virtual, resident = map(int, Path("/proc/self/statm").read_bytes().split()[:2])
        descriptors = len(os.listdir("/proc/self/fd"))
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (OSError, ValueError):  # there is no /proc, or a sandbox forbids reading it
        return {}
    return {
        "process_resident_memory_bytes": resident * _PAGE,
        "process_virtual_memory_bytes": virtual * _PAGE,
        "process_open_fds": descriptors,
        _LIMIT: limit if limit != resource.RLIM_INFINITY else float("inf"),
    }


def together(processes: Iterable[Mapping[str, float]], processor_seconds: float, started_at: float) -> dict[str, float]:
    """Return the metrics of several processes as one: their sums, and the lowest limit of descriptors."""
    found: dict[str, float] = {_PROCESSOR: processor_seconds, _START: started_at}
    for numbers in processes:
        for name, number in numbers.items():
            before = found.get(name)
            if before is None:
                found[name] = number
            else:
                found[name] = min(before, number) if name == _LIMIT else before + number
    return found


def process_lines(numbers: Mapping[str, float], form: Form = "text") -> bytes:
    """Return the lines of the metrics page for these metrics."""
    lines: list[str] = []
    for metric in TABLE:
        if isinstance(metric, ProcessMetric) and metric.name in numbers:
            number = float(numbers[metric.name])
            lines.append(f"{head(metric, form)}{metric.name} {'+Inf' if number == float('inf') else repr(number)}\n")
    return "".join(lines).encode()
