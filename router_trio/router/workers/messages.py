"""Messages between supervisor and worker, over their `Channel`.

The type of a field is all that it may hold, down to plain values. `tests/unit/router/workers/test_messages.py` makes
messages from these types, and sends them through a channel: of the pure package, and of the compiled one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router_trio.router.workers.counts.block import InHandler
from router_trio.router.workers.report import Report
from router_trio.settings import Settings
from router_trio.telemetry.tap.tap import Reading, TapRefused, TapRequest

# --- from the supervisor ---


@dataclass(frozen=True, slots=True)
class Begin:
    """Route with these settings. `suspects` are the messages to be careful with: see `Suspects`."""

    settings: Settings
    suspects: Mapping[InHandler, int]


@dataclass(frozen=True, slots=True)
class SendReport:
    """Answer with `Reported`, with the same number."""

    number: int


@dataclass(frozen=True, slots=True)
class Reload:
    """Change to these settings, and answer with `Reloaded`, with the same number."""

    number: int
    settings: Settings


@dataclass(frozen=True, slots=True)
class ReadTap:
    """Answer with `Tapped`: what there is to read of this tap, which is opened first if it is not open."""

    name: str
    request: TapRequest


@dataclass(frozen=True, slots=True)
class CloseTap:
    """Close this tap."""

    name: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """Be careful with these messages: see `Suspects`."""

    suspects: Mapping[InHandler, int]


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop receiving, settle what is in hand, and end."""


@dataclass(frozen=True, slots=True)
class Cut:
    """End now."""


ToWorker = Begin | SendReport | Reload | ReadTap | CloseTap | Suspect | Drain | Cut


# --- from the worker ---


@dataclass(frozen=True, slots=True)
class Started:
    """The router has started."""


@dataclass(frozen=True, slots=True)
class Reported:
    """The state of the worker, as requested by the `SendReport` with this number."""

    number: int
    report: Report


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The `Reload` with this number is carried out, or refused because of these problems."""

    number: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tapped:
    """The answer to `ReadTap`: the messages of this tap since the last reading, or why it can't be read."""

    name: str
    reading: Reading | TapRefused


@dataclass(frozen=True, slots=True)
class Survived:
    """A suspected message has not ended the process."""

    message: InHandler


@dataclass(frozen=True, slots=True)
class Stopped:
    """The router has stopped, and left this many messages unsettled. What its handlers opened is not closed yet."""

    unsettled: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The final report: the worker has left this many messages unsettled, and exits."""

    unsettled: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The final report: the router has failed, with an error of this kind and with this text, and the worker exits."""

    kind: str
    text: str


ToSupervisor = Started | Reported | Reloaded | Tapped | Survived | Stopped | Ended | Failed
