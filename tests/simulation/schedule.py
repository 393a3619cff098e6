"""A schedule: everything that a run does, as data. Steps can be removed without changing the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.content import Test

KEYS = ("k0", "k1", "k2", "k3")
"""The last token of every subject, within which order is kept."""

PAIRS = 'size(tokens[size(tokens) - 1]) > 2 ? "long" : tokens[size(tokens) - 1] < "k2" ? "low" : "high"'
"""A key with two subjects per value. Subjects too long for any destination share a value of their own."""


@dataclass(frozen=True, slots=True)
class Step:
    """An action `at` a time in seconds, for `seconds` (0: a moment). `kind` is a key of `STEPS`."""

    at: float
    kind: str
    seconds: float = 0.0
    what: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = ", ".join(f"{name}={value!r}" for name, value in self.what.items())
        lasting = f" for {self.seconds:g} s" if self.seconds else ""
        return f"at {self.at:7.3f} s{lasting}: {self.kind}({parts})"


@dataclass(frozen=True, slots=True)
class Target:
    """A destination of a drawn route. `mirror` is its share, or None; `changed` is set if it has a transform."""

    broker: str
    jetstream: bool
    when: Test | None = None
    weight: int = 1
    mirror: float | None = None
    changed: bool = False
    breaker: dict[str, Any] | None = None

    def __str__(self) -> str:
        parts = [f"when {self.when}"] if self.when else []
        parts += [f"weight {self.weight}"] if self.weight > 1 else []
        parts += [f"mirror {self.mirror}"] if self.mirror is not None else []
        parts += ["changed"] if self.changed else []
        parts += [f"breaker {self.breaker}"] if self.breaker else []
        kind = " (stream)" if self.jetstream else ""
        return f"{self.broker}{kind}{' [' + ', '.join(parts) + ']' if parts else ''}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A drawn route. `handler` is a key of `handlers.MAKE`, or None; `source` are keys of `[routes.from]`.

    `key` and `concurrency` are those of `[[routes]]`, `retry` are keys of `[routes.retry]`. `dead_letter` is the
    connection to which dead letters are sent, if any. `loop` is the event loop on which its handler runs.
    """

    name: str
    broker: str
    stream: bool
    targets: tuple[Target, ...]
    handler: str | None
    source: dict[str, Any]
    when: Test | None = None
    strategy: str = "all"
    retry: dict[str, Any] = field(default_factory=dict)
    dead_letter: str | None = None
    limit: dict[str, Any] | None = None
    key: str | None = None
    concurrency: int = 1
    loop: str = "trio"

    @property
    def one_of_a_key(self) -> bool:
        """True if one message of a key is under way at a time: see `RouteSettings.goes_by_key`.

        `sticky` has a key, by default the subject. From a stream its messages do not wait for each other; those of a
        subject have no other order.
        """
        if self.handler is not None:
            return self.key is not None or self.concurrency > 1
        if self.stream:
            return self.key is not None and self.strategy != "sticky"
        may_wait = bool(self.retry or self.dead_letter or (self.limit and "per" in self.limit))
        return may_wait and (self.key is not None or self.strategy == "sticky")

    def group_of(self, last: str) -> str:
        """Return the key of a message whose subject has this last token."""
        if self.key != PAIRS:
            return last
        return "long" if len(last) > 2 else "low" if last < "k2" else "high"

    @property
    def filter(self) -> str:
        """The last token of the subjects that it takes."""
        return str(self.source.get("filter") or self.source.get("subject")).rpartition(".")[2]

    def __str__(self) -> str:
        to = ", ".join(map(str, self.targets))
        handled = f", handler {self.handler}" if self.handler else ""
        handled += f" on {self.loop}" if self.loop != "trio" else ""
        decides = f", {self.strategy}" if self.strategy != "all" else ""
        decides += f", when {self.when}" if self.when else ""
        decides += f", retry {self.retry}" if self.retry else ""
        decides += f", dead letters on {self.dead_letter}" if self.dead_letter else ""
        decides += f", limit {self.limit}" if self.limit else ""
        decides += f", key {self.key}" if self.key else ""
        decides += f", {self.concurrency} at a time" if self.concurrency > 1 else ""
        return f"{self.name}: {self.source} on {self.broker} -> {to}{handled}{decides}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A drawn seed. `brokers` are their names with the initial times of their clocks; `latency` is each way.

    `also` are kinds of `NOT_YET`; `windows` are the duplicate windows of the streams, in seconds. A connection has the
    name of its broker, or that name followed by a number.
    """

    seed: int
    brokers: dict[str, float]
    latency: dict[str, float]
    connections: dict[str, dict[str, Any]]
    shutdown_timeout: float
    routes: tuple[Plan, ...]
    faults: tuple[str, ...]
    also: frozenset[str]
    windows: dict[str, float]
    max_payload: dict[str, int]
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        places = ", ".join(f"{name} ({self.latency[name]:g} s away)" for name in self.brokers)
        lines = [f"seed {self.seed}: brokers {places}; shutdown within {self.shutdown_timeout:g} s"]
        lines += [f"  connection {name}: {options}" for name, options in self.connections.items()]
        lines += [f"  route {plan}" for plan in self.routes]
        lines += [f"  {step}" for step in self.steps]
        return "\n".join(lines)


def schedule_of(plan: Plan, *steps: Step, faults: tuple[str, ...] = ()) -> Schedule:
    """Return a schedule of one route, its broker `a` and these steps, whose shutdown lasts a second."""
    return Schedule(
        seed=0,
        brokers={"a": 0.0},
        latency={"a": 0.001},
        connections={"a": {"servers": ["nats://one:4222"]}},
        shutdown_timeout=1.0,
        routes=(plan,),
        faults=faults,
        also=frozenset(),
        windows=dict.fromkeys(("IN", "OUT", "PUB", "DEAD"), 120.0),
        max_payload={"a": 1024 * 1024},
        steps=steps,
    )
