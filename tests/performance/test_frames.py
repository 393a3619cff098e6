"""The frames of a lone message, on a real server: see `tests.shape.frames`."""

from __future__ import annotations

import pytest

from tests.docs.pages import ROOT
from tests.shape.frames import frames
from tests.support.compiled import looks_inside

pytestmark = looks_inside

BOUNDS = {"core": 69, "stream": 96, "websocket": 78}
"""Measured with Python 3.11: 69, 96 and 78. Lower the bounds with the figures."""

TURNS = {"core": 5, "stream": 3, "websocket": 5}
"""How often a task is resumed: each time costs as much as a dozen frames."""


@pytest.mark.parametrize("kind", BOUNDS)
async def test_a_lone_message_takes_no_more_frames(kind: str) -> None:
    found = await frames(kind, ROOT)
    assert found.spread.total() > 50
    assert "router_trio/nats/wire.py" in found.files
    assert found.count <= BOUNDS[kind], "\n".join([str(found.spread), *found.by_function()])
    assert found.turns <= TURNS[kind]
