"""Read the taps of all workers together: see `telemetry.http.tap_pages.TapSource`."""

from __future__ import annotations

import trio

from router_trio.router.workers.supervisor import ANSWERS_WITHIN, Supervisor
from router_trio.telemetry.tap.tap import Reading, TapRefused, TapRequest, check_allowed
from router_trio.telemetry.tap.taps import check_request

_CLOSED = 404


class WorkersTaps:
    """The `TapSource` of a supervisor. A worker opens its part of a tap when it is first read there."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._open: set[str] = set()

    def check(self, request: TapRequest) -> None:
        check_allowed(request, self._supervisor.config.settings.telemetry)

    async def open(self, name: str, request: TapRequest) -> None:
        settings = self._supervisor.config.settings.telemetry
        # In a thread, so that the workers are served meanwhile.
        await trio.to_thread.run_sync(check_request, request, settings, self._supervisor.sum())
        self._open.add(name)
        await self._ask(name, request)

    async def read(self, name: str, request: TapRequest) -> Reading:
        await self._ask(name, request)
        found = Reading()
        for slot in self._supervisor.slots:
            of_worker = Reading()
            for reading in slot.take_tapped(name):
                if isinstance(reading, Reading):
                    of_worker.add(reading)
                elif reading.code != _CLOSED:
                    raise reading
            found.include(of_worker)
        # The lines of one worker are in the order of their times, which is the first field of each.
        found.lines.sort()
        return found

    def close(self, name: str) -> None:
        self._open.discard(name)
        for slot in self._supervisor.slots:
            slot.close_tap(name)

    async def _ask(self, name: str, request: TapRequest) -> None:
        """Ask each worker for what there is to read. Returns when all have answered, or after `ANSWERS_WITHIN`."""
        if name not in self._open:
            raise TapRefused(_CLOSED, "the tap is closed")
        asked = [slot for slot in self._supervisor.slots if not slot.is_silent]
        for slot in asked:
            slot.request_tap(name, request)
        with trio.move_on_after(ANSWERS_WITHIN):
            for slot in asked:
                await slot.wait_tapped(name)
