"""The configuration of a running router: which one is in force, and whether the last reload was accepted."""

from __future__ import annotations

from collections.abc import Sequence

from router_trio.settings.settings import Settings

RELOAD_OUTCOMES = ("accepted", "refused")


class ConfigState:
    """Track the configuration in force and the result of the last reload. Times are Unix times.

    Written by the code that reloads, read by metrics and `/status` (`telemetry.view.ConfigView`). A reload is accepted
    when its configuration is valid, but takes effect only after the reload before it: these are two separate facts.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        self.settings: Settings = settings
        self.loaded_at: float = now
        self.last_error: str | None = None
        """The problems of the last reload, one a line; None if it was accepted, or if there was none."""
        self.reloads: dict[str, int] = dict.fromkeys(RELOAD_OUTCOMES, 0)
        """Requested reloads, by outcome. The start is not one of them."""

    @property
    def hash(self) -> str:
        """Return the hash of the configuration in force: see `Settings.content_hash`."""
        return self.settings.content_hash

    @property
    def hashes(self) -> Sequence[str]:
        """Return the hashes of all configurations in force: one."""
        return (self.hash,)

    @property
    def files(self) -> Sequence[str]:
        """Return the files of the configuration in force: see `Settings.files`."""
        return self.settings.files

    def accept(self) -> None:
        """Record that the last reload was accepted."""
        self.last_error = None
        self.reloads["accepted"] += 1

    def refuse(self, problems: Sequence[str]) -> None:
        """Record that the last reload was refused; the configuration in force stays."""
        self.last_error = "\n".join(problems)
        self.reloads["refused"] += 1

    def put_in_force(self, settings: Settings, now: float) -> None:
        """Record that a configuration takes effect now."""
        self.settings, self.loaded_at = settings, now
