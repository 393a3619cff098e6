"""End a command that shows something until it is interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def until_interrupted() -> Iterator[None]:
    """End the body, without an error, on SIGINT (Ctrl-C) or SIGTERM. Afterwards signals are handled as before."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _signals()}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> list[signal.Signals]:
    # A signal that was ignored when the process started stays ignored.
    return [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
