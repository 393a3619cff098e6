"""The verdict on a trial: what the streams, the calls and the logs have, against the promises of the simulation."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.resilience.chaos.partitions.group import JOINED, OTHERS, SINK, SOURCE, WINDOW, Group, group, run
from tests.resilience.chaos.partitions.trial import Trial
from tests.simulation.partitions.history import Call, Change, Copy, History, Look, Published, Spell
from tests.simulation.partitions.judges import JUDGES
from tests.support.raw_jetstream import JetStream, StoredMessage
from tests.support.raw_nats import connect

READ_WITHIN = 600.0
COPIES_WITHIN = 1.0
"""Seconds within which a server copies a message, unless copying has stopped."""

SHORTEST_SILENCE = 0.2
"""Seconds for which a partition has to store nothing to be silent."""

OF_A_KILLED_SERVER = frozenset({"NATS_CONNECTION_LOST", "NATS_RECONNECT_EXHAUSTED"})
"""Codes of the errors that members log while a server is away."""

MOST_SHOWN = 5
"""Broken promises of each kind in a report."""


@dataclass(frozen=True, slots=True)
class Handover:
    """A partition that a member took, `after` seconds since the last change, which is `what`."""

    what: str
    partition: int
    after: float


@dataclass(frozen=True, slots=True)
class Silence:
    """The longest time in which a partition had something to do, and nothing was stored, around a change."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a trial.

    `repeated` are handler calls for messages that had one before. `copied_after` is the longest time in seconds that
    the server took to put a message of the source into its partition.
    """

    trial: Trial
    published: int
    stored: int
    calls: int
    repeated: int
    copied_after: float
    changes: Counter[str]
    handovers: tuple[Handover, ...]
    silences: tuple[Silence, ...]
    broken: tuple[str, ...]

    @property
    def report(self) -> str:
        """Return the broken promises, the steps, and the command that repeats them."""
        return "\n".join([*self.broken, f"repeat it: {self.trial.command}", *map(str, self.trial.steps)])


async def run_trial(trial: Trial, *, slack: float = 0.0, folder: Path | None = None) -> Outcome:
    """Run a trial, and judge it.

    What members and servers leave is deleted at the end, unless an existing `folder` is given for it.
    """
    if folder is None:
        with TemporaryDirectory(prefix="router-trio-partitions-") as temporary:
            return await run_trial(trial, slack=slack, folder=Path(temporary))
    async with group(trial, folder, slack=slack) as made:
        await run(made)
        async with connect(made.a_server.url) as client:
            source = await JetStream(client).stream_messages(SOURCE, READ_WITHIN)
            sink = await JetStream(client).stream_messages(SINK, READ_WITHIN)
            copied = await JetStream(client).stream_messages(made.partitioned, READ_WITHIN)
        return judge(made, source, sink, copied)


def judge(
    made: Group, source: Sequence[StoredMessage], sink: Sequence[StoredMessage], copied: Sequence[StoredMessage]
) -> Outcome:
    """Check a finished trial against the promises. `copied` is what the stream that has the partitions stores."""
    trial = made.trial
    # A message that was published again after a failed attempt is where it was stored first.
    places = {int(message.payload): place for place, message in reversed([*enumerate(source, 1)])}
    key_of = {number: made.subject(number).split(".")[1] for number in places}
    partition_of = {number: made.partitioning.partition_of(made.subject(number)) for number in places}
    history = History(trial.partitions, WINDOW, workers=max(trial.workers, 1))
    stored_at = {place: message.time for place, message in enumerate(source, 1)}
    copied_at = {places[int(message.payload)]: message.time for message in reversed(copied)}
    history.published = sorted(
        (
            Published(places[number], key_of[number], partition_of[number], copied_at.get(places[number], inf))
            for number in places
        ),
        key=lambda one: one.number,
    )
    history.stored = [Copy(places[int(message.payload)], message.time) for message in sink]
    history.calls = [call for member in made.members for call in member.calls(key_of)]
    mark_interrupted(history.calls, made.spells, stored_at)
    for member in made.members:
        if (joined_at := member.joined_at()) is not None:
            made.changes.append(Change(joined_at, "join", OTHERS + made.slack, JOINED + made.slack))
    made.changes += [
        Change(at, "copied again", OTHERS + made.slack, OTHERS + made.slack)
        for at in copied_again(stored_at, copied_at)
    ]
    made.changes.sort(key=lambda change: change.at)
    history.spells, history.changes = made.spells, made.changes
    history.looks = [*_with_busy(made.looks, history)]
    broken = [
        f"{promise}: {detail}"
        for promise, find in JUDGES.items()
        for _, detail in zip(range(MOST_SHOWN), find(history), strict=False)
    ]
    broken += [
        f"member {member.number} ended with {code}: {member.text()[-400:]}" for member, code in made.codes if code != 0
    ]
    for member in made.members:
        errors = [
            line
            for line in member.lines()
            if line.fields.get("level") in ("ERROR", "CRITICAL") and line.code not in OF_A_KILLED_SERVER
        ]
        broken += [f"member {member.number} logged {line.code}: {line.fields.get('message')}" for line in errors[:2]]
        if "Traceback" in member.text():
            broken.append(f"member {member.number} printed a traceback")
    if len(places) < len(made.published_at):
        broken.append(f"the source has {len(places)} of {len(made.published_at)} messages: no fair trial")
    handled = Counter(call.number for call in history.calls)
    return Outcome(
        trial=trial,
        published=len(places),
        stored=len(sink),
        calls=handled.total(),
        repeated=handled.total() - len(handled),
        copied_after=max((at - stored_at[place] for place, at in copied_at.items()), default=0.0),
        changes=Counter(change.what for change in history.changes),
        handovers=tuple(_handovers(made)),
        silences=tuple(_silences(history)),
        broken=tuple(broken),
    )


def copied_again(stored_at: Mapping[int, float], copied_at: Mapping[int, float]) -> Iterator[float]:
    """Yield the times when the server began again to copy the source, after it had copied nothing for some time.

    Partitions had nothing to do meanwhile. Servers may have forgotten their leads, and give them with new messages.
    """
    before = -inf
    for place, at in sorted(copied_at.items(), key=lambda one: one[1]):
        if at - max(before, stored_at[place]) > COPIES_WITHIN:
            yield at
        before = at


def mark_interrupted(calls: Iterable[Call], spells: Iterable[Spell], stored_at: Mapping[int, float]) -> None:
    """Note which calls members may have made before they were suspended, and recorded when they resumed.

    A member can be stopped between the decision of its router and the first line of its handler. Its router makes one
    call at a time. So it is the first call after the resume, if the source had the message before.
    """
    calls = sorted(calls, key=lambda call: call.began)
    for spell in spells:
        if spell.suspended:
            after = (call for call in calls if call.process == spell.process and call.began >= spell.ended)
            first = next(after, None)
            if first is not None and stored_at[first.number] <= spell.began:
                first.called = spell.began


def _with_busy(looks: Iterable[Look], history: History) -> Iterator[Look]:
    """Yield looks with the partitions that had messages which were not stored."""
    published, stored = _times(history)
    for look in looks:
        busy = {one for one in published if bisect_right(published[one], look.at) > bisect_right(stored[one], look.at)}
        yield replace(look, busy=frozenset(busy))


def _times(history: History) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Return when messages of each partition were published, and when the first copies of them were stored."""
    published: dict[int, list[float]] = {partition: [] for partition in range(history.partitions)}
    stored: dict[int, list[float]] = {partition: [] for partition in range(history.partitions)}
    partition_of = {one.number: one.partition for one in history.published}
    for one in history.published:
        published[one.partition].append(one.at)
    for number, at in {copy.number: copy.at for copy in reversed(history.stored)}.items():
        stored[partition_of[number]].append(at)
    for times in (*published.values(), *stored.values()):
        times.sort()
    return published, stored


def _handovers(made: Group) -> Iterator[Handover]:
    """Yield the leads that members have taken, each after the last change before it."""
    for member in made.members:
        for line in member.lines():
            if line.code == "ROUTE_PARTITION_TAKEN":
                before = [change for change in made.changes if change.at <= line.at]
                if before:
                    yield Handover(before[-1].what, line.fields["partition"], line.at - before[-1].at)


def _silences(history: History) -> Iterator[Silence]:
    """Yield, for each change, the longest time in which a partition that had something to do stored nothing.

    It begins with a message that waits and ends with the next one that is stored, and contains the change.
    """
    published, stored = _times(history)
    gaps = [gap for partition in stored for gap in _gaps(published[partition], stored[partition])]
    for number, change in enumerate(history.changes):
        # Of several changes at once, the first counts.
        following = history.changes[number + 1].at if number + 1 < len(history.changes) else float("inf")
        found = [end - max(start, change.at) for start, end in gaps if start < following and end > change.at]
        yield Silence(change.what, max(found, default=0.0))


def _gaps(published: Sequence[float], stored: Sequence[float]) -> Iterator[tuple[float, float]]:
    place = 0
    for before, after in pairwise(stored):
        while place < len(published) and published[place] <= before:
            place += 1
        if place < len(published) and after - published[place] > SHORTEST_SILENCE:
            yield published[place], after


# --- tables ---

HEAD = (
    f"{'seed':>6} {'changes':>8} {'messages':>9} {'calls':>8} {'again':>6} {'taken':>6} {'median s':>9} {'most s':>7}"
)


def row(one: Outcome) -> str:
    """Return the row of one trial."""
    after = [handover.after for handover in one.handovers] or [0.0]
    told = "  BROKEN" if one.broken else ""
    return (
        f"{one.trial.seed:>6} {one.changes.total():>8} {one.published:>9} {one.calls:>8} {one.repeated:>6} "
        f"{len(one.handovers):>6} {median(after):>9.2f} {max(after):>7.2f}{told}"
    )


def table(one: Outcome) -> str:
    """Return the table of the hand-overs after each kind of change."""
    lines = [
        "| after | times | partitions taken | median s | 95 % s | most s | partition silent for at most s |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, times in sorted(one.changes.items()):
        after = sorted(handover.after for handover in one.handovers if handover.what == what)
        silent = max((silence.seconds for silence in one.silences if silence.what == what), default=0.0)
        figures = (
            f"{median(after):.2f} | {after[int(0.95 * (len(after) - 1))]:.2f} | {after[-1]:.2f}" if after else "| |"
        )
        lines.append(f"| {what} | {times} | {len(after)} | {figures} | {silent:.2f} |")
    lines.append("")
    lines.append(
        f"{one.published} messages published, {one.stored} stored; {one.calls} calls of the handler, {one.repeated} of "
        f"them again; in their partitions {one.copied_after:.2f} s later at most; {len(one.broken)} broken promises"
    )
    return "\n".join(lines)
