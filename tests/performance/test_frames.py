"""The frames of a lone message, on a real server: see `tests.shape.frames`."""

from __future__ import annotations

import pytest

from tests.docs.pages import ROOT
from tests.shape.frames import frames
from tests.support.compiled import looks_inside

pytestmark = looks_inside

BOUNDS = {"core": 60, "stream": 96}
"""Measured with Python 3.11: 57 and 94. Whoever gets lower lowers them."""


@pytest.mark.parametrize("kind", BOUNDS)
async def test_a_lone_message_takes_no_more_frames(kind: str) -> None:
    found = await frames(kind, ROOT)
    assert found.spread.total() > 50
    assert "router_trio/nats/wire.py" in found.files
    assert found.count <= BOUNDS[kind], "\n".join([str(found.spread), *found.by_function()])
