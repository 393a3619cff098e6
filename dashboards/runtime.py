"""Runtime: event loop lag, memory, CPU and file descriptors of the process, and losses of its telemetry."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import frame
from dashboards.panels import (
    GREEN,
    ORANGE,
    RED,
    Panel,
    heat,
    limited,
    lines,
    names,
    now,
    number,
    query,
)
from dashboards.queries import events, in_range, of_process, quantile, rate, total

INFO = of_process("router_info")
STARTED = of_process("process_start_time_seconds")
LAG = of_process("router_event_loop_lag_seconds_bucket")
LATE = ((0.1, ORANGE), (1, RED))


def runtime() -> Dashboard:
    """Build the dashboard."""
    return frame.build(
        "runtime",
        "Runtime",
        "Event loop, memory, CPU and file descriptors of each router, and losses of its telemetry.",
        [("Process", _process()), ("Event loop", _loop()), ("Resources", _resources()), ("Telemetry", _telemetry())],
    )


def _process() -> list[Panel]:
    lost = " + ".join(
        total(in_range(of_process(f"router_{what}_total")))
        for what in ("log_lines_dropped", "spans_dropped", "listener_errors")
    )
    return [
        names(
            "Version",
            "Versions of the routers that answer scrapes.",
            "none",
            now(f"count by (version) ({INFO})", "{{version}}"),
        ).span(4),
        names(
            "Configurations",
            "Hashes of the configurations in force. If there are more than expected, a router or a worker missed a "
            "reload or refused it.",
            "none",
            now(f"count by (hash) ({of_process('router_config_info')})", "{{hash}}"),
        ).span(4),
        number(
            "Loaded",
            "Time since a configuration last took effect in one of the selected routers, at startup or by a reload.",
            "dtdurations",
            now(f"min(time() - {of_process('router_config_last_reload_timestamp_seconds')})"),
            alerts=["RouterReloadRefused"],
        ).span(3),
        number(
            "Reloads",
            "Reloads in the time range that were accepted, and that were refused.",
            "short",
            now(total(in_range(of_process("router_config_reloads_total")), "outcome"), "{{outcome}}"),
            alerts=["RouterReloadRefused"],
        ).span(4),
        number(
            "Uptime",
            "Age of the youngest process.",
            "dtdurations",
            now(f"min(time() - {STARTED})"),
            alerts=["RouterAbsent"],
        ).span(3),
        number(
            "Restarts",
            "Restarts of the selected routers in the time range.",
            "short",
            now(f"sum(changes({STARTED}[$__range]))"),
            ((0, GREEN), (1, ORANGE)),
            alerts=["RouterAbsent"],
        ).span(3),
        number(
            "Telemetry lost",
            "Log lines and spans dropped, and exceptions raised by event listeners, in the time range.",
            "short",
            now(lost),
            ((0, GREEN), (1, ORANGE)),
            alerts=["RouterTelemetryDropped"],
        ).span(3),
    ]


def _loop() -> list[Panel]:
    return [
        limited(
            lines(
                "Lag of the event loop",
                "Scheduling delay of a task, measured ten times a second. A handler that computes for long without "
                "awaiting, or a machine without spare CPU, delays everything.",
                "s",
                query(quantile(0.5, LAG, "instance"), "{{instance}} median"),
                query(quantile(0.99, LAG, "instance"), "{{instance}} 99 %"),
            ),
            *LATE,
        ).span(12),
        heat(
            "Lag distribution",
            "Measurements per second by delay; a stronger colour means more measurements.",
            "s",
            query(total(rate(LAG), "le"), "{{le}}"),
        ).span(12),
    ]


def _resources() -> list[Panel]:
    opened, most = of_process("process_open_fds"), of_process("process_max_fds")
    return [
        lines(
            "Memory",
            "Resident memory of the process, including pending messages.",
            "bytes",
            query(of_process("process_resident_memory_bytes"), "{{instance}}"),
        ).span(6),
        limited(
            lines(
                "CPU",
                "Share of one core. A router runs in one thread, so it is at its limit near 100 %.",
                "percentunit",
                query(rate(of_process("process_cpu_seconds_total")), "{{instance}}"),
            ),
            (0.9, ORANGE),
        ).span(6),
        lines(
            "File descriptors",
            "Open file descriptors, mostly sockets. A line that only rises shows a leak.",
            "short",
            query(opened, "{{instance}}"),
        ).span(6),
        number(
            "Descriptors used",
            "Open file descriptors as a share of the limit of the process.",
            "percentunit",
            query(f"max({opened} / {most})"),
            ((0, GREEN), (0.7, ORANGE), (0.9, RED)),
        )
        .span(6)
        .height(8),
    ]


def _telemetry() -> list[Panel]:
    return [
        lines(
            "Spans dropped",
            "Spans dropped because too many were queued or the collector did not accept them. Not followed and not "
            "begun: messages routed untraced because there were more than max_traces_per_second. No message is lost.",
            "short",
            query(events(of_process("router_spans_dropped_total")), "{{instance}}"),
            query(events(of_process("router_traces_not_followed_total")), "{{instance}}, not followed"),
            query(events(of_process("router_traces_not_begun_total")), "{{instance}}, not begun"),
            alerts=["RouterTelemetryDropped"],
        ),
        lines(
            "Log lines dropped",
            "Log lines dropped because the reader of stderr did not keep up. No message is lost.",
            "short",
            query(events(of_process("router_log_lines_dropped_total")), "{{instance}}"),
            alerts=["RouterTelemetryDropped"],
        ),
        lines(
            "Listener errors",
            "Exceptions raised while an embedding program's listener, the log or the traces handled an event.",
            "short",
            query(events(of_process("router_listener_errors_total")), "{{instance}}"),
        ),
    ]
