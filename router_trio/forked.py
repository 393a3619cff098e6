"""Close in a forked child what it must not hold: sockets and shared memory of the process that forked it.

A handler may fork, by `ProcessPoolExecutor` or `os.fork()`, and its child may outlive the process. A child that held a
socket to NATS would keep the connection alive, and the server would go on delivering to a queue group's dead member;
one that held the channel to the supervisor, or a listening socket, would keep others waiting for them. So each child
begins with the null device in their place: nothing is written to the peer, neither a byte of the protocol nor of TLS,
and no number of a descriptor is free for something else while an object still believes in it.

A program that is executed, as by `subprocess`, gets none of them: Python's descriptors are closed by that.

What becomes of a child that returns from the handler says `router.forks`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet


class HasDescriptor(Protocol):
    """A socket, of whatever library."""

    def fileno(self) -> int:
        """Return the descriptor; -1 if it is closed."""
        ...


_SOCKETS: WeakSet[HasDescriptor] = WeakSet()
_OTHERS: WeakKeyDictionary[object, Callable[[], None]] = WeakKeyDictionary()


def close_in_children(one: HasDescriptor) -> None:
    """Close this in every child that is forked while it is open."""
    _SOCKETS.add(one)


def call_in_children(owner: object, let_go: Callable[[], None]) -> None:
    """Call `let_go` in every child that is forked while `owner` exists. It must not refer to `owner`, nor raise."""
    _OTHERS[owner] = let_go


def replace_by_null(descriptor: int) -> None:
    """Let a descriptor be the null device."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)


def _let_go() -> None:
    for one in tuple(_SOCKETS):
        number = one.fileno()
        if number < 0:
            continue
        try:
            replace_by_null(number)
        except OSError:  # no descriptor is left for the null device: better none than the parent's
            os.close(number)
    for let_go in tuple(_OTHERS.values()):
        let_go()


os.register_at_fork(after_in_child=_let_go)
