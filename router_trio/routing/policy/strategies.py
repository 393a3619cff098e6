"""Strategies: which destinations of a route get a message.

A strategy is asked once for each message: `choose` returns the places of the destinations, in the order of the
configuration, mirrors last. An empty result means that no destination accepts the message, which is then filtered as
`UNMATCHED`. The counters of a strategy (whose turn it is, what a mirror is owed) belong to one route of one process.

The caller keeps the choice until the message is settled, and does not ask again when the message is redelivered:
otherwise a message with a stored copy could get a second one elsewhere. Only if no copy is stored may `choose_again` be
called. It counts nothing, and starts from the first choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

from router_trio.protocol.framing import RawMessage
from router_trio.routing.policy.sticky import LONGEST_REMEMBERED, MAX_REMEMBERED, Rendezvous, key_of

Evaluate = Callable[[Any], Any]
"""Returns the value of an expression for a message (`Facts`), or raises EvaluationError."""
Choice = Sequence[int]


Header = Callable[[RawMessage], bytes]
"""Reads a header of a raw message, or raises EvaluationError."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A destination as strategies see it. `name` identifies it for `sticky`, and is the same in each process.

    `mirror` is the share of messages that a mirror gets copies of; None if it is no mirror.
    """

    name: bytes
    when: Evaluate | None = None
    weight: int = 1
    mirror: Fraction | None = None


class Strategy:
    """Chooses destinations. If `choose` raises EvaluationError, the message fails and nothing is counted."""

    __slots__ = ()

    def choose(self, facts: Any) -> Choice:
        """Return the destinations of a new message. Raises EvaluationError."""
        raise NotImplementedError

    def choose_again(self, chosen: Choice) -> Choice:
        """Return the destinations of a message that failed and has no stored copy."""
        return chosen

    @property
    def choose_raw(self) -> Callable[[RawMessage], Choice] | None:
        """Return a `choose` for messages that are not decoded; None if they have to be decoded."""
        return None


def strategy_for(
    name: str,
    candidates: Sequence[Candidate],
    *,
    key: Evaluate | None = None,
    key_header: Header | None = None,
    healthy: Callable[[int], bool] = lambda index: True,
) -> Strategy:
    """Return a new strategy of that name, with its counters at zero.

    `key` is for `sticky`; `key_header` reads the key if the key is just a header. `healthy`, for `fallback`, returns
    whether the destination at a place is connected and accepts messages.
    """
    real = [index for index, one in enumerate(candidates) if one.mirror is None]
    strategy: Strategy
    if name == "weighted":
        strategy = Weighted(real, [candidates[index].weight for index in real])
    elif name == "sticky":
        assert key is not None
        strategy = Sticky(key, key_header, real, [candidates[index] for index in real])
    elif name == "fallback":
        strategy = Fallback(real, healthy)
    elif all(candidates[index].when is None for index in real):
        strategy = Fixed(real if name == "all" else real[:1])
    else:
        tests = [(index, candidates[index].when) for index in real]
        strategy = FirstMatch(tests) if name == "first_match" else AllThatHold(tests)
    shares = {index: one.mirror for index, one in enumerate(candidates) if one.mirror is not None}
    return Mirrored(strategy, shares) if shares else strategy


class Fixed(Strategy):
    """Choose the same destinations for every message."""

    __slots__ = ("_chosen",)

    def __init__(self, chosen: Sequence[int]) -> None:
        self._chosen = tuple(chosen)

    def choose(self, facts: Any) -> Choice:
        return self._chosen


class AllThatHold(Strategy):
    """Choose every destination whose `when` holds, and every one without a `when`."""

    __slots__ = ("_tests",)

    def __init__(self, tests: Sequence[tuple[int, Evaluate | None]]) -> None:
        self._tests = tuple(tests)

    def choose(self, facts: Any) -> Choice:
        """Evaluate all conditions before anything is sent: if one raises, nothing of the message is sent."""
        return [index for index, holds in self._tests if holds is None or holds(facts)]


class FirstMatch(Strategy):
    """Choose the first destination whose `when` holds, or that has none. Later ones are not evaluated."""

    __slots__ = ("_tests",)

    def __init__(self, tests: Sequence[tuple[int, Evaluate | None]]) -> None:
        self._tests = tuple(((index,), holds) for index, holds in tests)

    def choose(self, facts: Any) -> Choice:
        for chosen, holds in self._tests:
            if holds is None or holds(facts):
                return chosen
        return ()


class Weighted(Strategy):
    """Choose one destination after the other, each in proportion to its weight (smooth weighted round robin).

    Of as many consecutive messages as the weights add up to, each destination gets exactly as many as its weight,
    evenly spread. The order is the same in each round, so it is computed once.
    """

    __slots__ = ("_next", "_round")

    def __init__(self, places: Sequence[int], weights: Sequence[int]) -> None:
        one = [(index,) for index in places]
        self._round = tuple(one[at] for at in smooth_round(weights))
        self._next = 0

    def choose(self, facts: Any) -> Choice:
        at = self._next
        chosen = self._round[at]
        at += 1
        self._next = at if at < len(self._round) else 0
        return chosen

    @property
    def choose_raw(self) -> Callable[[RawMessage], Choice]:
        return self.choose


def smooth_round(weights: Sequence[int]) -> list[int]:
    """Return one round of places: each as often as its weight in lowest terms, spread as evenly as possible."""
    divisor = gcd(*weights)
    weights = [weight // divisor for weight in weights]
    total = sum(weights)
    credit = [0] * len(weights)
    turns = []
    for _ in range(total):
        best = 0
        for at, weight in enumerate(weights):
            credit[at] += weight
            if credit[at] > credit[best]:
                best = at
        credit[best] -= total
        turns.append(best)
    return turns


class Sticky(Strategy):
    """Choose the destination that the key of the message belongs to."""

    __slots__ = ("_by_header", "_destination_of", "_header", "_key")

    def __init__(
        self, key: Evaluate, header: Header | None, places: Sequence[int], candidates: Sequence[Candidate]
    ) -> None:
        """`header`: see `strategy_for`."""
        self._key = key
        self._header = header
        self._by_header: dict[bytes, Choice] = {}
        members = [((index,), one.name, one.weight) for index, one in zip(places, candidates, strict=True)]
        self._destination_of: Callable[[bytes], Choice] = Rendezvous(members).owner_of

    def choose(self, facts: Any) -> Choice:
        return self._destination_of(key_of(self._key(facts)))

    @property
    def choose_raw(self) -> Callable[[RawMessage], Choice] | None:
        """Return a `choose` for messages that are not decoded if the key is a header, otherwise None."""
        return None if self._header is None else self._choose_by_header

    def _choose_by_header(self, raw: RawMessage) -> Choice:
        assert self._header is not None
        value = self._header(raw)
        chosen = self._by_header.get(value)
        if chosen is None:
            chosen = self._destination_of(key_of(value.decode("utf-8", "surrogateescape")))
            if len(value) <= LONGEST_REMEMBERED:
                if len(self._by_header) >= MAX_REMEMBERED:
                    self._by_header.clear()
                self._by_header[value] = chosen
        return chosen


class Fallback(Strategy):
    """Choose the first healthy destination; if none is healthy the first one, whose outbox keeps the message."""

    __slots__ = ("_first", "_healthy", "_places")

    def __init__(self, places: Sequence[int], healthy: Callable[[int], bool]) -> None:
        self._places = tuple((index, (index,)) for index in places)
        self._first = (places[0],)
        self._healthy = healthy

    def choose(self, facts: Any) -> Choice:
        healthy = self._healthy
        for index, chosen in self._places:
            if healthy(index):
                return chosen
        return self._first

    @property
    def choose_raw(self) -> Callable[[RawMessage], Choice]:
        return self.choose

    def choose_again(self, chosen: Choice) -> Choice:
        """Choose by which destinations are healthy now."""
        return self.choose(None)


class Mirrored(Strategy):
    """Choose the destinations of another strategy, and for a share of the messages the mirrors as well.

    Of any n consecutive messages that have a destination, a mirror with the share p gets n x p, rounded up or down.
    """

    __slots__ = ("_mirrors", "_owed", "_strategy")

    def __init__(self, strategy: Strategy, shares: dict[int, Fraction]) -> None:
        self._strategy = strategy
        self._mirrors = tuple((index, share.numerator, share.denominator) for index, share in shares.items())
        self._owed = [0] * len(shares)

    def choose(self, facts: Any) -> Choice:
        chosen = self._strategy.choose(facts)
        if not chosen:
            return chosen
        owed = self._owed
        for at, (index, numerator, denominator) in enumerate(self._mirrors):
            sum_owed = owed[at] + numerator
            if sum_owed >= denominator:
                sum_owed -= denominator
                chosen = (*chosen, index)
            owed[at] = sum_owed
        return chosen

    def choose_again(self, chosen: Choice) -> Choice:
        """Choose the primary destination again; the mirrors stay the same."""
        places = {index for index, _, _ in self._mirrors}
        mirrors = [index for index in chosen if index in places]
        real = [index for index in chosen if index not in places]
        return (*self._strategy.choose_again(real), *mirrors)
