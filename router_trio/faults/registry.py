"""The registry of active faults, which may be changed while routers run.

Guarantees: with the same seed and the same order of operations the same operations get faults. Each operation has at
most one active fault; injecting another one replaces it. Synchronous: a change applies to the next operation, on every
link.
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
    """An active fault. It applies to `remaining` more operations; None: until it is cleared."""

    operation: str
    fault: Fault
    probability: float = 1.0
    seed: int | None = None
    remaining: int | None = None


class Faults:
    """A registry of active faults, and the links that apply them."""

    def __init__(self) -> None:
        self.struck: Counter[str] = Counter()
        """The number of operations with faults, by name of the operation."""
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
        """Activate a fault, in place of the active one of this operation.

        It applies to each operation with this probability, drawn with this seed, and ends after `times` operations.
        `subscribe` is a route's subscription or its consumer. Messages that a core route forwards together are one
        operation. Raises `ValueError` for an unknown operation and for invalid numbers.
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
        """Clear the fault of one operation, or all faults. Operations that already had a fault are not changed."""
        if operation is None:
            self._active.clear()
        else:
            self._active.pop(operation, None)

    def active(self) -> tuple[Injection, ...]:
        """Return the active faults, in the order in which their operations first got one."""
        return tuple(self._active.values())

    def around(self, connect: Connect) -> Connect:
        """Return a `Connect` whose links have these faults, and otherwise fulfil the contract of links as before."""

        def opened(server: str, inbox: bytes, listener: LinkListener) -> AbstractAsyncContextManager[Link]:
            return open_faulty(connect, self._strike, server, inbox, listener)

        opened.__wrapped__ = connect  # type: ignore[attr-defined]  # for `link.fake_server_of`
        return opened

    def around_factory(self, factory: Callable[P, Connect]) -> Callable[P, Connect]:
        """Return a factory of such a `Connect` for each connection, for `Router(..., connect=...)`."""

        def made(*args: P.args, **kwargs: P.kwargs) -> Connect:
            return self.around(factory(*args, **kwargs))

        return made

    def _strike(self, operation: str) -> Fault | None:
        """Return the fault for one operation, drawn by its probability, or None."""
        injection = self._active.get(operation)
        if injection is None or self._dice[operation].random() >= injection.probability:
            return None
        self.struck[operation] += 1
        if injection.remaining == 1:
            del self._active[operation]
        elif injection.remaining is not None:
            self._active[operation] = replace(injection, remaining=injection.remaining - 1)
        return injection.fault
