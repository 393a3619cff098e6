"""The pictures of traces: `python docs/trace_pictures.py` draws them again, from what a real Jaeger says.

A message goes from a program through a router to another program, and a server is away for a moment, as in
`tests/tools/test_jaeger.py`. What the API of Jaeger tells of both is drawn to scale. It needs `make tools`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import trio

from tests.support.tools import FOLDER
from tests.tools.hop import hop
from tests.tools.jaeger import JaegerSpan

PICTURES = Path(__file__).parent / "img"
COLOURS = ("#2f6fde", "#14804a", "#925a00")
WIDTH, LABELS, ROW, TOP = 900, 330, 46, 40
EVENT = "#b3261e"


def drawn(spans: Sequence[JaegerSpan], title: str) -> str:
    """Return spans as a picture: one row each, below the one that it is a child of, on one axis of time."""
    begin, end = min(one.begin for one in spans), max(one.end for one in spans)
    services = list(dict.fromkeys(one.service for one in spans))
    height = TOP + ROW * len(spans) + 14

    def at(time: float) -> float:
        return LABELS + (WIDTH - LABELS - 30) * (time - begin) / (end - begin)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="Arial, sans-serif" font-size="14"><title>{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for time in _ticks(begin, end):
        lines.append(
            f'<path d="M{at(time):.1f} {TOP - 12}V{height - 10}" stroke="#e1e5ea"/>'
            f'<text x="{at(time):.1f}" y="{TOP - 18}" fill="#566172" font-size="12" text-anchor="middle">'
            f"{(time - begin) / 1000:g} ms</text>"
        )
    depths: dict[str, int] = {}
    for row, one in enumerate(spans):
        depth = depths[one.span_id] = depths.get(one.parent_id, -1) + 1
        y = TOP + ROW * row
        colour = COLOURS[services.index(one.service)]
        width = max(at(one.end) - at(one.begin), 2)
        lines.append(
            f'<text x="{14 + 18 * depth}" y="{y + 14}" fill="#1b2330" font-weight="bold">{escape(one.name)}</text>'
            f'<text x="{14 + 18 * depth}" y="{y + 31}" fill="#566172" font-size="12">'
            f"{escape(one.service)}, {one.kind}, {_milliseconds(one.end - one.begin)}</text>"
            f'<rect x="{at(one.begin):.1f}" y="{y + 4}" width="{width:.1f}" height="18" rx="3" fill="{colour}"/>'
        )
        for name, time in zip(one.events, one.event_times, strict=True):
            lines.append(
                f'<path d="M{at(time):.1f} {y + 1}v24" stroke="{EVENT}" stroke-width="2">'
                f"<title>{escape(name)}</title></path>"
            )
        if one.events:
            counted = _counted(one.events)
            lines.append(f'<text x="{at(one.begin):.1f}" y="{y + 39}" fill="{EVENT}" font-size="12">{counted}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _ticks(begin: int, end: int) -> Iterator[float]:
    """Yield round times, five or so."""
    rough = (end - begin) / 5
    step = 10 ** math.floor(math.log10(rough))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= rough)
    for number in range(int((end - begin) / step) + 1):
        yield begin + number * step


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1000:.3g} ms" if microseconds < 1_000_000 else f"{microseconds / 1_000_000:.3g} s"


def _counted(events: Sequence[str]) -> str:
    return ", ".join(f"{events.count(name)} x {name}" for name in dict.fromkeys(events))


async def main() -> None:
    """Draw both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        async with hop(FOLDER / "jaeger", Path(folder)) as running:
            await running.send_one()
            chain = await running.collector.trace("shop", "send orders.7", 4)
            await running.break_and_mend(100)
            outage = await running.collector.trace("orders-router", "nats outage", 2)
    title = "A trace of one message: shop, router, billing"
    (PICTURES / "trace-message.svg").write_text(drawn(chain, title), encoding="utf-8")
    (PICTURES / "trace-outage.svg").write_text(drawn(outage, "A trace of one outage"), encoding="utf-8")


if __name__ == "__main__":
    trio.run(main)
