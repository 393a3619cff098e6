"""A mark for tests of costs: under coverage, which observes each line, everything costs several times as much."""

from __future__ import annotations

import pytest
from coverage import Coverage

needs_full_speed = pytest.mark.skipif(Coverage.current() is not None, reason="coverage looks at each line")
