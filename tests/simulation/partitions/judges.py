"""The promises of partitions, each a function that yields how a history breaks it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from router_trio.routing.stream.consumer.lease import RESERVE
from tests.simulation.partitions.history import Call, Change, Copy, History, Look, Spell

LED_AGAIN = 30.0
"""Seconds within which another process stands in for a member that does not lead a partition."""

Judge = Callable[[History], Iterator[str]]


def first_copies_in_order(history: History) -> Iterator[str]:
    """Check that the first copies of the messages of each key are stored in the order of the source."""
    key_of = {
        one.number: one.key
        for one in history.published
        if not any(begin <= one.at <= end for begin, end in history.without_order)
    }
    last: dict[str, int] = {}
    seen: set[int] = set()
    for copy in history.stored:
        if copy.number in seen or copy.number not in key_of:
            continue
        seen.add(copy.number)
        key = key_of[copy.number]
        if copy.number < last.get(key, -1):
            yield f"{copy.number} of {key} was stored at {copy.at:.3f} s, behind {last[key]}"
        last[key] = max(copy.number, last.get(key, -1))


def stored_once(history: History) -> Iterator[str]:
    """Check that no message is stored twice within the duplicate window."""
    last: dict[int, Copy] = {}
    for copy in history.stored:
        before = last.get(copy.number)
        if before is not None and copy.at < before.lost_at and copy.at - before.at < history.window:
            yield f"{copy.number} was stored at {before.at:.3f} s and at {copy.at:.3f} s"
        last[copy.number] = copy


def all_stored(history: History) -> Iterator[str]:
    """Check that each message of the source was stored."""
    missing = {one.number for one in history.published} - {copy.number for copy in history.stored} - history.gone
    if missing:
        yield f"{len(missing)} of {len(history.published)} were not stored: {sorted(missing)[:5]}"


def one_call_of_a_key(history: History) -> Iterator[str]:
    """Check that calls of the handler for messages of one key do not overlap.

    A process that was suspended may finish, after it has woken, the call that was running, or that its router was just
    making. A call that is longer than the reserve of the lease may be running when the lease ends, if the process was
    cut off.
    """
    of_key: defaultdict[str, list[Call]] = defaultdict(list)
    for call in history.calls:
        of_key[call.key].append(call)
    for key, calls in of_key.items():
        running: list[Call] = []
        for call in sorted(calls, key=lambda one: one.began):
            running = [one for one in running if one.ended > call.began]
            for other in running:
                if not _excused(history.spells, other, call):
                    yield (
                        f"{key}: process {other.process} had {other.number} in its handler from {other.began:.3f} s to "
                        f"{other.ended:.3f} s, and process {call.process} began {call.number} at {call.began:.3f} s"
                    )
            running.append(call)


def _excused(spells: list[Spell], first: Call, second: Call) -> bool:
    if first.process == second.process:
        return False
    return any(_excuses(spell, first, second) for spell in spells)


def _excuses(spell: Spell, first: Call, second: Call) -> bool:
    """Return True if the first call, which was running when the second began, was running because of a spell."""
    if spell.process is None:  # the server forgot who leads
        return spell.began <= second.began <= spell.ended
    if spell.suspended and spell.process == second.process:
        return _called(second) <= spell.began
    if spell.process != first.process or second.began < spell.began:
        return False
    if spell.suspended:
        return _called(first) <= spell.began
    return first.began <= spell.ended and second.began - first.began >= RESERVE


def _called(call: Call) -> float:
    return call.began if call.called is None else call.called


def led_in_time(history: History) -> Iterator[str]:
    """Check that a process leads each partition that has something to do, some time after the last change."""
    for look, since in _settled(history, lambda change: change.led_within):
        led = frozenset[int]().union(*look.led.values())
        if look.members and (missing := look.busy - led):
            yield f"at {look.at:.3f} s none leads {_listed(missing)}, {since}"


def led_again(history: History) -> Iterator[str]:
    """Check that no partition with something to do is without a leader for long, even if members are forged."""
    unsettled = [(one.at, one.at + one.led_within) for one in history.changes if not one.forged]
    since: dict[int, float] = {}
    for look in history.looks:
        led = frozenset[int]().union(*look.led.values())
        if not look.led or any(began <= look.at <= ended for began, ended in unsettled):
            since = {}
            continue
        since = {number: since.get(number, look.at) for number in look.busy - led}
        late = {number for number, began in since.items() if look.at - began > LED_AGAIN}
        if late:
            yield f"at {look.at:.3f} s none has led {_listed(late)} for {LED_AGAIN:g} s"


def fair_shares(history: History) -> Iterator[str]:
    """Check that members lead as many partitions as others, or one less, and none twice, after the last change.

    Partitions that were moved by hand stay where they are. A process that was cut off for long is no member any more.
    """
    for look, since in _settled(history, lambda change: change.fair_within):
        if not look.members:
            continue
        shares = {process: len(led) for process, led in look.led.items()}
        compared = [shares[process] for process in look.members]
        twice = _led_twice(look.led)
        if twice:
            yield f"at {look.at:.3f} s several lead {_listed(twice)}, {since}"
        elif not look.moved and max(compared) - min(compared) > history.workers:
            yield f"at {look.at:.3f} s the processes lead {shares}, {since}"
        elif sum(shares.values()) < history.partitions:
            yield f"at {look.at:.3f} s {sum(shares.values())} of {history.partitions} are led, {since}"


def _settled(history: History, within: Callable[[Change], float]) -> Iterator[tuple[Look, str]]:
    """Yield the looks at times when nothing has changed for long enough, each with what changed last, as text."""
    for look in history.looks:
        before = [change for change in history.changes if change.at <= look.at]
        last = max(before, key=lambda change: change.at + within(change), default=None)
        if last is not None and look.at > last.at + within(last):
            yield look, f"{look.at - last.at:.3f} s after: {last.what}"


def _led_twice(led: Mapping[int, frozenset[int]]) -> set[int]:
    seen: set[int] = set()
    twice: set[int] = set()
    for partitions in led.values():
        twice |= seen & partitions
        seen |= partitions
    return twice


def _listed(partitions: frozenset[int] | set[int]) -> str:
    return f"partition{'s' if len(partitions) > 1 else ''} {', '.join(map(str, sorted(partitions)))}"


JUDGES: dict[str, Judge] = {
    "order": first_copies_in_order,
    "once": stored_once,
    "lost": all_stored,
    "one of a key": one_call_of_a_key,
    "led": led_in_time,
    "led again": led_again,
    "fair": fair_shares,
}
"""The judges by the names of the promises."""
