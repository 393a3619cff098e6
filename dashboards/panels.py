"""The kinds of panels that the dashboards use, with the options that all panels of a kind share.

Title, explanation and unit are required arguments of every kind. Units are Grafana's (`mps` messages per second,
`percentunit` a share from 0 to 1, `locale` a number with all its digits). A threshold is a value and the colour that
applies from there up; the first colour applies to all lower values as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, statetimeline
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.builders import timeseries as series
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_kinds
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.runbooks import runbook

DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE = "green", "yellow", "orange", "red", "blue", "purple"

Query = prometheus.Dataquery
Threshold = tuple[float, str]
Panel = series.Panel | stat.Panel | bargauge.Panel | statetimeline.Panel | heatmap.Panel | tables.Panel
P = TypeVar("P", series.Panel, stat.Panel, bargauge.Panel, statetimeline.Panel, heatmap.Panel, tables.Panel)

ALERT_IF_ANY: Sequence[Threshold] = ((0, GREEN), (1, RED))
"""Thresholds for the count of something that must not happen."""


def query(expression: str, legend: str = "__auto") -> Query:
    """Query the dashboard's time range, one line per series; `legend` may contain labels as `{{label}}`."""
    return Query().expr(expression).legend_format(legend).range()


def now(expression: str, legend: str = "__auto") -> Query:
    """Query the end of the dashboard's time range only."""
    return Query().expr(expression).legend_format(legend).instant()


def lines(title: str, explanation: str, unit: str, *queries: Query, alerts: Sequence[str] = ()) -> series.Panel:
    """Build a panel of lines over time, whose legend has the mean and the maximum of each line."""
    panel = _common(series.Panel(), title, explanation, unit, queries, alerts)
    legend = common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.TABLE).show_legend(True)
    legend = legend.placement(kinds.LegendPlacement.BOTTOM).calcs(["mean", "max"])
    tooltip = common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
    return (
        panel.legend(legend)
        .tooltip(tooltip)
        .line_width(1)
        .fill_opacity(8)
        .show_points(kinds.VisibilityMode.NEVER)
        .min(0)
    )


def stacked(panel: series.Panel) -> series.Panel:
    """Stack the areas of a panel, so that it shows their sum."""
    return panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL)).fill_opacity(40)


def steps(panel: series.Panel) -> series.Panel:
    """Draw the lines of a panel as steps, for values that hold until the next sample."""
    return panel.line_interpolation(kinds.LineInterpolation.STEP_AFTER).fill_opacity(25)


def limited(panel: series.Panel, *thresholds: Threshold) -> series.Panel:
    """Draw a dashed line at each threshold, in its colour."""
    style = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(_thresholds(((0, "transparent"), *thresholds))).thresholds_style(style)


def dashed(panel: series.Panel, pattern: str, color: str) -> series.Panel:
    """Draw the series whose names match `pattern` as dashed lines of one colour, for limits beside measurements."""
    value = model.DynamicConfigValue
    return panel.override_by_regexp(
        pattern,
        [
            value("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            value("custom.fillOpacity", 0),
            value("color", {"mode": "fixed", "fixedColor": color}),
        ],
    )


def colored(panel: series.Panel, colors: Mapping[str, str]) -> series.Panel:
    """Give series fixed colours by name, so that failures are red on every panel."""
    for name, color in colors.items():
        panel.override_by_name(name, [model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})])
    return panel


def number(
    title: str,
    explanation: str,
    unit: str,
    source: Query,
    thresholds: Sequence[Threshold] = ((0, BLUE),),
    alerts: Sequence[str] = (),
) -> stat.Panel:
    """Build a panel with one number, coloured by the thresholds, above its history if it is a range query."""
    has_history = bool(source.build().range_val)
    panel = _common(stat.Panel(), title, explanation, unit, (source,), alerts)
    return (
        panel.thresholds(_thresholds(thresholds))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(kinds.BigValueColorMode.VALUE)
        .graph_mode(kinds.BigValueGraphMode.AREA if has_history else kinds.BigValueGraphMode.NONE)
        .text_mode(kinds.BigValueTextMode.VALUE)
        .reduce_options(_last())
        .span(3)
        .height(4)
    )


def names(title: str, explanation: str, unit: str, source: Query) -> stat.Panel:
    """Build a panel with the names of the series, for information that is in a label."""
    return number(title, explanation, unit, source).text_mode(kinds.BigValueTextMode.NAME)


def bars(
    title: str,
    explanation: str,
    unit: str,
    source: Query,
    thresholds: Sequence[Threshold],
    alerts: Sequence[str] = (),
) -> bargauge.Panel:
    """Build a panel with a bar for each series, coloured by the thresholds."""
    panel = _common(bargauge.Panel(), title, explanation, unit, (source,), alerts)
    return (
        panel.thresholds(_thresholds(thresholds))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .display_mode(kinds.BarGaugeDisplayMode.BASIC)
        .orientation(kinds.VizOrientation.HORIZONTAL)
        .reduce_options(_last())
        .min(0)
    )


def states(
    title: str,
    explanation: str,
    source: Query,
    texts: Sequence[tuple[float, str, str]],
    alerts: Sequence[str] = (),
) -> statetimeline.Panel:
    """Build a panel with a band of states for each series; `texts` has the value, text and colour of each state."""
    results = {
        f"{value:g}": model.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, text, color) in enumerate(texts)
    }
    panel = _common(statetimeline.Panel(), title, explanation, "none", (source,), alerts)
    return (
        panel.mappings([model.ValueMap(options=results)])
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds([(value, color) for value, _, color in texts]))
        .legend(common.VizLegendOptions().show_legend(False))
        .merge_values(True)
        .show_value(kinds.VisibilityMode.AUTO)
        .row_height(0.8)
        .fill_opacity(80)
        .line_width(0)
    )


def heat(title: str, explanation: str, unit: str, buckets: Query) -> heatmap.Panel:
    """Build a heat map of a histogram over time; the query sums the rates of its buckets by `le`."""
    panel = _common(heatmap.Panel(), title, explanation, unit, (buckets.format(PromQueryFormat.HEATMAP),), ())
    color = heatmap.HeatmapColorOptions().mode(heatmap_kinds.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    color = color.exponent(0.5).scale(heatmap_kinds.HeatmapColorScale.EXPONENTIAL).reverse(False)
    return (
        panel.calculate(False)
        .color(color.fill("dark-orange"))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_gap(1)
        .show_value(kinds.VisibilityMode.NEVER)
        .hide_legend()
    )


def table(title: str, explanation: str, unit: str, key: str, columns: Sequence[tuple[str, str]]) -> tables.Panel:
    """Build a table with a row per value of the label `key`.

    A column is its title and its query, which must keep no label other than `key`.
    """
    queries = [now(expression).format(PromQueryFormat.TABLE) for _, expression in columns]
    panel = _common(tables.Panel(), title, explanation, unit, queries, ())
    renamed = {f"Value #{_letter(index)}": name for index, (name, _) in enumerate(columns)}
    order = {key: 0} | {f"Value #{_letter(index)}": index + 1 for index in range(len(columns))}
    organize = {"excludeByName": {"Time": True}, "renameByName": renamed, "indexByName": order}
    return (
        panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(model.DataTransformerConfig(id_val="organize", options=organize))
        .cell_height(kinds.TableCellHeight.SM)
    )


# --- what all have in common ---


def _common(panel: P, title: str, explanation: str, unit: str, queries: Sequence[Query], alerts: Sequence[str]) -> P:
    panel.title(title).description(explanation).unit(unit).datasource(DATASOURCE).span(8).height(8)
    for index, one in enumerate(queries):
        panel.with_target(one.ref_id(_letter(index)).datasource(DATASOURCE))
    links: list[Builder[model.DashboardLink]] = [runbook(alert) for alert in alerts]
    if links:
        panel.links(links)
    return panel


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _thresholds(pairs: Sequence[Threshold]) -> dashboard.ThresholdsConfig:
    bounds = [model.Threshold(value=None if i == 0 else value, color=color) for i, (value, color) in enumerate(pairs)]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(bounds)
