"""PromQL of the panels: every selector carries the variables that a dashboard offers, so none can be forgotten.

`$__rate_interval` is Grafana's: at least four scrapes, so that a rate never falls between two of them. Counters exist
from the router's start at zero, so `increase` sees also the first event of its kind.
"""

from __future__ import annotations

PROCESS = 'job=~"$job",instance=~"$instance"'
CONNECTION = f'{PROCESS},connection=~"$connection"'
ROUTE = f'{CONNECTION},route=~"$route"'


def of_process(metric: str) -> str:
    """Select a metric of the process, for the chosen jobs and instances."""
    return f"{metric}{{{PROCESS}}}"


def of_connection(metric: str, *matchers: str) -> str:
    """Select a metric of connections, for the chosen ones; `matchers` are added."""
    return f"{metric}{{{','.join((CONNECTION, *matchers))}}}"


def of_route(metric: str, *matchers: str) -> str:
    """Select a metric of routes, for the chosen ones and the connections that they read from."""
    return f"{metric}{{{','.join((ROUTE, *matchers))}}}"


def rate(selector: str) -> str:
    """What a counter grows by, a second."""
    return f"rate({selector}[$__rate_interval])"


def events(selector: str) -> str:
    """How often something happened in the last few scrapes. Rounded: `increase` extrapolates, and events are whole."""
    return f"round(increase({selector}[$__rate_interval]))"


def in_range(selector: str) -> str:
    """What a counter grew by in the time range of the dashboard, whole."""
    return f"round(increase({selector}[$__range]))"


def total(expression: str, *by: str) -> str:
    """The sum, for each combination of the labels `by`."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def quantile(share: float, buckets: str, *by: str) -> str:
    """A quantile of a histogram; `buckets` selects its `_bucket` series."""
    return f"histogram_quantile({share:g}, {total(rate(buckets), 'le', *by)})"


def share_of(part: str, rest: str) -> str:
    """What `part` is of `part` and `rest` together: from 0 to 1, no value where there is neither."""
    return f"({part}) / (({part}) + ({rest}))"
