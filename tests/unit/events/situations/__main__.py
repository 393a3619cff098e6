"""Writes `sentences.txt`: `python -m tests.unit.events.situations`."""

from __future__ import annotations

from tests.unit.events.situations.golden import GOLDEN, made

if __name__ == "__main__":
    GOLDEN.write_text(made())
