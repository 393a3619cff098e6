"""When and where to connect next, decided with a random source that the test controls."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_trio.connection.attempts import Attempts
from router_trio.connection.backoff import FIRST_RETRY_WITHIN, Attempt, ReconnectPlan, full_jitter
from router_trio.settings import ConnectionSettings
from router_trio.states import ConnectionState

A, B, C = "nats://a:4222", "nats://b:4222", "nats://c:4222"


hours = count()


def an_hour_later() -> float:
    """Return a time after which no delay of these tests is cut."""
    return 3600.0 * next(hours)


def highest(_: float, bound: float) -> float:
    """Return the highest number, as a random source."""
    return bound


def plan(
    *servers: str,
    attempts: int = 10,
    base: float = 1.0,
    maximum: float = 30.0,
    uniform: Callable[[float, float], float] = highest,
) -> ReconnectPlan:
    return ReconnectPlan(
        servers or (A,), attempts=attempts, base=base, maximum=maximum, stable_after=5.0, uniform=uniform
    )


def delays(ahead: ReconnectPlan, attempts: int) -> list[float]:
    return [ahead.next(an_hour_later()).delay for _ in range(attempts)]


def test_the_very_first_attempt_is_made_at_once() -> None:
    assert plan().next(an_hour_later()) == Attempt(1, 0.0, A)


def test_the_bound_doubles_from_the_base_to_the_maximum() -> None:
    assert delays(plan(attempts=20), 9) == [0.0, 0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_the_delay_doubles_once_per_round_of_all_servers() -> None:
    assert delays(plan(A, B, C, attempts=20), 10) == [0.0, *[0.1] * 3, *[1.0] * 3, *[2.0] * 3]


def test_the_first_retry_is_within_a_tenth_of_a_second_whatever_the_settings() -> None:
    ahead = plan(base=60.0, maximum=600.0)
    ahead.next(an_hour_later())
    ahead.connected(A)
    ahead.lost(3600.0, an_hour_later())
    assert ahead.next(an_hour_later()).delay == FIRST_RETRY_WITHIN == 0.1


def test_the_maximum_bounds_the_first_retry_too() -> None:
    assert delays(plan(maximum=0.05), 4) == [0.0, 0.05, 0.05, 0.05]


@given(
    step=st.integers(-1, 100_000),
    base=st.floats(0.001, 100),
    maximum=st.floats(0.001, 1000),
    seed=st.integers(0, 1000),
)
def test_jitter_is_full_and_within_its_bounds(step: int, base: float, maximum: float, seed: int) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return random.Random(seed).uniform(low, high)

    delay = full_jitter(step, base, maximum, uniform)
    ((low, high),) = asked
    assert low == 0
    assert 0 <= delay <= high <= maximum
    assert high == (min(0.1, maximum) if step <= 0 else min(maximum, base * 2.0 ** min(step - 1, 32)))


def test_the_delays_of_a_fleet_spread_over_the_entire_range() -> None:
    dice = random.Random(7)
    spread = sorted(full_jitter(4, 1.0, 30.0, dice.uniform) for _ in range(2000))
    assert spread[0] < 0.1
    assert spread[-1] > 7.9
    assert 3.6 < spread[1000] < 4.4


def test_servers_take_turns() -> None:
    ahead = plan(A, B, C)
    assert [ahead.next(an_hour_later()).server for _ in range(7)] == [A, B, C, A, B, C, A]


def test_after_a_loss_the_lost_server_is_tried_first() -> None:
    ahead = plan(A, B, C)
    ahead.next(an_hour_later())
    assert ahead.next(an_hour_later()).server == B
    ahead.connected(B)
    assert [ahead.next(an_hour_later()).server for _ in range(4)] == [B, C, A, B]


def test_attempts_are_numbered_within_their_round() -> None:
    ahead = plan(attempts=3)
    assert [ahead.next(an_hour_later()).number for _ in range(2)] == [1, 2]
    assert not ahead.exhausted
    assert ahead.next(an_hour_later()).number == 3
    assert ahead.exhausted
    ahead.new_round()
    assert not ahead.exhausted
    assert ahead.next(an_hour_later()).number == 1


def test_in_a_new_round_every_delay_is_the_maximum() -> None:
    ahead = plan(attempts=2)
    assert delays(ahead, 2) == [0.0, 0.1]
    ahead.new_round()
    assert delays(ahead, 3) == [30.0, 30.0, 30.0]


def test_a_successful_connect_ends_the_round() -> None:
    ahead = plan(attempts=2)
    delays(ahead, 2)
    ahead.connected(A)
    assert not ahead.exhausted
    assert ahead.next(an_hour_later()).number == 1


@pytest.mark.parametrize(("lived", "next_delay"), [(5.0, 0.1), (3600.0, 0.1), (4.99, 4.0), (0.0, 4.0)])
def test_only_a_stable_link_resets_the_backoff(lived: float, next_delay: float) -> None:
    ahead = plan()
    assert delays(ahead, 4) == [0.0, 0.1, 1.0, 2.0]
    ahead.connected(A)
    ahead.lost(lived, an_hour_later())
    assert ahead.next(an_hour_later()).delay == next_delay


def test_a_flapping_server_is_tried_with_growing_delays() -> None:
    ahead = plan()
    seen = []
    for _ in range(8):
        seen.append(ahead.next(an_hour_later()).delay)
        ahead.connected(A)
        ahead.lost(0.5, an_hour_later())
    assert seen == [0.0, 0.1, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def attempts_within(ahead: ReconnectPlan, until: float) -> list[tuple[float, Attempt]]:
    """Return the attempts of an outage that begins at 0, each with the time when it was decided. All fail at once."""
    made, now = [], 0.0
    while now < until:
        made.append((now, ahead.next(now)))
        now += made[-1][1].delay
    return made


@pytest.mark.parametrize("base", [0.05, 1.0, 5.0, 90.0])
@pytest.mark.parametrize("servers", [(A,), (A, B), (A, B, C)])
@pytest.mark.parametrize("uniform", [highest, random.Random(3).uniform])
def test_no_delay_is_longer_than_half_of_the_time_away_shared_by_the_servers(
    base: float, servers: tuple[str, ...], uniform: Callable[[float, float], float]
) -> None:
    for now, attempt in attempts_within(plan(*servers, base=base, maximum=120.0, uniform=uniform), 900.0):
        assert attempt.delay <= min(120.0, max(1.0, base, now / 2 / len(servers)))


def test_early_attempts_come_in_addition_to_those_that_the_backoff_makes() -> None:
    ahead = plan(A, B, attempts=100)
    made = attempts_within(ahead, 200.0)
    in_time = {attempt.number: now + attempt.delay for now, attempt in made}
    pauses = [round(later - earlier, 9) for earlier, later in pairwise(in_time.values())]
    assert pauses == delays(plan(A, B, attempts=100), len(in_time))[1:]
    assert [attempt.server for _, attempt in made] == [(A, B)[number % 2] for number in range(len(made))]
    assert ahead.made == len(made) > len(in_time)


@pytest.mark.parametrize("attempts", [1, 4, 10])
def test_early_attempts_do_not_use_up_the_round(attempts: int) -> None:
    ahead = plan(attempts=attempts)
    ended: list[float] = []
    now = 0.0
    while len(ended) < 2:
        now += ahead.next(now).delay
        if ahead.exhausted:
            ended.append(now)
            ahead.new_round()
            assert ahead.made == 0
    first = sum(delays(plan(attempts=attempts), attempts))
    assert ended == pytest.approx([first, first + attempts * 30.0])


def test_the_time_away_counts_from_the_loss_or_from_the_first_attempt() -> None:
    ahead = plan(base=0.1)
    assert ahead.next(1000.0).delay == 0.0
    assert [ahead.next(1000.0).delay for _ in range(6)] == [0.1, 0.1, 0.2, 0.4, 0.8, 1.0]
    ahead.connected(A)
    ahead.lost(3600.0, 5000.0)
    assert [ahead.next(5000.0).delay for _ in range(6)] == [0.1, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert ahead.next(5008.0).delay == pytest.approx(0.6), "the rest of the delay of 1.6 s that was cut"
    assert ahead.next(5008.0).delay == 3.2
    assert ahead.next(5008.0).delay == 4.0
    ahead.connected(A)
    ahead.lost(3600.0, 6000.0)
    assert ahead.next(6000.0).delay == 0.1, "nothing is left of the delay before"


def test_the_delay_after_a_link_that_did_not_last_is_not_cut() -> None:
    ahead = plan()
    delays(ahead, 5)
    ahead.connected(A)
    ahead.lost(0.5, 20_000.0)
    assert ahead.next(20_000.0).delay == 8.0
    assert ahead.next(20_008.0).delay == 4.0, "now the server is away, for 8 s"


def test_a_long_outage_does_not_overflow() -> None:
    ahead = plan(attempts=100_000)
    assert max(delays(ahead, 5000)) == 30.0


def test_discovered_servers_are_tried_after_the_configured_ones() -> None:
    ahead = plan(A)
    ahead.next(an_hour_later())
    ahead.connected(A)
    ahead.set_discovered(["b:4222", "a:4222", "c:4222", "b:4222"])
    assert ahead.servers == (A, B, C)
    assert [ahead.next(an_hour_later()).server for _ in range(3)] == [A, B, C]


def test_discovered_servers_replace_earlier_discovered_ones_but_never_the_configured_ones() -> None:
    ahead = plan(A, B)
    ahead.set_discovered(["c:4222", "d:4222"])
    ahead.set_discovered(["d:4222"])
    assert list(ahead.servers) == [A, B, "nats://d:4222"]
    ahead.set_discovered(["a:4222"])
    assert list(ahead.servers) == [A, B]


def test_discovery_does_not_change_which_server_is_next() -> None:
    ahead = plan(A)
    ahead.set_discovered(["b:4222", "c:4222"])
    ahead.connected(C)
    ahead.set_discovered(["d:4222", "c:4222"])
    assert ahead.next(an_hour_later()).server == C


def test_a_discovered_server_that_disappears_loses_its_turn() -> None:
    ahead = plan(A)
    ahead.set_discovered(["b:4222", "c:4222"])
    ahead.connected(C)
    ahead.set_discovered(["b:4222"])
    assert ahead.servers == (A, B)
    assert {ahead.next(an_hour_later()).server for _ in range(2)} == {A, B}


def test_discovered_servers_are_connected_with_tls_if_the_configured_ones_are() -> None:
    ahead = plan("tls://a:4222")
    ahead.set_discovered(["b:4222", "[::1]:4222"])
    assert ahead.servers == ("tls://a:4222", "tls://b:4222", "tls://[::1]:4222")


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("servers", [(A, "tls://b:4222"), ("tls://b:4222", A)])
def test_announced_servers_of_a_mixed_list_are_connected_with_tls(servers: tuple[str, ...], turns: int) -> None:
    """The server that is next in turn makes no difference."""
    ahead = plan(*servers)
    for _ in range(turns):
        ahead.next(an_hour_later())
    ahead.set_discovered(["c:4222"])
    assert ahead.servers == (*servers, "tls://c:4222")


@pytest.mark.parametrize(
    "asking",
    [
        {"tls_ca_file": "ca.pem"},
        {"tls_cert_file": "client.pem", "tls_key_file": "client.key"},
        {"tls_hostname": "a"},
        {"tls_handshake_first": True},
        {"servers": ["a:4222", "tls://b:4222"]},
        {},
    ],
)
def test_announced_servers_are_connected_with_tls_however_the_configuration_requests_it(asking: dict[str, Any]) -> None:
    settings = ConnectionSettings(**{"servers": ["a:4222"], **asking})
    uniform = random.Random(1).uniform
    attempts = Attempts(settings, ConnectionState("main"), emit=lambda event: None, clock=lambda: 0.0, uniform=uniform)
    attempts.discovered(["c:4222"])
    (server,) = (attempt.server for attempt in attempts.elsewhere(A) if "//c" in attempt.server)
    assert server == ("tls://c:4222" if asking else "nats://c:4222")


def test_announced_servers_are_reached_by_websocket_if_the_configured_ones_are() -> None:
    ahead = plan("wss://a:443/nats", "wss://b:443")
    ahead.set_discovered(["c:443", "a:443", "b:443", "c:8443"])
    assert ahead.servers == ("wss://a:443/nats", "wss://b:443", "wss://c:443", "wss://c:8443")
    ahead = plan("ws://a:80/one", "ws://a:80/two")
    ahead.set_discovered(["b:80"])
    assert ahead.servers == ("ws://a:80/one", "ws://a:80/two", "ws://b:80")
    # Two paths may lead to two servers.
    assert [one.server for one in ahead.elsewhere("ws://a:80/one")] == ["ws://a:80/two", "ws://b:80"]


def test_elsewhere_is_every_other_server_however_it_is_written() -> None:
    ahead = plan(A, "tls://b:4222", "c:4222")
    assert [one.server for one in ahead.elsewhere("nats://user:secret@b:4222")] == [A, "c:4222"]
    assert [one.server for one in ahead.elsewhere("c:4222")] == [A, "tls://b:4222"]
    assert list(plan(A).elsewhere(A)) == []


def test_elsewhere_is_immediate_until_a_server_is_tried_twice() -> None:
    ahead = plan(A, B)
    ahead.next(an_hour_later())
    moves = [next(iter(ahead.elsewhere(server))) for server in (A, B, A, B, A, B)]
    assert [move.server for move in moves] == [B, A, B, A, B, A]
    assert [move.delay for move in moves[:2]] == [0.0, 0.0]
    assert all(move.delay > 0 for move in moves[2:])
    ahead.lost(1000.0, an_hour_later())
    assert next(iter(ahead.elsewhere(A))).delay == 0.0


@pytest.mark.parametrize("ignored", [False, True])
def test_announced_servers_are_tried_unless_they_are_ignored(ignored: bool) -> None:
    settings = ConnectionSettings(servers=["a:4222"], ignore_announced=ignored)
    attempts = Attempts(settings, ConnectionState("main"), emit=lambda _: None, clock=lambda: 0.0, uniform=max)
    attempts.discovered(["b:4222"])
    tried = {attempts.next().server for _ in range(4)}
    assert tried == ({"nats://a:4222"} if ignored else {"nats://a:4222", "nats://b:4222"})
    assert len([*attempts.elsewhere("nats://a:4222")]) == (0 if ignored else 1)
