"""`router-trio demo`: the whole story in one command."""

from __future__ import annotations

import gc
import sys

from router_trio.cli.command_line import DONE, FAILED, Parser, UsageError


def add_arguments(parser: Parser) -> None:
    """Add what `demo` takes."""
    parser.add_argument("--duration", default="20s", help="how long the traffic lasts, at least 3s; default: 20s")


def demo(*, duration: str) -> int:
    """Watch a router lose its server and lose nothing else.

    Starts a nats-server and a router, publishes, kills the server once and
    starts it again. Then it compares what arrived with what was published,
    and prints the ledger. Exits with 0 only if nothing was lost.

    For example:

        router-trio demo
        router-trio demo --duration 1m
    """
    from router_trio.demo import SHORTEST
    from router_trio.settings.units import format_duration, parse_duration

    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise UsageError(f"--duration: {error}") from None
    if seconds < SHORTEST:
        raise UsageError(f"--duration {duration} leaves no room for an outage: {format_duration(SHORTEST)} at least")

    import trio

    from router_trio.cli.signals import run_with_signals
    from router_trio.demo.display import open_display
    from router_trio.demo.story import Story

    scope = trio.CancelScope()

    async def play() -> bool | None:
        with scope, open_display(sys.stdout) as display:
            return await Story(seconds, display).tell()
        return None

    gc.enable()  # see `__main__`
    good = trio.run(run_with_signals, play, lambda _number: scope.cancel())
    if good is None:
        print("router-trio: interrupted before the end: no verdict", file=sys.stderr)
    return DONE if good else FAILED
