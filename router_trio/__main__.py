"""`python -m router_trio`: the same as the `router-trio` command."""

from __future__ import annotations

import sys

from router_trio.cli import main

if __name__ == "__main__":
    sys.exit(main())
