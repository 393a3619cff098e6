"""Which destinations of a route get a message.

A strategy is asked once a message: `choose` returns the places of the destinations, in the order of the configuration,
those of mirrors last. `()`: none takes the message, which is then filtered as `UNMATCHED`. What a strategy counts
(whose turn it is, what a mirror is owed) belongs to one route of one process.

Whoever routes keeps the answer with the message for as long as that is in hand, and does not ask again when it comes
again: a copy that is stored would otherwise get a second one elsewhere. Only if no copy is stored may `choose_again` be
asked. It counts nothing, and goes on from the first answer.
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
"""Gives the value of an expression for a message (`Facts`), or raises EvaluationError."""
Choice = Sequence[int]


Header = Callable[[RawMessage], bytes]
"""Reads a header of a message as it came, or raises EvaluationError."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A destination as strategies see it. `name` is what `sticky` knows it by, the same in each process.

    `mirror` is the share of messages of which it gets a copy; None if it is no mirror.
    """

    name: bytes
    when: Evaluate | None = None
    weight: int = 1
    mirror: Fraction | None = None


class Strategy:
    """Chooses destinations. What it raises (EvaluationError) fails the message, and counts nothing."""

    __slots__ = ()

    def choose(self, facts: Any) -> Choice:
        """Return which destinations get a new message. Raises EvaluationError."""
        raise NotImplementedError

    def choose_again(self, chosen: Choice) -> Choice:
        """Return which destinations get a message that failed, and of which no copy is stored."""
        return chosen

    @property
    def choose_raw(self) -> Callable[[RawMessage], Choice] | None:
        """Return what `choose` would for a message that was not decoded; None if it has to be decoded."""
        return None


def strategy_for(
    name: str,
    candidates: Sequence[Candidate],
    *,
    key: Evaluate | None = None,
    key_header: Header | None = None,
    healthy: Callable[[int], bool] = lambda index: True,
) -> Strategy:
    """Return a new strategy of that name, with its counters at the start.

    `key` is for `sticky`, and `key_header` if it is a header and nothing else. `healthy`, for `fallback`, says of the
    destination at a place whether it is connected and takes messages.
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
    """Every destination whose `when` holds, and every one without."""

    __slots__ = ("_tests",)

    def __init__(self, tests: Sequence[tuple[int, Evaluate | None]]) -> None:
        self._tests = tuple(tests)

    def choose(self, facts: Any) -> Choice:
        """See `Strategy`. All are evaluated before anything is sent: one that fails fails the message as a whole."""
        return [index for index, holds in self._tests if holds is None or holds(facts)]


class FirstMatch(Strategy):
    """The first destination whose `when` holds, or that has none. The ones behind it are not evaluated."""

    __slots__ = ("_tests",)

    def __init__(self, tests: Sequence[tuple[int, Evaluate | None]]) -> None:
        self._tests = tuple(((index,), holds) for index, holds in tests)

    def choose(self, facts: Any) -> Choice:
        for chosen, holds in self._tests:
            if holds is None or holds(facts):
                return chosen
        return ()


class Weighted(Strategy):
    """Choose one destination after the other, each as often as its weight says.

    As many messages in a row as the weights add up to go to each destination exactly as often as its weight, wherever
    one begins to count, and those of one destination are spread among them (smooth weighted round robin). The order is
    the same in each round, so it is worked out once.
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
    """Return one round: places by turns, each as often as its weight, in lowest terms, as evenly spread as they go."""
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
    """The destination that belongs to the key of the message."""

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
        """See `Strategy`: if the key is a header."""
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
    """The first healthy destination; if there is none the first of all, where the message waits."""

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
        """See `Strategy`. What is healthy now decides."""
        return self.choose(None)


class Mirrored(Strategy):
    """Choose what another strategy does, and for a share of the messages the mirrors as well.

    Of any n messages in a row that go anywhere, a mirror with the share p gets n x p, rounded up or down.
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
        """See `Strategy`. The same mirrors get their copy."""
        places = {index for index, _, _ in self._mirrors}
        mirrors = [index for index in chosen if index in places]
        real = [index for index in chosen if index not in places]
        return (*self._strategy.choose_again(real), *mirrors)
