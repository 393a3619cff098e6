"""`[[routes]]`: messages from one source to one or more destinations, with the processing between."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from router_trio.errors import reasons
from router_trio.settings.retry import DeadLetterSettings, RetrySettings
from router_trio.settings.routes.destination import DestinationSettings
from router_trio.settings.routes.flow import Expression, LimitSettings
from router_trio.settings.routes.source import SourceSettings
from router_trio.settings.schema_file import SchemaFile
from router_trio.settings.sections import HandlerLoop, Section

Strategy = Literal["all", "first_match", "weighted", "sticky", "fallback"]

MAX_CONCURRENCY = 1_000
"""Maximum number of concurrent handler calls of one route: each is a task, or a thread."""


class RouteSettings(Section, init=False):
    """`[[routes]]`: messages from one source to one or more destinations."""

    name: str = Field(min_length=1, description="Name of the route, unique; a label in metrics.")
    source: SourceSettings = Field(
        validation_alias="from", serialization_alias="from", description="Source of the messages."
    )
    when: Expression | None = Field(
        None,
        description="Expression for the messages that this route takes; absent: all. The others are filtered.",
        examples=['headers["region"] == "eu" && body.total > 100'],
    )
    key: Expression | None = Field(
        None,
        description="Expression for the key of a message. Messages with the same key keep their order and are "
        "handled one at a time, and the strategy sticky sends them to one destination. By default the subject.",
        examples=["body.customer.id"],
    )
    schema_file: SchemaFile | None = Field(
        None,
        validation_alias="schema",
        serialization_alias="schema",
        description="File with a JSON Schema (draft 2020-12 or 7) that the body of each message must fit. Others fail "
        "with the reason schema and are given up at once. Read again by a reload.",
        examples=["order.schema.json"],
    )
    concurrency: int = Field(
        1,
        ge=1,
        le=MAX_CONCURRENCY,
        description="Maximum number of concurrent handler calls. Messages with the same `key` are never handled "
        "concurrently.",
        examples=[32],
    )
    thread: bool = Field(
        False,
        description="Call the handler, a plain def, in a thread, so that it may block. `concurrency` is the number "
        "of threads.",
    )
    loop: HandlerLoop | None = Field(
        None,
        description="Event loop on which the handler runs, if it is async. By default that of [router].",
        examples=["asyncio"],
    )
    strategy: Strategy = Field(
        "all",
        description="Which destinations get a message: all of them; the first whose `when` holds; one in turn, by "
        "weight; one by the value of `key`; or the first that is connected and takes it.",
    )
    hop_limit: int | None = Field(
        None,
        ge=0,
        le=1_000,
        description="Maximum number of routes that a message may pass, counted in its header Router-Hops. A message "
        "beyond it fails with the reason loop. Absent: 16. 0: not counted. A number declares that the route may be "
        "in a circle.",
        examples=[5],
    )
    retry: RetrySettings | None = Field(
        None,
        description="When a failed message is retried. By default, messages from a stream are retried without end, "
        "messages from a subject never.",
    )
    dead_letter: DeadLetterSettings | None = Field(None, description="Where messages that are given up are stored.")
    limit: LimitSettings | None = Field(None, description="Rate limit of the route; absent: none.")
    to: list[DestinationSettings] = Field(
        default=[],
        description="Destinations of the messages, chosen by `strategy`. May be left out only with `respond`.",
    )
    respond: bool = Field(
        False,
        description="Also send what the handler returns to the reply subject of the message, which is then not "
        "carried to the destinations. Only for a source that is a subject.",
    )
    reply_to: list[str] = Field(
        default=[],
        description="Patterns of the reply subjects that `respond` answers to besides inboxes (_INBOX.>). Those that "
        "begin with $, and inboxes of routers, are never answered.",
        examples=[["answers.orders.>"]],
    )
    handler: str | None = Field(
        None,
        description="Function to call with each message before it is sent, as package.module:function. Imported from "
        "installed packages, then from the working directory.",
        examples=["orders.handlers:enrich"],
    )

    def goes_by_key(self, handled: bool) -> bool:
        """Return True if messages are routed by key, one at a time for each key. `handled`: the route has a handler."""
        if self.source.kind.is_bucket and any(to.kind_for(self.source.kind).is_bucket for to in self.to):
            return True  # see routing/newest.py
        if handled:
            return self.key is not None or self.concurrency > 1 or bool(self.source.kind.kept_order(self.source))
        if self.source.kind.redelivers:
            return self.key is not None
        # Otherwise messages wait only for retries, or for the limit of a value.
        kept = self.retry is not None or self.dead_letter is not None
        return self.key is not None and (kept or (self.limit is not None and self.limit.per is not None))

    @property
    def holds_failed_messages(self) -> bool:
        """True if failed messages are kept: their stream has them, or the settings say what becomes of them."""
        return self.source.kind.redelivers or self.retry is not None or self.dead_letter is not None

    @property
    def gives_up(self) -> bool:
        """True if a message may fail several times before it is lost or given up: that is counted as given up, once."""
        return self.holds_failed_messages or len(self.to) > 1

    @property
    def retries_without_end(self) -> bool:
        """True if the route gives up no message that fails, unless its handler raises `Reject`."""
        retry = self.retry_or_default
        return retry.attempts == 0 and not retry.never and self.schema_file is None

    @property
    def fails_without_stream(self) -> bool:
        """True if a message fails while no stream takes its copy, and does not wait for one."""
        return self.strategy == "fallback" or reasons.NO_RESPONDERS in self.retry_or_default.never

    @property
    def retry_or_default(self) -> RetrySettings:
        """`retry`, or its default for this source."""
        return self.retry or RetrySettings(attempts=self.source.kind.default_attempts)
