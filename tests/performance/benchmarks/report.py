"""Tables: on the terminal after each workload, the long form of a run, and `docs/performance.md` on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.performance.benchmarks.environment import WITHOUT_PGO
from tests.performance.benchmarks.measure import Turns
from tests.performance.benchmarks.section import COST, RATE, Column, Section

INTRODUCTION = """# Performance

Compare the ratios, not the rates: all figures of a row were measured in turns (A B C A B C ...) against the same
server, and the load generator, nats-server and the program under test shared the processors of one machine. `x nats-py`
and `x nats.go` say how many times as good the router is: above 1 is better, for rates and for times. Every rate is the
median of the turns. `make bench` repeats all of it and writes the long form, with every contestant, into
`.bench/results.md`.

"""

LIMITS = """## Limits

Here servers and router share two processors, so each microsecond of the router is missing at the servers.

- Streams in pure Python reach 0.84 to 0.96 of the rate of a loop on nats.go over one server, 0.95 over three with R3,
  and 0.83 if the destination is 80 ms away. Compiled they reach 1.03, 1.16 and 0.90. What is left is spread evenly over
  the parser, the outlets and polling. Install [compiled](how-to/compile.md) wheels where that matters.
- A handler in Python reaches 0.62 of the rate of nats.go, compiled 0.78: its copy of each message, and its call, are
  Python.
- 200 streams in one process reach 0.7 of what nats.go does with them: the messages arrive in small batches.
- 10,000 idle routes from subjects take 224 MB, 17 kB each: two tasks of Trio, and the route's settings.
- A program in Python starts in the time of its imports, 0.2 to 0.3 s. nats.go starts in 5 ms.

"""

HOW_IT_IS_MEASURED = """## How it is measured

- The router is the command that you install, as pure Python, with metrics on, traces exported for 1 % of the messages
  (100 a second at most), and every message confirmed by a fence or a PubAck. *Compiled* is the same with
  [its data plane compiled](how-to/compile.md).
- nats-py and nats.go are loops as their documentation shows them: a callback that publishes; for streams a pull
  consumer, an asynchronous publish, and an ack after the PubAck. They confirm no core publish, and count nothing.
- *CPU* is the user and system time of the program per message. Where the server is the bottleneck, compare that.
- Messages have 128 B unless a row says otherwise. Streams are on file, on one server unless a row says R3: then three
  servers share the machine as well, and different ones lead source and destination.
- No message was lost in any of these runs. [The README](../README.md#when-it-is-killed) has what happens when servers
  and programs are killed.
"""

BUCKETS_TEXT = """From one bucket to another, 10,000 keys with 40 values each, beside the same values from stream to
stream. Of a key one value is under way at a time. nats-py copies a bucket by `kv.watch` and `kv.put`, one value after
the other.

"""

WEBSOCKET_TEXT = "A router by `ws://`, without masking, beside one by `nats://` on the same server.\n\n"

IN_FLIGHT_TEXT = "Stream to stream, by `max_in_flight`, which is 4,096 by default.\n\n"

FIRST_TEXT = "From the start of the process to the first message that arrives.\n\n"

MANY_TEXT = """Each beside the same load on one route, one stream, or one key: `x one` is the ratio to that. Routes get
messages in turn, so that of one read each gets one or two. Of a key one message is under way at a time: with a single
key each message waits until the one before it is stored.

Streams are measured from the first message to the last one, since a part of the run says little. At first the router
takes up to 4,096 messages of each stream in hand, faster than the destination stores them, and then stores what it has.
Three runs of 200,000 messages from 200 streams, on a machine that other programs kept busy: 22,374, 24,866 and 24,499
messages a second from the first to the last; 15,779, 11,224 and 16,455 in 1.2 s near the begin of the same runs; and
25,109, 27,661 and 27,999 after all routes had started. The router was idle for 1 to 7 % of the time: it worked, or
waited for a processor. With `max_in_flight = 256` the runs had 19,486, 27,877 and 24,365, with 64 they had 17,825 and
14,823.

"""

LATENCY_TEXT = "5,000 messages a second, evenly spaced: the time from when a message was due to when it arrived.\n\n"

SLOW_PYTHON = """**This Python was built without PGO.** What is written in Python is 10 to 25 % slower than with one
that has it, such as Debian's; what is written in Go or Rust is not affected.
"""


def table(section: Section) -> str:
    """Return a table in Markdown, fit for a terminal."""
    against = [name for name in section.against if name in section.turns]
    head = ["", *[column.title for column in section.columns], *[f"x {name}" for name in against]]
    rows = [head]
    for name, turns in section.turns.items():
        cells = [name]
        for place, column in enumerate(section.columns):
            if column.total:
                found = [one[column.key] for one in turns.figures if column.key in one]
                cells.append(_number(sum(found) if found else math.nan, column))
                continue
            told = _number(turns.median(column.key), column)
            if place == 0 and len(turns.figures) > 1:
                low, high = turns.spread(column.key)
                told += f" ({_number(low, column)}-{_number(high, column)})"
            cells.append(told)
        cells += [_ratio(section.ratio(name, other)) for other in against]
        rows.append(cells)
    failures = [f"- `{name}` failed: {_last_words(turns.failures[-1])}" for name, turns in failed(section).items()]
    return "\n".join([_aligned(rows), *(["", *failures] if failures else [])])


def _last_words(text: str) -> str:
    """Return the last line with words: groups of exceptions end in a rule."""
    lines = [line.strip(" |+-^") for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "no reason given")


def failed(section: Section) -> Mapping[str, Turns]:
    """Return the turns of the contestants that failed, by name."""
    return {name: turns for name, turns in section.turns.items() if turns.failures}


def results(sections: Sequence[Section], about: Mapping[str, str]) -> str:
    """Return the long form of a run: every contestant of every section."""
    parts = ["# Results of `make bench`\n", "".join(f"- {name}: {value}\n" for name, value in about.items())]
    for section in sections:
        text = f"{section.text}\n\n" if section.text else ""
        parts.append(f"## {section.title}\n\n{text}{table(section)}\n\nTaken {section.taken}.\n")
    return "\n".join(parts)


@dataclass(frozen=True)
class Row:
    """A row of a table on the page: one contestant of a section, whose name there is `ours`, compared with others."""

    section: str
    title: str
    ours: str = "router_trio"
    against: tuple[str, ...] = ("nats_py", "nats_go")


@dataclass(frozen=True)
class Table:
    """A table on the page. `ratios` are the titles of the comparisons, in the order of `Row.against`."""

    title: str
    text: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...] = (RATE, COST)
    ratios: tuple[str, ...] = ("x nats-py", "x nats.go")


TABLES = (
    Table(
        "Throughput",
        "",
        (
            Row("core-128", "core to core"),
            Row("core-128", "core to core, compiled", "router_trio_compiled"),
            Row("core-4096", "core to core, 4,096 B"),
            Row("handler", "core to core through a Python handler"),
            Row("handler", "the same, compiled", "router_trio_compiled"),
            Row("stream", "stream to stream"),
            Row("stream", "stream to stream, compiled", "router_trio_compiled"),
            Row("cluster", "stream to stream, three servers with R3"),
            Row("cluster", "the same, compiled", "router_trio_compiled"),
            Row("distance", "stream to stream, both 80 ms away"),
            Row("distance-destination", "stream to stream, the destination 80 ms away"),
            Row("content-header", "core to core, `when` on a header"),
            Row("content-body", "core to core, `when` on a field of 200 B of JSON"),
            Row("content-first-match", "core to core, the first match of ten destinations"),
            Row("content-weighted", "core to core, three destinations by weight"),
            Row("content-payload", "core to core, a new payload of two fields of JSON"),
            Row("publish-64", "`publish_with_ack`, 64 at a time"),
        ),
    ),
    Table(
        "Many routes, streams, keys",
        MANY_TEXT,
        (
            Row("routes", "core to core, 1,000 routes", "router_trio, 1,000", ("router_trio, 1", "nats_go, 1,000")),
            Row(
                "routes",
                "the same, compiled",
                "router_trio_compiled, 1,000",
                ("router_trio_compiled, 1", "nats_go, 1,000"),
            ),
            Row("routes", "the same, a loop on nats.go", "nats_go, 1,000", ("nats_go, 1", "nats_go, 1,000")),
            Row("streams", "from 200 streams to one", "router_trio, 200", ("router_trio, 1", "nats_go, 200")),
            Row(
                "streams",
                "the same, compiled",
                "router_trio_compiled, 200",
                ("router_trio_compiled, 1", "nats_go, 200"),
            ),
            Row("streams", "the same, a loop on nats.go", "nats_go, 200", ("nats_go, 1", "nats_go, 200")),
            Row("keys", "stream to stream by key, 10,000 keys", "router_trio, 10,000", ("router_trio, 1", "")),
            Row(
                "keys",
                "the same, compiled",
                "router_trio_compiled, 10,000",
                ("router_trio_compiled, 1", ""),
            ),
        ),
        ratios=("x one", "x nats.go"),
    ),
    Table(
        "KV buckets",
        BUCKETS_TEXT,
        (
            Row("buckets", "bucket to bucket", against=("router_trio, streams", "nats_py")),
            Row(
                "buckets",
                "the same, compiled",
                "router_trio_compiled",
                ("router_trio_compiled, streams", "nats_py"),
            ),
            Row("buckets", "stream to stream", "router_trio, streams", ("router_trio, streams", "nats_py, streams")),
        ),
        ratios=("x streams", "x nats-py"),
    ),
    Table(
        "By WebSocket",
        WEBSOCKET_TEXT,
        (
            Row("websocket-128", "core to core", "WebSocket", ("TCP",)),
            Row("websocket-4096", "core to core, 4,096 B", "WebSocket", ("TCP",)),
            Row("websocket-stream", "stream to stream", "WebSocket", ("TCP",)),
        ),
        ratios=("x TCP",),
    ),
    Table(
        "Messages in flight",
        IN_FLIGHT_TEXT,
        tuple(Row("in-flight", count, f"router_trio, {count}") for count in ("64", "256", "1,024", "4,096")),
    ),
    Table(
        "Latency",
        LATENCY_TEXT,
        (Row("latency-core", "core to core"), Row("latency-stream", "stream to stream")),
        tuple(Column(key, f"{key} us") for key in ("p50", "p99")),
    ),
    Table(
        "First message routed",
        FIRST_TEXT,
        (
            Row("first", "the router"),
            Row("first", "the router, compiled", "router_trio_compiled"),
            Row("first", "a loop on nats-py", "nats_py"),
            Row("first", "a loop on nats.go", "nats_go"),
        ),
        (Column("seconds", "ms", 0, 1000), Column("cpu_seconds", "CPU ms", 0, 1000)),
    ),
)


def page(sections: Sequence[Section], about: Mapping[str, str]) -> str:
    """Return `docs/performance.md`: a table for each question that a user has. `about` describes the run."""
    found = {section.name: section for section in sections}
    parts = [INTRODUCTION, "".join(f"- {name}: {value}\n" for name, value in about.items())]
    if about.get("Python", "").endswith(WITHOUT_PGO):
        parts.append("\n" + SLOW_PYTHON)
    for one in TABLES:
        if any(row.section in found for row in one.rows):
            parts.append(f"\n## {one.title}\n\n{one.text}{_rows(found, one)}\n")
    parts.append("\n" + LIMITS + HOW_IT_IS_MEASURED)
    return "".join(parts)


def _rows(found: Mapping[str, Section], table: Table) -> str:
    lines = [["", *[column.title for column in table.columns], *table.ratios]]
    for row in table.rows:
        section = found.get(row.section)
        if section is None or row.ours not in section.turns:
            continue
        turns = section.turns[row.ours]
        against = [_ratio(section.ratio(row.ours, other)) if other in section.turns else "-" for other in row.against]
        lines.append([row.title, *[_number(turns.median(column.key), column) for column in table.columns], *against])
    return _aligned(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [_line(rows[0], widths), _line(["-" * width for width in widths], widths)]
    return "\n".join(lines + [_line(row, widths) for row in rows[1:]])


def _number(value: float, column: Column) -> str:
    return "-" if math.isnan(value) else f"{value * column.scale:,.{column.digits}f}"


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) or math.isinf(value) else f"{value:.2f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "| " + " | ".join([first[0].ljust(first[1]), *[cell.rjust(width) for cell, width in others]]) + " |"
