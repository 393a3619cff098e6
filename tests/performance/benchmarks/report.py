"""Tables: on the terminal after each workload, and in `docs/performance.md` on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tests.performance.benchmarks.environment import WITHOUT_PGO
from tests.performance.benchmarks.measure import SubjectOrder
from tests.performance.benchmarks.section import Column, Section

INTRODUCTION = """# Performance

This page is written by `make bench`, from one run on one machine. Trust the ratios: all figures of a table were taken
in turns (A B C A B C ...) on the same server, so that what slows one slows all. A rate is the median of the turns,
with the least and the greatest behind it; `CPU us/msg` is user and system time of the contestant's process divided by
the messages it routed.

Everything shares the processors of this machine: load generator, nats-server and contestant. Where a rate comes near
`(no router)`, the server is what is measured, and the processor time a message is the better figure.

- `router_trio` is the real command, with metrics on, 1 % of the messages sampled (100 a second at most) and their spans
  sent to a collector on this machine, the default configuration otherwise, and every message in the ledger: fenced or
  acked.
- `router_trio_compiled` is the same with [its data plane compiled](how-to/compile.md).
- `raw` is no router: a Trio loop on a socket, without books, fences, errors or headers. It is the limit.
- `nats_py` is nats-py on asyncio, a callback that publishes; for streams `fetch(500)`, `publish_async`, ack.
  It confirms no core publish.
- `nats_go` is a loop on nats.go: a callback that publishes; for streams a pull consumer, `PublishMsgAsync`, ack.
- `watermill` (Go), `faststream`, `natsio` and `mq_bridge` (Rust) are used as their documentation shows. watermill has
  one message under way at a time. natsio loses messages from some 2,000 under way, so it gets 512 where the others get
  16,384. mq_bridge can't map subjects and sends all to one. Whoever could not be installed is in no table.
- `x NAME` says how many times as good as NAME: above 1 is better, for rates as for times.
- `lost` counts messages that went in and never came out, over all turns.
"""

SLOW_PYTHON = """**This Python was built without PGO.** What is written in Python is 10 to 25 % slower than with one
that has it, such as Debian's; what is written in Go or Rust is not affected.
"""


def table(section: Section) -> str:
    """A table in Markdown, fit for a terminal."""
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
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    lines = [_line(rows[0], widths), _line(["-" * width for width in widths], widths)]
    lines += [_line(row, widths) for row in rows[1:]]
    failures = [f"- `{name}` failed: {_last_words(turns.failures[-1])}" for name, turns in failed(section).items()]
    return "\n".join(lines + (["", *failures] if failures else []))


def _last_words(text: str) -> str:
    """The last line that says something: groups of exceptions end in a rule."""
    lines = [line.strip(" |+-^") for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "no reason given")


def failed(section: Section) -> Mapping[str, SubjectOrder]:
    """The turns of those who failed, by name."""
    return {name: turns for name, turns in section.turns.items() if turns.failures}


def document(sections: Sequence[Section], about: Mapping[str, str], images: Mapping[str, str]) -> str:
    """`docs/performance.md`. `about` describes the run, `images` are paths by the section's name."""
    parts = [INTRODUCTION, "".join(f"- {name}: {value}\n" for name, value in about.items())]
    if about.get("Python", "").endswith(WITHOUT_PGO):
        parts.append(SLOW_PYTHON)
    for section in sections:
        image = f"![{section.title}]({images[section.name]})\n\n" if section.name in images else ""
        text = f"{section.text}\n\n" if section.text else ""
        parts.append(f"## {section.title}\n\n{text}{image}{table(section)}\n\nTaken {section.taken}.\n")
    return "\n".join(parts)


def _number(value: float, column: Column) -> str:
    return "-" if math.isnan(value) else f"{value * column.scale:,.{column.digits}f}"


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) or math.isinf(value) else f"{value:.2f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "| " + " | ".join([first[0].ljust(first[1]), *[cell.rjust(width) for cell, width in others]]) + " |"
