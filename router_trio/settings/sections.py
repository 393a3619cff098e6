"""The sections of a configuration: their keys, types, defaults and descriptions. Those of routes are in `routes`.

Sections are frozen and validate the form of each value. Checks of several values against each other (does the
connection exist, does the mapping compile) are in `checks`, and run when a complete `Settings` is built. All durations
are seconds inside the program, all sizes bytes. Passwords and tokens are `SecretStr`.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from router_trio.errors import ConfigurationError
from router_trio.settings.host_names import canonical_host, is_loopback
from router_trio.settings.problems import problems_from
from router_trio.settings.server_url import ProxyURL, ServerURL
from router_trio.settings.units import Duration, DurationForm, SizeForm
from router_trio.subjects.patterns import INBOX_PREFIX

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]
HandlerErrors = Literal["type", "full"]
OnReconnectExhausted = Literal["keep_trying", "stop"]
HandlerLoop = Literal["trio", "asyncio"]
OnPendingFull = Literal["drop_oldest", "reject", "block"]


# The smallest values that work: smaller ones keep the machine busy with nothing else, or can never succeed.
ConnectTimeout = Annotated[float, DurationForm(minimum=0.05)]
LivenessInterval = Annotated[float, DurationForm(minimum=0.1)]
ReconnectDelay = Annotated[float, DurationForm(minimum=0.01)]
MaxReconnectDelay = Annotated[float, DurationForm(minimum=0.05)]
PendingMaxAge = Annotated[float, DurationForm(minimum=0.01, or_zero=True)]
PendingBytes = Annotated[int, SizeForm(minimum=64)]

MOST_WORKERS = 256
"""Maximum number of processes under one supervisor. More processes than processors gain nothing."""

MAX_INBOX_PREFIX = 64
"""Maximum length in characters. The prefix is part of every JetStream publish."""


_GIVEN: dict[frozenset[str], set[str]] = {}
"""The sets of given keys that sections share: see `Section.compact`."""


class Section(BaseModel):
    """The base of all sections: frozen, unknown keys refused, values never shown in errors.

    Built in code, a section raises `ConfigurationError` with every problem. It accepts the key of the file and the name
    of the attribute (`from` and `source`), and values as text in the form of a file (`"30s"`).
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        hide_input_in_errors=True,
        # Built on first use: a command that needs only `Settings` then does not pay for each section.
        defer_build=True,
    )

    def __init_subclass__(cls, *, init: bool = False, **options: Any) -> None:
        # `init=False` tells type checkers not to invent a constructor from the fields: it would refuse "30s" for a
        # float and a plain dict for a section, which validation is there to accept.
        super().__init_subclass__(**options)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Let CPython know the attributes of the class before it has instances, for `compact`.

        Instances that pydantic makes get all attributes at once, and leave no room for names in the shared table.
        """
        example = cls.__new__(cls)
        for name in cls.model_fields:
            object.__setattr__(example, name, None)

    def compact(self, **changes: Any) -> Self:
        """Return a copy with these changes, unchecked, that takes a third of the memory of `model_copy`.

        A configuration may have thousands of sections of a kind. Attributes that are set one by one share one table of
        names; and equal sets of the keys that were given are one set, which no frozen section changes.
        """
        copy = self.__new__(type(self))
        for name, value in (vars(self) | changes).items():
            object.__setattr__(copy, name, value)
        given = self.__pydantic_fields_set__ | changes.keys()
        object.__setattr__(copy, "__pydantic_fields_set__", _GIVEN.setdefault(frozenset(given), given))
        object.__setattr__(copy, "__pydantic_extra__", None)
        object.__setattr__(copy, "__pydantic_private__", self.__pydantic_private__)
        return copy

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(problems_from(error, type(self)), type(self).__name__) from None

    # Without this pydantic would call the constructor above for nested sections too, and stop at their first error.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def _checked_listen(text: str) -> str:
    _split_listen(text)
    return text


def _split_listen(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host or (":" in host) != bracketed or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as '127.0.0.1:9001' or '[::1]:9001'; '' switches HTTP off")
    return host, int(port)


def _checked_host(text: str) -> str:
    host = canonical_host(text)
    if host is None:
        raise ValueError("must be the name of a host alone, such as 'router.example.com': no scheme, port, path or '*'")
    return host


_NOT_AN_ENDPOINT = "must be an HTTP URL, such as 'http://localhost:4318'; '' switches the export off"


def _checked_endpoint(text: str) -> str:
    if not text:
        return text
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ValueError(_NOT_AN_ENDPOINT) from None
    if not usable:
        raise ValueError(_NOT_AN_ENDPOINT)
    if "@" in parts.netloc:
        raise ValueError("must not hold credentials; put them into OTEL_EXPORTER_OTLP_HEADERS")
    return text


_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
_OWN_HEADERS = re.compile(
    r"(?i)host|connection|upgrade|content-length|transfer-encoding|nats-no-masking|sec-websocket-.*|proxy-.*"
)


def _checked_headers(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    if len({name.lower() for name in headers}) < len(headers):
        raise ValueError("has one header twice, since their case does not matter; remove one")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError("has a name that is not valid for an HTTP header: it has letters, digits and '-'")
        if _OWN_HEADERS.fullmatch(name):
            raise ValueError(f"{name} is set by the router itself; remove it")
        if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
            raise ValueError(f"the value of {name} must be printable ASCII characters, without spaces at the ends")
    return headers


class RouterSettings(Section, init=False):
    """`[router]`: the process as a whole."""

    name: str = Field("router-trio", min_length=1, description="Name of this router; service.name in traces.")
    shutdown_timeout: Duration = Field(
        "10s",
        validate_default=True,
        description="Maximum time to drain at a shutdown. Operations that are still unsettled are dropped and counted.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=MOST_WORKERS,
        description="Number of processes of `router-trio run`, each a whole router, which share the messages; a core "
        "route then needs a queue. Ignored by a router that a program opens.",
    )
    loop: HandlerLoop = Field(
        "trio",
        description="Event loop on which async handlers and the lifespan run; a route may name another one for its "
        "handler. A change needs a restart.",
    )
    lifespan: str | None = Field(
        None,
        description="Function that returns an async context manager, as package.module:function. It is entered before "
        "the first message and left after the last, in each process. Handlers with two parameters get the value that "
        "it yields. A change needs a restart.",
        examples=["shop.app:resources"],
    )
    service: bool = Field(
        True,
        description="Answer `nats service` on every connection, as the service router-trio with one endpoint a route, "
        "to anyone who may publish to $SRV.> there. A change needs a restart.",
    )


class TelemetrySettings(Section, init=False):
    """`[telemetry]`: HTTP server, logs and traces."""

    listen: Annotated[str, AfterValidator(_checked_listen)] = Field(
        "127.0.0.1:9001",
        description="HOST:PORT of /metrics, /healthz, /readyz and /status. Empty: no HTTP.",
        examples=["127.0.0.1:9001", "[::1]:9001", ""],
    )
    allowed_hosts: list[Annotated[str, AfterValidator(_checked_host)]] = Field(
        default=[],
        description="Host names, besides IP addresses and names of the loopback, that /metrics, /status and the status "
        "page answer to. /healthz and /readyz answer to any.",
        examples=[["router.example.com"]],
    )
    route_metrics: list[str] = Field(
        default=["*"],
        description="Routes that /metrics has series of: names, or patterns with * and ?. Alerts do not see other "
        "routes.",
        examples=[["orders", "eu-*"]],
    )
    log_level: LogLevel = Field("info", description="Lowest level that is logged.")
    log_format: LogFormat = Field(
        "auto",
        description="One JSON object per line, or text for a console; auto: console if stderr is a terminal.",
    )
    handler_errors: HandlerErrors = Field(
        "type",
        description="Show only the type of an error that a handler raises in logs and spans, or its full text too, "
        "which may quote the payload. Texts of Reject and Retry are always shown.",
    )
    otlp_endpoint: Annotated[str, AfterValidator(_checked_endpoint)] = Field(
        "",
        description="Base URL of an OTLP/HTTP collector. Empty: OTEL_EXPORTER_OTLP_ENDPOINT, or no traces.",
        examples=["http://localhost:4318"],
    )
    trace_sample_ratio: float = Field(
        0.01, ge=0, le=1, allow_inf_nan=False, description="Share of new traces that are sampled, from 0 to 1."
    )
    max_traces_per_second: int = Field(
        100,
        ge=1,
        description="Maximum number of new traces a second, counted over ten seconds, with a trace_sample_ratio "
        "below 1; also the maximum of traces that are followed because their sender samples them.",
    )
    tap: bool = Field(
        False,
        description="Let `router-trio tap` show messages of routes, with their subjects and headers, to everybody who "
        "can reach the HTTP server. A reload applies it at once.",
    )
    tap_payloads: bool = Field(
        False,
        description="Let `router-trio tap` show payloads as well, and select messages by them. A reload applies it at "
        "once.",
    )

    def shows_metrics_of(self, route: str) -> bool:
        """Return True if `/metrics` has series of the route of this name."""
        return any(fnmatchcase(route, pattern) for pattern in self.route_metrics)

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Host and port to listen on; None when HTTP is switched off."""
        return _split_listen(self.listen)

    @property
    def listens_beyond_loopback(self) -> bool:
        """True if other machines may reach the HTTP server."""
        listen = self.listen_address
        return listen is not None and not is_loopback(listen[0].lower().removesuffix("."))


class ConnectionSettings(Section, init=False):
    """`[connections.NAME]`: one connection to a NATS server or cluster."""

    servers: list[ServerURL] = Field(
        default=[],
        description="Servers to try: nats://, tls:// or host:port; or all of them ws://, or all wss://, for WebSocket, "
        "with a path if needed. One tls://, or any tls_ key, requires TLS for all of them. May be empty only with `run "
        "--embedded-nats`.",
        examples=[["nats://127.0.0.1:4222"], ["wss://nats.example.com/nats"]],
    )
    proxy: ProxyURL | None = Field(
        None,
        description="HTTP proxy through which every server is reached, by CONNECT: http://proxy:3128, with "
        "user:password@ if it requires a login. Variables such as HTTPS_PROXY have no effect.",
        examples=["http://user:password@proxy:3128"],
    )
    websocket_headers: Annotated[dict[str, SecretStr], AfterValidator(_checked_headers)] = Field(
        default={},
        description="HTTP headers of the request that opens a WebSocket, for example for a gateway. Their values are "
        "never shown.",
        examples=[{"Authorization": "Bearer token"}],
    )
    credentials_file: Path | None = Field(None, description="File with the JWT and the NKey seed of a user (.creds).")
    user: str | None = Field(None, min_length=1, description="User name; needs a password.")
    password: SecretStr | None = Field(None, description="Password of the user.")
    token: SecretStr | None = Field(None, min_length=1, description="Authentication token.")
    nkey_seed_file: Path | None = Field(None, description="File with the NKey seed of a user.")
    tls_ca_file: Path | None = Field(
        None, description="Certificates (PEM) of the authorities to trust, instead of the system's."
    )
    tls_cert_file: Path | None = Field(None, description="Certificate (PEM) that this client presents.")
    tls_key_file: Path | None = Field(None, description="Private key (PEM) of tls_cert_file.")
    tls_hostname: str | None = Field(
        None, min_length=1, description="Name that the server's certificate must have, instead of the URL's host."
    )
    tls_handshake_first: bool = Field(
        False, description="Start TLS before the server sends INFO; the server must have handshake_first."
    )
    inbox_prefix: str = Field(
        INBOX_PREFIX,
        min_length=1,
        max_length=MAX_INBOX_PREFIX,
        description="Prefix of the subjects that receive answers. This user must be allowed to subscribe below it, and "
        "no other user.",
        examples=["_INBOX_router"],
    )
    domain: str | None = Field(
        None,
        min_length=1,
        description="JetStream domain of the streams and consumers, for example that of a hub behind a leaf node.",
        examples=["hub"],
    )
    api_prefix: str | None = Field(
        None,
        min_length=1,
        description="Prefix of the subjects of the JetStream API, instead of $JS.API: for an API that is imported "
        "from another account.",
        examples=["JS.orders.API"],
    )
    ignore_announced: bool = Field(
        False,
        description="Connect to the configured servers only, never to those that a server announces: an announced one "
        "gets this connection's credentials.",
    )
    connect_timeout: ConnectTimeout = Field(
        "2s",
        validate_default=True,
        description="Timeout of an attempt to connect, including its handshake; 50ms or more.",
    )
    liveness_interval: LivenessInterval = Field(
        "5s",
        validate_default=True,
        description="Interval between fences. Two missed ones mean that the link is lost. 100ms or more.",
    )
    reconnect_attempts: int = Field(10, ge=1, description="Attempts of one round of reconnecting.")
    reconnect_delay: ReconnectDelay = Field(
        "1s", validate_default=True, description="Base of the exponential backoff with full jitter; 10ms or more."
    )
    max_reconnect_delay: MaxReconnectDelay = Field(
        "30s", validate_default=True, description="Maximum delay between two attempts; 50ms or more."
    )
    on_reconnect_exhausted: OnReconnectExhausted = Field(
        "keep_trying",
        description="After a round without success: keep trying at max_reconnect_delay, or stop the router.",
    )
    fail_open: bool = Field(False, description="While not connected, discard publishes instead of queueing them.")
    max_pending_operations: int = Field(1000, ge=1, description="Maximum number of operations that wait to be sent.")
    max_pending_bytes: PendingBytes = Field(
        "64MiB", validate_default=True, description="Maximum size of the operations that wait to be sent."
    )
    on_pending_full: OnPendingFull = Field(
        "drop_oldest", description="When the queue is full: drop the oldest, reject the new one, or wait for room."
    )
    pending_max_age: PendingMaxAge = Field(
        "0s", validate_default=True, description="Age at which a waiting operation is dropped, 10ms or more; 0s: never."
    )

    @property
    def api(self) -> str:
        """The prefix of the subjects of the JetStream API."""
        return self.api_prefix or (f"$JS.{self.domain}.API" if self.domain else "$JS.API")

    @property
    def reserved(self) -> tuple[str, ...]:
        """Subject prefixes, besides those of NATS itself, that carry requests and answers."""
        return (self.inbox_prefix,) if self.api_prefix is None else (self.inbox_prefix, self.api_prefix)

    @property
    def tls_demanded_by(self) -> str | None:
        """The setting that requires TLS regardless of the server; None: the server decides.

        It applies to every server of the connection, announced ones included. Otherwise an attacker who can redirect
        the router to a server without TLS would get the credentials.
        """
        demanding = next((server for server in self.servers if server.tls), None)
        if demanding is not None:
            return f"{demanding.scheme}:// in servers"
        for key in ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_hostname", "tls_handshake_first"):
            if getattr(self, key):
                return key
        return None
