"""A route whose settings have changed, as a whole: what it counts now, and what it counted before.

Each change begins with counts of its own, so that what is still under way is settled where it was received. What is
settled is added to the new counts, and the ledger goes on: received = in hand + settled, at every moment.
"""

from __future__ import annotations

from router_trio.states import BreakerState, RouteState


def whole(state: RouteState) -> RouteState:
    """Return the counts of a route together with those from before its changes; the state itself, if all is settled."""
    for one in tuple(state.earlier):
        before = whole(one)
        if not before.in_hand:
            state.earlier.remove(one)
            add_counts(state, before)
    if not state.earlier:
        return state
    both = RouteState(state.name, state.connection, state.destinations, own_ids=state.own_ids)
    both.enter(state.state, state.reason)
    both.source = state.source
    both.standby, both.is_leaving = state.standby, state.is_leaving
    both.to, both.most_open, both.limit = state.to, state.most_open, state.limit
    both.breakers = [_unopened(one) for one in state.breakers]
    both.handling, both.handler_moved_at = state.handling, state.handler_moved_at
    parts = [state, *map(whole, state.earlier)]
    both.holder = _Sum(sum(one.in_hand for one in parts))
    for one in parts:
        add_counts(both, one)
    return both


def add_counts(state: RouteState, other: RouteState) -> None:
    """Count what another state has counted, as if it had been counted here. What is in hand there is the caller's."""
    state.received += other.received
    state.duplicates += other.duplicates
    state.limited += other.limited
    # All of it is settled: what has no duration is never to have one.
    state.never_routed += other.received - sum(other.elapsed.counts) - sum(other.forwarded.counts)
    state.elapsed += other.durations
    state.failed.update(other.failed)
    state.filtered.update(other.filtered)
    state.given_up.update(other.given_up)
    state.mirror_failed.update(other.mirror_failed)
    state.unanswered.update(other.unanswered)
    for template, count in other.routed.items():
        state.delivered[template] = state.delivered.get(template, 0) + count
    for fate, count in other.settled.items():
        state.fates[fate] += count
    state.fates["duplicate"] -= other.duplicates  # `settled` adds them
    left = [*state.breakers]
    for its in other.breakers:
        same = [one for one in left if (one.connection, one.template) == (its.connection, its.template)]
        if same:
            same[0].openings += its.openings
            left.remove(same[0])


def _unopened(breaker: BreakerState) -> BreakerState:
    """Return the breaker as it is, without its count."""
    copy = BreakerState(breaker.connection, breaker.template)
    copy.state, copy.probe_at, copy.why_open = breaker.state, breaker.probe_at, breaker.why_open
    return copy


class _Sum:
    """What several hold: see `states.InHand`."""

    def __init__(self, in_hand: int) -> None:
        self.in_hand: int = in_hand


NOTHING = _Sum(0)
"""Held by a route whose hand is another's now."""
