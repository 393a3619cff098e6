"""Streams in memory: the messages that arrived in them, and those that were lost with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tests.resilience.chaos.load import numbers
from tests.resilience.chaos.scene import Scene
from tests.support.raw_jetstream import StoredMessage


def arrived(scene: Scene, sink: Sequence[StoredMessage]) -> list[int]:
    """Return the messages that a sink has stored: by its PubAck, for those lost with it, or since it holds them now."""
    return scene.spy.stored + [found for message in sink for found in numbers(message.payload)]


def died(scene: Scene, missing: Collection[int]) -> set[int]:
    """Return the messages that had not arrived when their source died, and that no router had in hand.

    A router must deliver what it has in hand, whatever happens to the stream. Only if a destination refuses the
    message, or that router ends, would it have to be redelivered from its source, which is impossible.
    """
    taken = {one.number: one.began for one in scene.taken}
    return {one for one in missing if one not in scene.spy.hands and _source_died_after(scene, taken[one])}


def published_once(scene: Scene) -> list[int]:
    """Return the messages with one position in one source: not those with an attempt to publish that died with a
    server.
    """
    return [one.number for one in scene.taken if one.attempts == 1]


def _source_died_after(scene: Scene, taken: float) -> bool:
    return any(taken <= ended for _, ended in scene.deaths)
