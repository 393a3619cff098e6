"""The router: the public face of the package, and the nursery tree behind it."""

from __future__ import annotations

from router_trio.router.router import Router, no_pages, real_network
from router_trio.router.run import ConnectFactory, Pages

__all__ = ["ConnectFactory", "Pages", "Router", "no_pages", "real_network"]
