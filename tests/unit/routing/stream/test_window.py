"""How many messages are in flight by default: as many as help."""

from __future__ import annotations

from collections.abc import Callable

from router_trio.routing.stream.pulling.window import LEAST, InFlightWindow
from router_trio.settings.routes import MOST_IN_FLIGHT as MOST


def run(window: InFlightWindow, rate: Callable[[int], float], seconds: float, now: float = 0.0) -> float:
    """Settle what a source with such rates settles, by the size of the window. Return when that ends."""
    until = now + seconds
    while now < until:
        now += 0.01
        window.count_settled(round(rate(window.size) * 0.01), now)
    return now


def kept(window: InFlightWindow) -> int:
    """Its size, but for a try that is not over."""
    return window.size if window._before is None else window._before[0]


def over(round_trip: float, most: float) -> Callable[[int], float]:
    return lambda size: min(size / round_trip, most)


def test_it_begins_with_the_most_and_keeps_that_while_fewer_are_not_as_good() -> None:
    window = InFlightWindow(None)
    assert window.size == MOST
    run(window, over(0.08, 1e6), 60.0)
    assert kept(window) == MOST, "fewer were tried, and were not as good"


def test_it_shrinks_when_only_what_waits_is_more_and_no_further() -> None:
    window = InFlightWindow(None)
    now = run(window, over(0.08, 20_000), 5.0)
    assert kept(window) == MOST, "nothing is tried at first"
    run(window, over(0.08, 20_000), 60.0, now)
    assert kept(window) == 2 * LEAST
    window = InFlightWindow(None)
    run(window, over(0.001, 50_000), 60.0)
    assert kept(window) == LEAST


def test_it_grows_again_when_more_would_be_settled() -> None:
    window = InFlightWindow(None)
    now = run(window, over(0.001, 50_000), 60.0)
    assert kept(window) == LEAST
    now = run(window, over(0.08, 1e6), 30.0, now)
    assert kept(window) == MOST
    run(window, over(0.08, 1e6), 60.0, now)
    assert kept(window) == MOST


def test_a_pause_says_nothing() -> None:
    window = InFlightWindow(None)
    now = run(window, over(0.08, 1e6), 5.0)
    window.count_settled(1, now)
    run(window, over(0.08, 1e6), 20.0, now + 60.0)
    assert kept(window) == MOST


def test_what_somebody_has_said_is_what_it_is() -> None:
    window = InFlightWindow(50)
    run(window, over(0.08, 1e6), 60.0)
    assert (window.size, window.most) == (50, 50)
