"""Run `router-trio dead-letters` over links of its own. A first signal ends it behind what is under way."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial

import trio

from router_trio.cli.command_line import DONE, FAILED, INTERRUPTED, UsageError
from router_trio.cli.dead_letters import output
from router_trio.cli.dead_letters.letter import Letter
from router_trio.cli.dead_letters.links import CommandLink, open_links
from router_trio.cli.dead_letters.redrive import Purge, Redrive
from router_trio.cli.dead_letters.selection import Selection, by_source_sequence, find_stream
from router_trio.cli.dead_letters.storing import Kept, Streams
from router_trio.cli.dead_letters.targets import Origin, ThroughRoute, ToSource, Way
from router_trio.cli.signals import run_with_signals
from router_trio.errors import ConfigurationError, Problem, SourceError, reasons
from router_trio.errors.quotes import excerpt
from router_trio.expressions.expression import Expression
from router_trio.nats.jetstream.api import StreamInfo
from router_trio.nats.stored import StoredMessages
from router_trio.routing.rehearsal import Limits, Rehearsal
from router_trio.routing.route_plans import Handler
from router_trio.settings import RouteSettings, Settings
from router_trio.settings.problems import suggestion

MOST_REPORTED = 20
"""Dead letters of which it is printed what is wrong with them; of the others it is counted."""


@dataclass(frozen=True, slots=True)
class Options:
    """The request of one call of the command."""

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
    """Do it, and return the exit code. Blocks until it is done. Raises `RouterError`."""
    route, handlers = _route(settings, name), {}
    if action == "redrive" and not options.to_source:
        from router_trio.cli.configuration import search_working_directory
        from router_trio.routing.handlers import load_handlers

        gc.enable()  # see `__main__`
        search_working_directory()
        handlers = load_handlers([route], {})
    job = _Job(settings, route, options, handlers)
    return trio.run(partial(job.run, action))


def _route(settings: Settings, name: str) -> RouteSettings:
    for index, route in enumerate(settings.routes):
        if route.name != name:
            continue
        path, letter = f"routes[{index}].dead_letter", route.dead_letter
        if letter is None:
            raise ConfigurationError([Problem(path, f"missing; the route {name!r} has no dead letters")])
        if not letter.jetstream:
            raise ConfigurationError([Problem(f"{path}.jetstream", "is false: no stream keeps these dead letters")])
        return route
    known = [route.name for route in settings.routes]
    raise UsageError(f"there is no route {excerpt(name)!r}; {suggestion(name, known)}")


class _Job:
    """A call of the command."""

    def __init__(
        self, settings: Settings, route: RouteSettings, options: Options, handlers: dict[str, Handler]
    ) -> None:
        assert route.dead_letter is not None
        self._settings = settings
        self._route = route
        self._options = options
        self._handlers = handlers
        self._at = route.dead_letter.connection
        self._named = None if options.stream is not None else route.dead_letter.stream
        # Under which subjects a stream stores what the server maps to it is not known here.
        self._pattern = ">" if self._named is not None else route.source.mapping(route.dead_letter.subject).pattern
        self._reported: Counter[str] = Counter()
        self._stop = trio.Event()

    async def run(self, action: str) -> int:
        """Do it, until it is done or a signal comes."""
        scope = trio.CancelScope()
        code = INTERRUPTED

        def on_signal(number: int) -> None:
            self._stop.set()
            if number > 1 or action in ("list", "show"):
                scope.cancel()

        failure: OSError | UsageError | None = None

        async def work() -> None:
            nonlocal code, failure
            try:
                with scope:
                    async with open_links(self._settings, self._connections(action)) as links:
                        code = await self._do(action, links)
            except (OSError, UsageError) as error:
                failure = error  # out of the nurseries, which would wrap it

        await run_with_signals(work, on_signal)
        if failure is not None:
            raise failure
        return code

    def _connections(self, action: str) -> list[str]:
        """Return the names of the connections that an action needs."""
        if action != "redrive":
            return [self._at]
        source, to_source = self._route.source, self._options.to_source
        names = [] if to_source else [to.connection for to in self._route.to]
        if to_source or source.kind.is_stored:
            names.append(source.connection)
        return list(dict.fromkeys([self._at, *names]))

    async def _do(self, action: str, links: dict[str, CommandLink]) -> int:
        here = links[self._at]
        stream = self._named or await find_stream(here.link, self._pattern, self._options.stream)
        stored = StoredMessages(stream, here.requests, here.link.api.prefix)
        if action == "show":
            return await self._show(stored)
        info = await stored.info()
        if action == "list":
            return await self._list(stored, info)
        if info.deny_delete and not self._options.dry_run:
            told = (
                f"stream {stored.stream!r} denies the deletion of messages (deny_delete): nothing was sent or deleted"
            )
            raise SourceError(told, reason=reasons.DENY_DELETE)
        if action == "redrive":
            streams = Streams(links)
            way = self._way(links, streams, stream)
            if way.warning is not None:
                print(f"router-trio: --to-source: {way.warning}", file=sys.stderr)
            return await self._change(stored, info, Redrive(stored, way, streams, self._report), "redriven")
        if not self._options.dry_run and not self._options.yes:
            await self._ask(stored.stream)
        return await self._change(stored, info, Purge(stored, self._report), "purged")

    def _way(self, links: dict[str, CommandLink], streams: Streams, stream: str) -> Way:
        source = self._route.source
        reserved = self._settings.connections[source.connection].reserved
        origin = Origin(self._route, reserved, streams, foreign=self._options.foreign)
        if self._options.to_source:
            return ToSource(origin, links[source.connection].link, streams, stream)
        limits = {name: Limits(one.link.max_payload, one.link.max_control_line) for name, one in links.items()}
        return ThroughRoute(origin, Rehearsal(self._settings, self._route, self._handlers, limits), streams, stream)

    # --- reading ---

    async def _show(self, stored: StoredMessages) -> int:
        (sequence,) = self._options.sequences
        message = await stored.get(sequence)
        if message is None:
            told = f"stream {stored.stream!r} has no message {sequence}; {by_source_sequence(sequence)}"
            raise SourceError(told, reason=reasons.NOT_FOUND)
        if self._options.json:
            print(output.as_json(message))
        else:
            print("\n".join(output.lines(message, as_hex=self._options.hex)))
        return DONE

    async def _list(self, stored: StoredMessages, info: StreamInfo) -> int:
        selection = self._selection(stored, info)
        if not self._options.json:
            print(output.HEADING)
        async with aclosing(selection.batches()) as batches:
            async for batch in batches:
                for letter in batch:
                    print(output.line(letter) if self._options.json else output.row(letter))
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
        would_be = 0
        with _progress(selection, work, done) as shown:
            async with aclosing(selection.batches()) as batches:
                async for batch in batches:
                    if self._options.dry_run:
                        would_be += await self._dry_run(batch, work)
                    else:
                        await work.apply(batch)
                    shown()
                    if self._stop.is_set():
                        break
        failed = work.failed + selection.failed
        count = would_be if self._options.dry_run else work.done
        told = f"{count} {'would be ' if self._options.dry_run else ''}{done}, {failed} failed"
        if isinstance(work, Redrive):
            told += f"; {work.again} had arrived before" if work.again else ""
            told += f"; {work.filtered} of the failed are filtered out by the route" if work.filtered else ""
        print(told)
        return INTERRUPTED if self._stop.is_set() else self._end(failed)

    async def _dry_run(self, batch: Sequence[Letter], work: Purge) -> int:
        """Print what would be done. Returns for how many it could be."""
        count = 0
        for letter in batch:
            try:
                would = await work.would(letter)
            except (Kept, SourceError) as error:
                work.keep(letter, str(error))
            else:
                count += 1
                print(f"{letter.sequence} would {would}")
        return count

    async def _ask(self, stream: str) -> None:
        """Ask whether to delete. Raises `UsageError` if nobody can be asked, or says no."""
        options = self._options
        some = options.sequences or options.where or options.limit
        which = "those that are chosen" if some else "all of them"
        if not sys.stdin.isatty():
            raise UsageError("purge deletes dead letters for good; say --yes, or look first with --dry-run")
        question = f"Delete the dead letters of route {excerpt(self._route.name)} in stream {stream}, {which}? [y/N] "
        print(question, end="", file=sys.stderr, flush=True)
        answer = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        if answer.strip().lower() not in ("y", "yes"):
            raise UsageError("nothing was deleted")

    # --- telling ---

    def _report(self, sequence: int, why: str) -> None:
        self._reported["all"] += 1
        if self._reported["all"] <= MOST_REPORTED:
            print(f"router-trio: dead letter {sequence}: {excerpt(why, 500)}", file=sys.stderr)

    def _end(self, failed: int) -> int:
        if self._reported["all"] > MOST_REPORTED:
            print(f"router-trio: and {self._reported['all'] - MOST_REPORTED} more", file=sys.stderr)
        return FAILED if failed else DONE


@contextmanager
def _progress(selection: Selection, work: Purge, done: str) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far it is; yields what is to be called when something was done."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=selection.total)

        def show() -> None:
            told = f"{work.done} {done}, {work.failed} failed"
            progress.update(task, completed=selection.read, description=told)

        yield show
