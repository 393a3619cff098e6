"""`[routes.limit]` and `[routes.to.breaker]`: the rate limit of a route and the circuit breakers of destinations."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from router_trio.settings.sections import Section
from router_trio.settings.units import MOST_MESSAGES, DurationForm, Rate, RateForm, format_duration, format_rate

Expression = Annotated[str, Field(min_length=1)]
LimitRate = Annotated[Rate, RateForm()]
BreakerPause = Annotated[float, DurationForm(minimum=0.1)]


class LimitSettings(Section, init=False):
    """`[routes.limit]`: the rate limit of a route, at most burst + rate x t messages in any time t.

    Further messages wait: in their stream or, from a subject, in the route's intake queue.
    """

    rate: LimitRate = Field(
        description="Maximum number of messages a second, minute or hour.", examples=["500/s", "30000/m"]
    )
    burst: int | None = Field(
        None,
        ge=1,
        le=MOST_MESSAGES,
        description="Number of messages that may be sent at once; by default those of one second, at least 1.",
    )
    per: Expression | None = Field(
        None,
        description="Expression: each value has a limit of its own. Without it there is one limit for all messages.",
        examples=['headers["tenant"]'],
    )

    @property
    def most_at_once(self) -> int:
        """`burst`, or its default."""
        return max(1, self.rate.messages // self.rate.seconds) if self.burst is None else self.burst

    @property
    def sentence(self) -> str:
        """The limit as text."""
        each = "" if self.per is None else f", for each {self.per}"
        return f"{format_rate(self.rate)}, at most {self.most_at_once} at once{each}"


class BreakerSettings(Section, init=False):
    """`[routes.to.breaker]`: when a route stops sending to a destination that fails repeatedly.

    Meanwhile its messages wait, or with the strategy fallback the next destination is used.
    """

    failures: int = Field(5, ge=1, description="Failures in a row of this destination that open the breaker.")
    pause: BreakerPause = Field(
        "10s",
        validate_default=True,
        description="Time until one message probes the destination; if it is accepted, the breaker closes.",
    )

    @property
    def sentence(self) -> str:
        """The breaker as text."""
        failures = "a failure opens" if self.failures == 1 else f"{self.failures} failures in a row open"
        return f"{failures} it, then a message tries every {format_duration(self.pause)}"
