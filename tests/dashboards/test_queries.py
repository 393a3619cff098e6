"""The queries are valid PromQL over metrics and labels that this version has."""

from __future__ import annotations

import re

import promql_parser as promql
import pytest

from dashboards.interpolation import Window
from router_trio.cli.contract import collect
from tests.dashboards.committed import queries

WINDOW = Window(start=1000.0, end=4600.0, step=15, scrape_interval=15)
QUERIES = list(queries())
OF_TARGETS = {"job", "instance"}
"""Labels that Prometheus adds to all series that it scrapes."""


def contract() -> dict[str, set[str]]:
    """Return the labels of each series by its name, including the series of histograms."""
    found: dict[str, set[str]] = {}
    for metric in collect()["metrics"]:
        labels = {*metric["labels"], *OF_TARGETS}
        if metric["type"] == "histogram":
            found[f"{metric['name']}_bucket"] = labels | {"le"}
            found[f"{metric['name']}_sum"] = found[f"{metric['name']}_count"] = labels
        else:
            found[metric["name"]] = labels
    return found


CONTRACT = contract()


def parsed(expression: str) -> promql.Expr:
    """Parse a query as Prometheus gets it."""
    tree: promql.Expr = promql.parse(WINDOW.interpolate(expression))
    return tree


def selectors(tree: promql.Expr) -> list[promql.VectorSelector]:
    """Return all selectors of a query."""
    found: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> bool:
        # The walk does not always visit the inside of a matrix selector.
        if isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql.VectorSelector):
            found.append(node)
        return True

    promql.walk(tree, visit)
    return found


def groupings(tree: promql.Expr) -> set[str]:
    """Return all labels that a query groups by."""
    found: set[str] = set()

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        return True

    promql.walk(tree, visit)
    return found


@pytest.mark.parametrize(("expression", "legend"), [q[1:] for q in QUERIES], ids=[q[0] for q in QUERIES])
def test_queries_use_existing_metrics_and_labels(expression: str, legend: str) -> None:
    tree = parsed(expression)
    asked = selectors(tree)
    assert asked
    common = set.intersection(*(CONTRACT[selector.name or ""] for selector in asked))
    for selector in asked:
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched >= OF_TARGETS, "the choice of job and instance must hold everywhere"
        assert matched <= CONTRACT[selector.name or ""]
        for label in ("connection", "route"):
            assert (label in matched) == (label in CONTRACT[selector.name or ""]), f"the choice of {label} must hold"
    grouped = groupings(tree)
    assert grouped <= common
    shown = set(re.findall(r"{{(\w+)}}", legend))
    assert shown <= common
    if grouped:
        assert shown <= grouped, "the legend names a label that the query drops"
    else:
        assert not re.match(r"sum\(|max\(|min\(|count\(", expression) or not shown


def test_counters_are_queried_by_rate_or_increase() -> None:
    since_start = re.compile(r"Ledger since|ledger adds up")
    for where, expression, _ in QUERIES:
        for selector in selectors(parsed(expression)):
            name = selector.name or ""
            if name.endswith("_total") and not since_start.search(where):
                assert re.search(rf"(rate|increase)\({name}{{", expression), where


def test_every_metric_of_the_contract_is_on_a_dashboard() -> None:
    shown = {selector.name for _, expression, _ in QUERIES for selector in selectors(parsed(expression))}
    missing = {name for name in CONTRACT if name not in shown and not name.endswith(("_sum", "_count"))}
    # Virtual memory of a Python process has no information beyond resident memory.
    assert missing == {"process_virtual_memory_bytes"}


def test_unknown_variables_are_refused() -> None:
    assert WINDOW.interpolate('x{job=~"$job"}[$__rate_interval] $__range') == 'x{job=~".+"}[60s] 3600s'
    with pytest.raises(ValueError, match=r"unknown variable \$nonsense"):
        WINDOW.interpolate("x{$nonsense}")
