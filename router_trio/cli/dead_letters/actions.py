"""Run an action of `router-trio dead-letters` over its own links. The first signal ends it after the current batch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import trio

from router_trio.audit.expectations import size_limits
from router_trio.audit.letter import Letter
from router_trio.cli.command_line import DONE, FAILED, INTERRUPTED, UsageError
from router_trio.cli.configuration import handlers_of
from router_trio.cli.confirmation import confirm
from router_trio.cli.dead_letters import output
from router_trio.cli.dead_letters.redrive import Purge, Redrive
from router_trio.cli.dead_letters.selection import Selection, by_source_sequence, find_stream
from router_trio.cli.dead_letters.storing import Kept, Streams
from router_trio.cli.dead_letters.targets import Origin, Target, ThroughRoute, ToSource
from router_trio.cli.output import show, to_stderr
from router_trio.cli.over_links import over_links
from router_trio.errors import Problem, SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.expressions.expression import Expression
from router_trio.nats.command_link import CommandLink
from router_trio.nats.jetstream.api import StreamInfo
from router_trio.nats.stored import StoredMessages
from router_trio.routing.handlers.runtime import HandlerRuntime
from router_trio.routing.rehearsal import Rehearsal
from router_trio.routing.route_plans import Handler
from router_trio.settings import RouteSettings, Settings
from router_trio.settings.problems import no_route

MOST_REPORTED = 20
"""Largest number of dead letters whose problems are printed; further ones are only counted."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one call of the command."""

    sequences: tuple[int, ...]
    where: Expression | None
    limit: int | None
    dry_run: bool
    yes: bool
    stream: str | None
    hex: bool
    json: bool
    to_source: bool = False
    foreign: bool = False


def run(settings: Settings, name: str, action: str, options: Options) -> int:
    """Run an action on the dead letters of the route `name`, and return the exit code. Blocks. Raises `RouterError`."""
    route = settings.routes[_route(settings, name)]
    handlers: dict[str, Handler] = {}
    runtime = None
    if action == "redrive" and not options.to_source:
        handlers, needed = handlers_of(settings, route)
        runtime = needed if handlers else None
    job = _Job(settings, route, options, handlers, runtime)
    return trio.run(partial(job.run, action))


def _route(settings: Settings, name: str) -> int:
    """Return the index of the route `name`, which stores its dead letters. Raises `RouterError`."""
    for index, route in enumerate(settings.routes):
        if route.name != name:
            continue
        path, letter = f"routes[{index}].dead_letter", route.dead_letter
        if letter is None:
            raise settings.refused(Problem(path, f"missing; route {name!r} has no dead letters"))
        if not letter.jetstream:
            raise settings.refused(
                Problem(f"{path}.jetstream", "is false, so these dead letters are not stored in a stream")
            )
        return index
    raise UsageError(no_route(name, [route.name for route in settings.routes]))


class _Job:
    """A run of the command."""

    def __init__(
        self,
        settings: Settings,
        route: RouteSettings,
        options: Options,
        handlers: dict[str, Handler],
        runtime: HandlerRuntime | None,
    ) -> None:
        assert route.dead_letter is not None
        self._settings = settings
        self._route = route
        self._options = options
        self._handlers = handlers
        self._runtime = runtime
        self._at = route.dead_letter.connection
        self._named = None if options.stream is not None else route.dead_letter.stream
        # If the server maps the subject to a named stream, the stored subjects are not known here.
        self._pattern = ">" if self._named is not None else route.source.mapping(route.dead_letter.subject).pattern
        self._reported: Counter[str] = Counter()
        self._stop = trio.Event()

    async def run(self, action: str) -> int:
        """Run the action until it is done or interrupted by a signal, and return the exit code."""

        def cancel_at(number: int) -> bool:
            self._stop.set()
            return number > 1 or action in ("list", "show")

        async def job(links: Mapping[str, CommandLink]) -> int:
            runtime = self._runtime
            async with nullcontext() if runtime is None else runtime.opened(self._settings.router):
                return await self._do(action, links)

        return await over_links(self._settings, "dead-letters", self._connections(action), job, cancel_at)

    def _connections(self, action: str) -> list[str]:
        """Return the names of the connections that an action needs."""
        if action != "redrive":
            return [self._at]
        source, to_source = self._route.source, self._options.to_source
        names = [] if to_source else [to.connection for to in self._route.to]
        if to_source or source.kind.is_stored:
            names.append(source.connection)
        return list(dict.fromkeys([self._at, *names]))

    async def _do(self, action: str, links: Mapping[str, CommandLink]) -> int:
        here = links[self._at]
        stream = self._named or await find_stream(here.link, self._pattern, self._options.stream)
        stored = here.stored(stream)
        if action == "show":
            return await self._show(stored)
        info = await stored.info()
        if action == "list":
            return await self._list(stored, info)
        if info.deny_delete and not self._options.dry_run:
            detail = f"stream {stored.stream!r} does not allow deletes (deny_delete); nothing was sent or deleted"
            raise SourceError(detail, reason=reasons.DENY_DELETE)
        if action == "redrive":
            streams = Streams(links)
            target = self._target(links, streams, stream)
            if target.warning is not None:
                to_stderr(f"router-trio: --to-source: {target.warning}")
            return await self._change(stored, info, Redrive(stored, target, streams, self._report), "redriven")
        if not self._options.dry_run and not self._options.yes:
            await self._confirm(stored.stream)
        return await self._change(stored, info, Purge(stored, self._report), "purged")

    def _target(self, links: Mapping[str, CommandLink], streams: Streams, stream: str) -> Target:
        source = self._route.source
        reserved = self._settings.connections[source.connection].reserved
        origin = Origin(self._route, reserved, streams, foreign=self._options.foreign)
        if self._options.to_source:
            return ToSource(origin, links[source.connection].link, streams, stream)
        limits = size_limits(links)
        return ThroughRoute(origin, Rehearsal(self._settings, self._route, self._handlers, limits), streams, stream)

    # --- reading ---

    async def _show(self, stored: StoredMessages) -> int:
        (sequence,) = self._options.sequences
        message = await stored.get(sequence)
        if message is None:
            detail = f"stream {stored.stream!r} has no message {sequence}; {by_source_sequence(sequence)}"
            raise SourceError(detail, reason=reasons.NOT_FOUND)
        if self._options.json:
            show(*output.as_json(message).split("\n"))
        else:
            show(*output.lines(message, as_hex=self._options.hex))
        return DONE

    async def _list(self, stored: StoredMessages, info: StreamInfo) -> int:
        selection = self._selection(stored, info)
        if not self._options.json:
            show(output.HEADING)
        async with aclosing(selection.batches()) as batches:
            async for batch in batches:
                for letter in batch:
                    show(output.line(letter) if self._options.json else output.row(letter))
        return self._end(selection.failed)

    def _selection(self, stored: StoredMessages, info: StreamInfo) -> Selection:
        options = self._options
        return Selection(
            stored,
            info,
            self._route.name,
            self._pattern,
            options.sequences,
            options.where,
            options.limit,
            self._report,
        )

    # --- changing ---

    async def _change(self, stored: StoredMessages, info: StreamInfo, work: Purge, done: str) -> int:
        selection = self._selection(stored, info)
        previewed = 0
        with _progress(selection, work, done) as shown:
            async with aclosing(selection.batches()) as batches:
                async for batch in batches:
                    if self._options.dry_run:
                        previewed += await self._dry_run(batch, work)
                    else:
                        await work.apply(batch)
                    shown()
                    if self._stop.is_set():
                        break
        failed = work.failed + selection.failed
        count = previewed if self._options.dry_run else work.done
        summary = f"{count} {'would be ' if self._options.dry_run else ''}{done}, {failed} failed"
        if isinstance(work, Redrive):
            summary += f"; {work.already_stored} were already stored" if work.already_stored else ""
            summary += f"; {work.filtered} of the failed ones are filtered out by the route" if work.filtered else ""
        show(summary)
        return INTERRUPTED if self._stop.is_set() else self._end(failed)

    async def _dry_run(self, batch: Sequence[Letter], work: Purge) -> int:
        """Print what would be done, and return the number of dead letters that would be processed."""
        count = 0
        for letter in batch:
            try:
                description = await work.preview(letter)
            except (Kept, SourceError) as error:
                work.keep(letter, str(error))
            else:
                count += 1
                show(f"{letter.sequence} would {description}")
        return count

    async def _confirm(self, stream: str) -> None:
        """Ask for confirmation. Raises `UsageError` as `confirm` does."""
        options = self._options
        some = options.sequences or options.where or options.limit
        which = "the selected" if some else "all"
        await confirm(
            f"Delete {which} dead letters of route {excerpt(self._route.name)} in stream {stream}?",
            without_terminal="purge deletes dead letters permanently; add --yes, or try --dry-run first",
            otherwise="nothing was deleted",
        )

    # --- reports ---

    def _report(self, sequence: int, why: str) -> None:
        self._reported["all"] += 1
        if self._reported["all"] <= MOST_REPORTED:
            to_stderr(f"router-trio: dead letter {sequence}: {excerpt(why, 500)}")

    def _end(self, failed: int) -> int:
        if self._reported["all"] > MOST_REPORTED:
            to_stderr(f"router-trio: and {self._reported['all'] - MOST_REPORTED} more")
        return FAILED if failed else DONE


@contextmanager
def _progress(selection: Selection, work: Purge, done: str) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal; yield a function that updates it."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=selection.total)

        def show() -> None:
            counts = f"{work.done} {done}, {work.failed} failed"
            progress.update(task, completed=selection.read, description=counts)

        yield show
