"""Check the keys of a `[routes.from]`, whatever the kind of its source; each kind checks the rest."""

from __future__ import annotations

from collections.abc import Iterator

from router_trio.errors import Problem
from router_trio.settings.routes import SourceSettings
from router_trio.settings.routes.source import KINDS

_OWNERS = {key: kind for kind in reversed(KINDS) for key in (kind.key, *kind.keys)}
"""Which kind of source is named in the refusal of a key: the first that has it."""


def check_source(path: str, source: SourceSettings) -> Iterator[Problem]:
    """Give everything that is wrong with a source."""
    kind = source.kind
    if getattr(source, kind.key) is None:
        yield Problem(path, f"names no source; give {', or '.join(one.needed for one in KINDS)}")
        return
    # What nobody set is not compared: the defaults cost a validation of their own.
    others = [key for key in _OWNERS if key not in (kind.key, *kind.keys) and key in source.model_fields_set]
    defaults = SourceSettings() if others else source
    for key in others:
        if getattr(source, key) != getattr(defaults, key):
            yield Problem(f"{path}.{key}", kind.refuse(key, _OWNERS[key]))
    yield from kind.check(path, source)


def check_shared_source(path: str, source: SourceSettings | None, workers: int) -> Iterator[Problem]:
    """Give what keeps so many workers from sharing a source. What is None is not judged."""
    if source is not None and workers > 1:
        yield from source.kind.check_shared(path, source, workers)
