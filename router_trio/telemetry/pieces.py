"""Work that is done in pieces, so that the event loop turns in between.

A page about thousands of routes is rendered by a generator that yields after each route. `complete` does all of the
work at once; `in_pieces` lets other tasks run in between.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar, cast

import trio

PIECE = 0.002
"""Seconds of work after which other tasks run."""

T = TypeVar("T")

Pieces = Generator[None, None, T]
"""Yields between pieces of work, and returns the result."""


def complete(pieces: Pieces[T]) -> T:
    """Do all of the work, and return its result."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return cast(T, end.value)


async def in_pieces(pieces: Pieces[T], rest: float = 0.0) -> T:
    """Do the work, and return its result. After each `PIECE`, other tasks run for `rest` times as long as it took.

    Can be cancelled after each piece.
    """
    with closing(pieces):
        while True:
            began_at = time.perf_counter()
            try:
                while time.perf_counter() - began_at < PIECE:
                    next(pieces)
            except StopIteration as end:
                return cast(T, end.value)
            finally:
                await trio.sleep(rest * (time.perf_counter() - began_at))
