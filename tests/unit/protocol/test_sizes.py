"""The cache of sizes is bounded, and sizes that are not in it are parsed."""

from __future__ import annotations

from router_trio.protocol import framing
from router_trio.protocol.framing import FrameParser
from tests.support.buffers import MessageBuffer


def test_sizes_are_cached_up_to_a_limit() -> None:
    parser, buffer = FrameParser(), MessageBuffer()
    parser.buffers[b"1"] = buffer
    for size in range(10_000):
        parser.feed(b"MSG a 1 %d\r\n%b\r\n" % (size, b"x" * size))
    assert [raw[3] for raw in buffer] == [*range(10_000)]
    assert len(framing.SIZES) <= framing.MAX_SIZES < 10_000
