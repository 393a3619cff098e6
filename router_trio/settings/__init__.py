"""The configuration: read from TOML and the environment, or built in code; checked as a whole before anything runs.

Importing this costs little more than pydantic itself, so that commands which only read a configuration start fast.
"""

from __future__ import annotations

from typing import Any

from router_trio.settings.examples import ExampleMessage, ExampleSettings, ExpectedMessage
from router_trio.settings.positions import PositionSettings
from router_trio.settings.retry import DeadLetterSettings, RetrySettings
from router_trio.settings.routes import (
    BreakerSettings,
    DestinationSettings,
    HeaderSettings,
    LimitSettings,
    RouteSettings,
    SourceSettings,
    Strategy,
)
from router_trio.settings.sections import (
    ConnectionSettings,
    HandlerErrors,
    LogFormat,
    LogLevel,
    OnPendingFull,
    OnReconnectExhausted,
    RouterSettings,
    TelemetrySettings,
)
from router_trio.settings.server_url import ProxyURL, ServerURL
from router_trio.settings.settings import Settings
from router_trio.settings.streams import StreamSettings

__all__ = [
    "BreakerSettings",
    "ConnectionSettings",
    "DeadLetterSettings",
    "DestinationSettings",
    "ExampleMessage",
    "ExampleSettings",
    "ExpectedMessage",
    "HandlerErrors",
    "HeaderSettings",
    "LimitSettings",
    "LogFormat",
    "LogLevel",
    "OnPendingFull",
    "OnReconnectExhausted",
    "PositionSettings",
    "ProxyURL",
    "RetrySettings",
    "RouteSettings",
    "RouterSettings",
    "ServerURL",
    "Settings",
    "SourceSettings",
    "Strategy",
    "StreamSettings",
    "TelemetrySettings",
    "json_schema",
]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file: every key with its description, default and form."""
    # Imported here, because only one command needs it.
    from router_trio.settings.schema import file_schema

    return file_schema()
