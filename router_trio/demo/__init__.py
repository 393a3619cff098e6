"""The program behind `router-trio demo`: a router loses its server while it routes, and no message is lost.

It uses only what any program can use: settings in code, a handler, `Router.open`, publishing and observers. Another
client reads the stored messages back from the server, and they are compared with the published ones.
"""

from __future__ import annotations

SHORTEST = 3.0
"""Shortest time of publishing in seconds, so that the outage fits in."""
