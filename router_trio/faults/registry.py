"""The registry of faults in force, which may be changed while routers run.

Guarantees: with the same seed and the same order of operations the same ones are struck. One fault an operation is in
force at a time; injecting another replaces it. Synchronous: a change holds for the next operation, on every link.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import ParamSpec

from router_trio.faults.kinds import Fault
from router_trio.faults.link import open_faulty
from router_trio.link import Connect, Link, LinkListener

OPERATIONS = ("connect", "publish", "publish_with_ack", "ack", "nak", "subscribe")

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault in force. `remaining` strikes are left; None: until it is cleared."""

    operation: str
    fault: Fault
    probability: float = 1.0
    seed: int | None = None
    remaining: int | None = None


class Faults:
    """A registry of faults, and the links that they strike."""

    def __init__(self) -> None:
        self.struck: Counter[str] = Counter()
        """How many operations were struck, by operation."""
        self._active: dict[str, Injection] = {}
        self._dice: dict[str, random.Random] = {}

    def inject(
        self,
        operation: str,
        fault: Fault,
        *,
        probability: float = 1.0,
        seed: int | None = None,
        times: int | None = None,
    ) -> Injection:
        """Put a fault in force, in place of the one that this operation had.

        It strikes each operation with this probability, by dice with this seed; after it has struck `times` operations
        it is over. `subscribe` is a route's subscription as well as its consumer. Messages that a core route forwards
        in one go are one operation.

        Raises `ValueError` for an unknown operation, and for numbers that make no sense.
        """
        if operation not in OPERATIONS:
            raise ValueError(f"there is no operation {operation!r}; there are {', '.join(OPERATIONS)}")
        if not 0 < probability <= 1:
            raise ValueError(f"probability must be in (0, 1], got {probability!r}")
        if times is not None and times < 1:
            raise ValueError(f"times must be 1 or more, got {times!r}; leave it out for no limit")
        injection = Injection(operation, fault, probability, seed, times)
        self._active[operation] = injection
        self._dice[operation] = random.Random(seed)
        return injection

    def clear(self, operation: str | None = None) -> None:
        """End the fault of one operation, or all. What was struck already stays struck."""
        if operation is None:
            self._active.clear()
        else:
            self._active.pop(operation, None)

    def active(self) -> tuple[Injection, ...]:
        """Return the faults that are in force, in the order in which they were injected first."""
        return tuple(self._active.values())

    def around(self, connect: Connect) -> Connect:
        """Return a `Connect` whose links meet these faults, and pass the contract of links as those of `connect`."""

        def opened(server: str, inbox: bytes, listener: LinkListener) -> AbstractAsyncContextManager[Link]:
            return open_faulty(connect, self._strike, server, inbox, listener)

        return opened

    def around_factory(self, factory: Callable[P, Connect]) -> Callable[P, Connect]:
        """Return a factory of such a `Connect` for each connection: `Router(..., connect=...)` takes it."""

        def made(*args: P.args, **kwargs: P.kwargs) -> Connect:
            return self.around(factory(*args, **kwargs))

        return made

    def _strike(self, operation: str) -> Fault | None:
        """Throw the dice for one operation."""
        injection = self._active.get(operation)
        if injection is None or self._dice[operation].random() >= injection.probability:
            return None
        self.struck[operation] += 1
        if injection.remaining == 1:
            del self._active[operation]
        elif injection.remaining is not None:
            self._active[operation] = replace(injection, remaining=injection.remaining - 1)
        return injection.fault
