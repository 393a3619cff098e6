"""Durations of each function that a message can reach, and their growth: for n and 4n of what a sender may choose.

Functions and operators of expressions are taken from the table of signatures, those of mappings from the table of
mapping functions, so that a new one is measured without a change here. All others are listed in `test_growth.py`.

Time is CPU time of this thread, the least of several runs: a busy machine disturbs some of them, not all.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import thread_time_ns
from typing import Any

from router_trio.errors import RouterError
from router_trio.expressions.language.signatures import Overload

MOST = 20e6
"""Nanoseconds that one message may cost."""
TIMES = 4
GROWTH = 2.2 * TIMES
"""The largest factor by which the time may grow from n to 4n: linear, with room for misses of the caches."""
MEASURABLE = 8e6
"""Nanoseconds below which growth is not examined: a function that takes less for the largest message is fast."""
RUNS = 1
AGAIN = 10
"""How often a result that seems too slow is measured again."""
AT_EASE = 4.1e6
"""Nanoseconds of the loop in `pace` on the machine for which the bounds are made, when it is idle."""


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which would spend time on what others have left."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def nanoseconds(prepare: Callable[[], Callable[[], object]], most: float) -> float:
    """Return the least duration of a call. `prepare` makes the call, on data that no call has seen before.

    Once it is below `most` it is not measured again. A refusal is an end like any other.
    """
    best = float("inf")
    for _ in range(RUNS):
        run = prepare()
        began = thread_time_ns()
        with suppress(RouterError):
            run()
        best = min(best, thread_time_ns() - began)
        if best <= most:
            break
    return best


def pace() -> float:
    """Return how many times as long as `AT_EASE` a loop takes now, at least 1: others use half of the core."""
    began = thread_time_ns()
    made = {}
    for number in range(20_000):
        made[str(number)] = [number, number * 1.5]
    return max(1.0, (thread_time_ns() - began) / AT_EASE)


@dataclass(frozen=True)
class Case:
    """A call, made for a size: `make(n)` returns the function that prepares it (see `nanoseconds`)."""

    name: str
    make: Callable[[int], Callable[[], Callable[[], object]]]
    size: int
    """The size 4n: as large as a message, or this part of it, may be."""


def call(name: str, function: Callable[[Any], object], shape: Callable[[int], Any], size: int) -> Case:
    """Return the case of a function with one argument."""

    def make(n: int) -> Callable[[], Callable[[], object]]:
        value = shape(n)
        return lambda: lambda: function(value)

    return Case(name, make, size)


@dataclass(frozen=True)
class Figures:
    """The measurements of a case, in nanoseconds."""

    case: str
    quarter: float
    whole: float

    @property
    def faults(self) -> list[str]:
        """Return the bounds that they break."""
        found = []
        if self.whole > MOST:
            found.append(f"{self.case} takes {self.whole / 1e6:.1f} ms for one message")
        if self.whole > MEASURABLE and self.whole > GROWTH * self.quarter:
            found.append(f"{self.case} takes {self.whole / self.quarter:.1f} times as long for {TIMES} times as much")
        return found

    def __str__(self) -> str:
        return f"{self.case}: {self.quarter / 1e6:.2f} ms for n, {self.whole / 1e6:.2f} ms for {TIMES}n"


def measured(case: Case) -> Figures:
    """Measure a case. If it seems too slow it is measured again: a slow function is slow each time, a busy machine is
    not.
    """
    with without_garbage_collection():
        whole = nanoseconds(case.make(case.size), MEASURABLE)
        quarter = whole
        if whole > MEASURABLE:
            quarter = nanoseconds(case.make(case.size // TIMES), 0.0)
        figures = Figures(case.name, quarter, whole)
        for _ in range(AGAIN):
            if not figures.faults:
                break
            before = pace()
            again = nanoseconds(case.make(case.size), 0.0)
            whole = min(whole, again / min(before, pace()))
            quarter = max(quarter, nanoseconds(case.make(case.size // TIMES), 0.0))
            figures = Figures(case.name, quarter, whole)
    return figures


def faults(cases: list[Case]) -> list[str]:
    """Return the broken bounds of any of these cases, and print the slowest."""
    figures = sorted(map(measured, cases), key=lambda one: -one.whole)
    for one in figures[:10]:
        print(one)
    return [fault for one in figures for fault in one.faults]


NAMES = "abcd"
"""Variables in place of the arguments of a call."""


def written(name: str, overload: Overload) -> str:
    """Return a call with variables in place of the arguments."""
    names = list(NAMES[: len(overload.takes)])
    if name == "_?_:_":
        return "({} ? {} : {})".format(*names)
    if name == "_[_]":
        return "{}[{}]".format(*names)
    mark = name.strip("_@")
    if not name[0].isalpha():
        return f"({mark}{names[0]})" if len(names) == 1 else f"({names[0]} {mark} {names[1]})"
    if overload.method:
        return f"{names[0]}.{name}({', '.join(names[1:])})"
    return f"{name}({', '.join(names)})"


# --- inputs that a sender may choose ---

TEXTS: dict[str, Callable[[int], str]] = {
    "letters": lambda n: "a" * n,
    "latin": lambda n: "\xe9" * (n // 2),
    "chinese": lambda n: "\u4e00" * (n // 3),
    "not encodable": lambda n: "\udc80" * n,
    "digits": lambda n: "9" * n,
    "quotes": lambda n: '"' * n,
    "backslashes": lambda n: "\\" * n,
    "spaces": lambda n: " " * n,
    "separators": lambda n: " \x1c" * (n // 2),
    "dots": lambda n: "." * n,
    "signs": lambda n: "-+" * (n // 2),
    "exponents": lambda n: "1e" * (n // 2),
    "colons": lambda n: "://" * (n // 3),
    "ats": lambda n: "a:b@" * (n // 4),
    "assigned": lambda n: "token=" * (n // 6),
    "keys": lambda n: ("S" + "A" * 60 + " ") * (n // 62),
    "jwts": lambda n: "eyJ" * (n // 3),
    "blocks": lambda n: "-----BEGIN" * (n // 10),
    "pairs": lambda n: "ab" * (n // 2),
    "lines": lambda n: "a:\r\n" * (n // 4),
    "controls": lambda n: "\x00\n" * (n // 2),
}

_PIECES = {
    "lists": b"[],",
    "maps": b"{},",
    "nested": b'{"a":[1,{"b":',
    "open lists": b"[",
    "open maps": b'{"a":',
    "ints": b"1,",
    "long ints": b"11111111111111111111,",
    "ints of thousands of digits": b"1" * 4200 + b",",
    "ints beyond all": b"1" * 5000 + b",",
    "digits": b"1",
    "exponents": b"1e300,",
    "small exponents": b"1e-310,",
    "too large": b"1e400,",
    "doubles": b"1.7976931348623157e308,",
    "halves": b"9007199254740993.00000000000000000000000000000000001,",
    "signs": b"-",
    "strings": b'"a",',
    "quotes": b'"',
    "escaped": b'"\\"\\\\",',
    "backslashes": b"\\",
    "points": b"\\u00e9",
    "spaces": b" ",
    "keys": b'"total":1,',
    "keys with exponents": b'"total":1e300,',
    "colons": b":",
    "commas": b",",
    "no utf-8": b"\xff",
    "umlauts": "\xe9".encode(),
    "records": b'{"id":1,"name":"some name","tags":["a","b"],"price":12.5},',
}
_FRAMES = {
    "in a list": (b"[", b"1]"),
    "in a list without its end": (b"[", b""),
    "in a map": (b'{"total":1,"x":[', b"1]}"),
    "as a map": (b'{"x":1,', b'"y":1}'),
    "in a string": (b'{"total":1,"x":"', b'"}'),
    "behind digits": (b"1" * 5000, b"x"),
    "alone": (b"", b""),
}


def _filled(before: bytes, piece: bytes, behind: bytes) -> Callable[[int], bytes]:
    return lambda n: before + piece * ((n - len(before) - len(behind)) // len(piece)) + behind


PAYLOADS: dict[str, Callable[[int], bytes]] = {
    f"{name} {where}": _filled(before, piece, behind)
    for name, piece in _PIECES.items()
    for where, (before, behind) in _FRAMES.items()
}

_LINES = {
    "short lines": b"a:\r\n",
    "empty lines": b"\r\n",
    "bare line feeds": b"\n",
    "bare returns": b"\r",
    "folded": b"\n a",
    "control headers": b"Nats-Rollup: all\r\n",
    "almost control headers": b"\nNats-Expected-",
    "ids": b"Nats-Msg-Id: 1\r\n",
    "almost ids": b"\r\nNats-Msg-I",
    "own": b"Router-Dead-Letter-Reason: x\r\n",
    "hops": b"Router-Hops: 1\r\n",
    "parents": b"traceparent: 00\r\n",
    "colons": b":",
    "spaces": b" ",
    "letters": b"a",
    "nats": b"Nats-",
}
BLOCKS: dict[str, Callable[[int], bytes]] = {
    name: _filled(b"NATS/1.0\r\nfirst: 1\r\n", piece, b"\r\n\r\n") for name, piece in _LINES.items()
} | {f"{name} without end": _filled(b"NATS/1.0 ", piece, b"") for name, piece in _LINES.items()}
