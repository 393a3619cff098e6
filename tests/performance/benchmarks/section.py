"""The result of a workload: the turns of each contestant, and the figures for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tests.performance.benchmarks.measure import Turns


@dataclass(frozen=True)
class Column:
    """A figure of the table. `scale` multiplies the measured value, `digits` are those behind the point.

    The median of the turns is shown, or their sum if it is a `total`.
    """

    key: str
    title: str
    digits: int = 0
    scale: float = 1.0
    total: bool = False


RATE = Column("rate", "msg/s")
COST = Column("cpu_us", "CPU us/msg", 2)
LOST = Column("lost", "lost", total=True)


@dataclass(frozen=True)
class Section:
    """A table. Ratios are made of its first column; `against` names the contestants to compare with."""

    name: str
    title: str
    text: str
    columns: tuple[Column, ...]
    turns: Mapping[str, Turns]
    against: tuple[str, ...] = ("nats_py", "nats_go", "raw")
    more_is_better: bool = True
    workload: str = ""
    taken: str = ""

    def ratio(self, name: str, other: str) -> float:
        """Return how many times as good `name` is as `other`."""
        key = self.columns[0].key
        mine, theirs = self.turns[name].median(key), self.turns[other].median(key)
        return mine / theirs if self.more_is_better else theirs / mine

    def as_json(self) -> dict[str, Any]:
        """Return the section as JSON, to keep between runs."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Section:
        """Return the section that `as_json` stored."""
        return cls(
            stored["name"],
            stored["title"],
            stored["text"],
            tuple(Column(**column) for column in stored["columns"]),
            {name: Turns(**turns) for name, turns in stored["turns"].items()},
            tuple(stored["against"]),
            stored["more_is_better"],
            stored["workload"],
            stored["taken"],
        )
