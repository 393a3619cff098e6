"""A schedule of several routers: everything that a run does, as data."""

from __future__ import annotations

from dataclasses import dataclass

from tests.simulation.schedule import Step


@dataclass(frozen=True, slots=True)
class Schedule:
    """A drawn seed.

    `members` processes start together. The source has `keys` keys, each with two subjects. `by_key`: the key is the
    first wildcard of the filter, else the entire subject. `own_token`: the stream itself has the partitions; otherwise
    another one sources it. A call of the handler takes up to `slow` seconds, and every `fails_every`th message fails at
    its first attempt; none if 0. `latency` is each way in seconds; `sends_on`: see `testing.machine.Machine`.
    """

    seed: int
    members: int
    partitions: int
    keys: int
    by_key: bool
    own_token: bool
    slow: float
    fails_every: int
    concurrency: int
    max_in_flight: int
    ack_wait: float
    window: float
    liveness: float
    latency: float
    sends_on: bool
    shutdown_timeout: float
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        key = "the first wildcard" if self.by_key else "the subject"
        of = "the stream itself" if self.own_token else "a stream that sources it"
        lines = [
            f"seed {self.seed}: {self.members} processes, {self.partitions} partitions of {of}",
            f"  {self.keys} keys, each is {key}",
            f"  handler up to {self.slow:g} s, fails every {self.fails_every}, {self.concurrency} at a time, "
            f"{self.max_in_flight} in flight, ack wait {self.ack_wait:g} s, window {self.window:g} s",
            f"  latency {self.latency:g} s, liveness {self.liveness:g} s, shutdown within {self.shutdown_timeout:g} s"
            f"{', machines send on' if self.sends_on else ''}",
        ]
        lines += [f"  {step}" for step in self.steps]
        return "\n".join(lines)
