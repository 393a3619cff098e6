"""Memory that a worker shares with its supervisor: counts that outlive the worker, however it ends.

The block describes its own contents. It is a row of records, each with its key (what the numbers belong to, and their
names) and its numbers, 64 bits each:

    what blocks the loop | bytes of all records | head | key, padded with spaces | number | number | ...

The head contains the size of the key in bytes and the count of numbers; it is negative if the record is free. Records
are never moved. A new one reuses a free one of its size, else it is appended, so a router that is reloaded for ever
needs no more memory than one that is not. A worker that is killed in the middle of a copy leaves some numbers as they
were before; none is half written, since each is one word, and so is a head.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from struct import Struct
from typing import NamedTuple
from weakref import ref

from router_trio.forked import call_in_children
from router_trio.router.workers.counts.numbers import Counts, Key

FIRST_SIZE = 1 << 20
"""Bytes. The size doubles when the block is full; unused pages take no memory."""

LONGEST_SUBJECT = 256
"""Bytes kept of the subject of a message that is in a handler."""

HANDLER = "handler"
"""The kind of a `Place`."""

_PLACE = Struct(f"=qdq{LONGEST_SUBJECT}s")
_PLACE_FIELDS = ("sequence", "time", "length", *map(str, range(LONGEST_SUBJECT // 8)))
_WORD, _TIME = Struct("=q"), Struct("=d")


class InHandler(NamedTuple):
    """A message that a handler had when its process ended. `sequence` is None if it is not from a stream.

    `time` is its `timestamp`, 0 if it has none: a stream that was created again reuses sequences.
    """

    route: str
    subject: str
    sequence: int | None
    time: float = 0.0


LONGEST_REASON = 1016
"""Bytes kept of the text about what blocks the event loop of a worker."""

_BLOCKED = Struct(f"=q{LONGEST_REASON}s")
_USED = Struct("=q")
_RECORDS = _BLOCKED.size + _USED.size
_HEAD = Struct("=q")
_NUMBERS_IN_HEAD = 1 << 32


def new_block() -> int:
    """Return the descriptor of an empty block. The caller has to close it."""
    number = anonymous_file("router-trio-counts")
    os.ftruncate(number, FIRST_SIZE)
    return number


def anonymous_file(name: str) -> int:
    """Return the descriptor of a file without a path. On Linux this needs no writable file system."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    number, path = tempfile.mkstemp(prefix=name)
    os.unlink(path)
    return number


def _size_for(needed: int) -> int:
    """Return the size of a record that needs `needed` bytes: a power of two, so that it can be reused by others."""
    return 1 << (needed - 1).bit_length()


def _record_size(head: int) -> int:
    count, length = divmod(head, _NUMBERS_IN_HEAD)
    return _HEAD.size + length + 8 * count


class Record:
    """Numbers in a block that are written together."""

    __slots__ = ("_block", "_form", "fields", "offset", "start")

    def __init__(self, block: Block, start: int, offset: int, fields: Sequence[str]) -> None:
        """`start` is the position of the head, `offset` that of the numbers."""
        self.fields: tuple[str, ...] = tuple(fields)
        self._block = block
        self.start: int = start
        self.offset: int = offset
        self._form = Struct(f"={len(self.fields)}q")

    def write(self, numbers: Sequence[int]) -> None:
        """Write these numbers, in the order of the fields."""
        self._form.pack_into(self._block.memory, self.offset, *numbers)


class Block:
    """A worker's side of a block. Only the worker itself writes to it, not the children that it forks."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.memory: mmap.mmap = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        """The memory that records write to."""
        self._end = _RECORDS
        self._free: dict[int, list[int]] = {}
        """Positions of free records, by their size."""
        call_in_children(self, _Private(self))

    def new_record(self, key: Key, fields: Sequence[str], numbers: Sequence[int]) -> Record:
        """Return a new record that contains these numbers.

        Free an older one with the same key and fields right after: while both exist, either may be read.
        """
        name = json.dumps([*key, *fields], ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        size = _size_for(_HEAD.size + len(name) + 8 * len(fields))
        length = size - _HEAD.size - 8 * len(fields)
        free = self._free.get(size)
        start = free.pop() if free else self._end
        self._grow_to(start + size)
        self.memory[start + _HEAD.size : start + _HEAD.size + length] = name.ljust(length)
        record = Record(self, start, start + _HEAD.size + length, fields)
        record.write(numbers)
        _HEAD.pack_into(self.memory, start, length + _NUMBERS_IN_HEAD * len(fields))
        if start == self._end:
            self._end += size
            _USED.pack_into(self.memory, _BLOCKED.size, self.used)  # last, because this makes the record visible
        return record

    def write_blocked(self, why: str | None) -> None:
        """Write what blocks the event loop of this process, None if it turns. For the thread that watches the loop."""
        text = b"" if why is None else why.encode("utf-8", "surrogatepass")[:LONGEST_REASON]
        _BLOCKED.pack_into(self.memory, 0, len(text), text)

    @property
    def used(self) -> int:
        """Bytes of all records, including free ones."""
        return self._end - _RECORDS

    def free(self, record: Record) -> None:
        """Free a record, which does not count any more. It must not be written to, since it will be reused."""
        (head,) = _HEAD.unpack_from(self.memory, record.start)
        _HEAD.pack_into(self.memory, record.start, -head)
        self._free.setdefault(_record_size(head), []).append(record.start)

    def _grow_to(self, end: int) -> None:
        size = len(self.memory)
        if end <= size:
            return
        while size < end:
            size *= 2
        os.ftruncate(self._descriptor, size)
        self.memory.resize(size)


class Place:
    """A place in a block for the message that one handler call has; empty if there is none."""

    __slots__ = ("_block", "_offset", "_record")

    def __init__(self, block: Block, route: str, number: int) -> None:
        """Allocate a record in the block. Places are reused for later calls."""
        self._block = block
        self._record = block.new_record((HANDLER, f"{number}:{route}"), _PLACE_FIELDS, (0,) * len(_PLACE_FIELDS))
        self._offset = self._record.offset

    def enter(self, sequence: int, subject: str, time: float = 0.0) -> None:
        """Record the message that a handler is called with. `sequence` is not 0: -1 if it is not from a stream."""
        text = subject.encode("utf-8", "surrogatepass")
        _PLACE.pack_into(self._block.memory, self._offset, sequence, time, len(text), text)

    def leave(self) -> None:
        """Record that the call has ended."""
        _WORD.pack_into(self._block.memory, self._offset, 0)

    def give_back(self) -> None:
        """Free its record in the block. The place must not be used any more."""
        self._block.free(self._record)


def take_in_handlers(counts: Counts) -> list[InHandler]:
    """Remove the messages that were in handlers from the contents of a block, and return them."""
    found = []
    for key in [key for key in counts if key[0] == HANDLER]:
        numbers = counts.pop(key)
        sequence, bits, length, *words = (numbers[name] for name in _PLACE_FIELDS)
        if sequence:
            (time,) = _TIME.unpack(_WORD.pack(bits))
            text = Struct(f"={len(words)}q").pack(*words)[: min(length, LONGEST_SUBJECT)]
            subject = text.decode("utf-8", "replace")
            found.append(InHandler(key[1].partition(":")[2], subject, None if sequence < 0 else sequence, time))
    return found


class _Private:
    """Replaces the shared memory by private memory in a forked child."""

    def __init__(self, block: Block) -> None:
        self._block = ref(block)

    def __call__(self) -> None:
        block = self._block()
        if block is not None:
            shared, block.memory = block.memory, mmap.mmap(-1, len(block.memory))
            with suppress(BufferError):  # another thread of the parent was writing
                shared.close()


def read_blocked(descriptor: int) -> str | None:
    """Return what blocks the event loop of a running worker; None if it turns."""
    length, text = _BLOCKED.unpack(os.pread(descriptor, _BLOCKED.size, 0))
    return text[:length].decode("utf-8", "replace") if length else None


def read_block(descriptor: int) -> Counts:
    """Return the contents of a block. Its worker has ended; otherwise the numbers may be of different moments."""
    counts: Counts = {}
    with mmap.mmap(descriptor, os.fstat(descriptor).st_size, access=mmap.ACCESS_READ) as memory:
        (used,) = _USED.unpack_from(memory, _BLOCKED.size)
        at = _RECORDS
        while at < _RECORDS + used:
            (head,) = _HEAD.unpack_from(memory, at)
            if head < 0:
                at += _record_size(-head)
                continue
            count, length = divmod(head, _NUMBERS_IN_HEAD)
            start = at + _HEAD.size + length
            kind, name, *fields = json.loads(memory[at + _HEAD.size : start].decode("utf-8", "surrogatepass"))
            numbers = Struct(f"={count}q").unpack_from(memory, start)
            counts.setdefault((kind, name), {}).update(zip(fields, numbers, strict=True))
            at = start + 8 * count
    return counts
