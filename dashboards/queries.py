"""PromQL of the panels. These functions add the dashboard's variables to every selector, so that none is forgotten.

Grafana's `$__rate_interval` spans at least four scrapes, so that there is always a rate. Counters exist at zero from
the router's start, so `increase` counts the first event as well.
"""

from __future__ import annotations

from router_trio.errors import codes, reasons

PROCESS = 'job=~"$job",instance=~"$instance"'
CONNECTION = f'{PROCESS},connection=~"$connection"'
ROUTE = f'{CONNECTION},route=~"$route"'

_NAMED = sorted(reasons.OF_THE_SENDER & reasons.TABLE.keys())
OF_THE_SENDER = f'reason=~"{"|".join(_NAMED)}|{reasons.JETSTREAM}_({"|".join(map(str, sorted(codes.OF_THE_MESSAGE)))})"'
"""Matches the reasons that burn no error budget. The recording rules have the same text."""


def of_process(metric: str) -> str:
    """Select a metric of the process, for the selected jobs and instances."""
    return f"{metric}{{{PROCESS}}}"


def of_connection(metric: str, *matchers: str) -> str:
    """Select a metric of connections, for the selected connections and any further `matchers`."""
    return f"{metric}{{{','.join((CONNECTION, *matchers))}}}"


def of_route(metric: str, *matchers: str) -> str:
    """Select a metric of routes, for the selected routes and connections that they read from."""
    return f"{metric}{{{','.join((ROUTE, *matchers))}}}"


def rate(selector: str) -> str:
    """Return the increase of a counter per second."""
    return f"rate({selector}[$__rate_interval])"


def events(selector: str) -> str:
    """Return the increase of a counter within the last few scrapes, rounded because `increase` extrapolates."""
    return f"round(increase({selector}[$__rate_interval]))"


def in_range(selector: str) -> str:
    """Return the increase of a counter within the dashboard's time range, rounded."""
    return f"round(increase({selector}[$__range]))"


def total(expression: str, *by: str) -> str:
    """Sum an expression, for each combination of the labels `by`."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def quantile(share: float, buckets: str, *by: str) -> str:
    """Return a quantile of a histogram; `buckets` selects its `_bucket` series."""
    return f"histogram_quantile({share:g}, {total(rate(buckets), 'le', *by)})"


def share_of(part: str, rest: str) -> str:
    """Return `part` as a share of `part` and `rest` together, from 0 to 1; no value where both are zero."""
    return f"({part}) / (({part}) + ({rest}))"
