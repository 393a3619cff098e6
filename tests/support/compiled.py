"""Whether the data plane under test is compiled; see `[tool.hatch.build.targets.wheel.hooks.mypyc]`."""

from __future__ import annotations

import pytest

from router_trio.protocol import framing

COMPILED = not str(framing.__file__).endswith(".py")

looks_inside = pytest.mark.skipif(COMPILED, reason="looks into, or replaces, what is compiled here")
