"""Log lines of several processes in one pipe: lines are not mixed, however long they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter

from tests.support.command import environment

WRITER = """
import sys
from router_trio.telemetry.logs.writer import WholeLines

lines = WholeLines(int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    lines.write(sys.argv[2].encode() * 100_000 + b"\\n")
"""


def test_long_lines_of_several_processes_are_not_mixed() -> None:
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as lock, open(reading, "rb") as pipe:
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(lock.fileno()), letter],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=writing,
                pass_fds=(lock.fileno(),),
                env=environment(),
            )
            for letter in "abc"
        ]
        os.close(writing)
        # From here on all processes write concurrently.
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.close()
        lines = pipe.read().splitlines()
        assert [writer.wait() for writer in writers] == [0, 0, 0]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.close()
    assert {len(line) for line in lines} == {100_000}
    assert Counter(line[:1] for line in lines if len(set(line)) == 1) == {b"a": 20, b"b": 20, b"c": 20}
