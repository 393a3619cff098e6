"""A mark for tests of what something costs: all costs several times as much while coverage looks at each line."""

from __future__ import annotations

import pytest
from coverage import Coverage

needs_full_speed = pytest.mark.skipif(Coverage.current() is not None, reason="coverage looks at each line")
