"""Streams that are kept in memory: what arrived in them, and what died with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tests.resilience.chaos.load import numbers
from tests.resilience.chaos.scene import Scene
from tests.support.raw_jetstream import StoredMessage


def arrived(scene: Scene, sink: Sequence[StoredMessage]) -> list[int]:
    """Messages that a sink has stored: by its PubAck, for those that died with it, or since it holds them now."""
    return scene.spy.stored + [found for message in sink for found in numbers(message.payload)]


def died(scene: Scene, missing: Collection[int]) -> set[int]:
    """Those that had not arrived when the source died that had taken them, and were in no router's hands.

    What a router had in hand is its own to deliver, whatever becomes of the stream. Only if a destination refuses it,
    or that router ends, it should come again from its source, and can't.
    """
    taken = {one.number: one.began for one in scene.taken}
    return {one for one in missing if one not in scene.spy.hands and _source_died_after(scene, taken[one])}


def published_once(scene: Scene) -> list[int]:
    """Messages with one place in one source: not those of which an attempt to publish died with a server."""
    return [one.number for one in scene.taken if one.attempts == 1]


def _source_died_after(scene: Scene, taken: float) -> bool:
    return any(taken <= ended for _, ended in scene.deaths)
