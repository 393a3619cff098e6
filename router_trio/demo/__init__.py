"""The story of `router-trio demo`: a router at work, its server killed, and the proof that nothing was lost.

It uses nothing that a program of your own could not use: settings in code, a handler, `Router.open`, publishing and
observers. What arrived is read back from the server by another client, and compared with what was published.
"""

from __future__ import annotations

SHORTEST = 3.0
"""Seconds of traffic: a shorter demo has no room for its outage."""
