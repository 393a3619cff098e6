"""The counts of a route whose settings have changed: adds up those of its current and its earlier generations.

Each change starts a generation with counts of its own, so that messages still in hand are settled where they were
received. The counts of a settled generation are added to the current one, so that at every moment received = in hand +
settled.
"""

from __future__ import annotations

from router_trio.states import DURATION_BOUNDS, Held, Histogram, RouteCounts, RouteState

MOST_PAST_DESTINATIONS = 100
"""Removed destinations of a route that are counted separately."""

PAST_DESTINATIONS = "(removed)"
"""In place of a destination's template, for all removed destinations beyond `MOST_PAST_DESTINATIONS`."""


def continue_counts(state: RouteState, before: RouteState) -> None:
    """Let a route continue the counts of `before`, which may still settle messages.

    Settled generations are folded in at once, and the others are kept in one list: they never form a chain.
    """
    # Destinations keep their positions, so that the counts of a worker have the same fields after each change.
    past = [one for one in before.delivered if one not in state.delivered][:MOST_PAST_DESTINATIONS]
    places = [one for one in before.delivered if one in state.delivered or one in past]
    state.delivered = dict.fromkeys(places, 0) | state.delivered
    state.earlier, before.earlier = [*before.earlier, before], []
    fold(state)


def fold(state: RouteState) -> None:
    """Add the counts of earlier generations that are settled: they can't receive anything, and have nothing in hand."""
    left = []
    for one in state.earlier:
        if one.is_settled:
            add_counts(state, one)
        else:
            left.append(one)
    state.earlier = left


def total(state: RouteState) -> RouteState:
    """Return the counts of a route including its earlier generations; the state itself, if all of them are settled."""
    fold(state)
    if not state.earlier:
        return state
    both = RouteState(state.name, state.connection, state.destinations, own_ids=state.own_ids)
    both.delivered = dict.fromkeys(state.delivered, 0)
    both.enter(state.state, state.reason)
    both.source, both.redelivers, both.gives_up = state.source, state.redelivers, state.gives_up
    both.standby, both.is_leaving = state.standby, state.is_leaving
    both.to, both.limit = state.to, state.limit
    both.break_by(state.breakers, state.most_open)
    both.left_behind = state.left_behind
    both.in_flight_limit = state.in_flight_limit
    both.obstacles, both.returning, both.draining = state.obstacles, state.returning, state.draining
    parts = [state, *state.earlier]
    both.handling = sum(one.handling for one in parts)
    moved = (one.handler_moved_at for one in parts if one.handling)
    both.handler_moved_at = max(moved, default=state.handler_moved_at)
    both.held_by(
        Held(
            sum(one.in_hand for one in parts),
            sum(one.waiting_for_limit for one in parts),
            (sum(one.retrying[0] for one in parts), max(one.retrying[1] for one in parts)),
            behind=state.behind,
            partitions=state.partitions,
        )
    )
    for one in parts:
        add_counts(both, one)
    return both


def counts_of(state: RouteState) -> RouteState:
    """Return only the counts of a route that is over, without references to its other parts."""
    alone = RouteState(state.name, state.connection, state.destinations, own_ids=state.own_ids)
    alone.source, alone.redelivers, alone.gives_up = state.source, state.redelivers, state.gives_up
    alone.is_leaving, alone.is_over = state.is_leaving, state.is_over
    alone.break_by(state.breakers, state.most_open)
    continue_counts(alone, state)
    return alone


def add_counts(state: RouteState, other: RouteState) -> None:
    """Add the counts of another state, as if they had been counted here, without what it still has in hand."""
    if other.last_failure is not None and (state.last_failure is None or other.last_failure.at > state.last_failure.at):
        state.last_failure = other.last_failure
    # All of it is settled, so messages without a duration will never have one.
    state.never_routed += other.received - sum(other.durations.counts)
    counts = _without_forwarded(state, other)
    state.add(counts)
    state.delivered_earlier.update(counts.delivered)
    state.dead_lettered_earlier += other.dead_lettered
    past = [breaker for breaker in state.openings if breaker[1] not in state.destinations]
    for breaker in past[:-MOST_PAST_DESTINATIONS]:
        del state.openings[breaker]


def _without_forwarded(state: RouteState, other: RouteState) -> RouteCounts:
    """Return the counts of another state with `forwarded` included in others: its first destination may differ."""
    counts = RouteCounts(())
    counts.add(other)
    counts.fates["routed"] += sum(other.forwarded.counts)
    counts.elapsed, counts.forwarded = other.durations, Histogram(DURATION_BOUNDS)
    counts.delivered = {}
    for template, count in other.routed.items():
        label = _label(state, template)
        counts.delivered[label] = counts.delivered.get(label, 0) + count
    return counts


def _label(state: RouteState, template: str) -> str:
    """Return the destination under which messages for `template` are counted."""
    known = state.delivered
    if template in known or len(known) < len(state.destinations) + MOST_PAST_DESTINATIONS:
        return template
    return PAST_DESTINATIONS
