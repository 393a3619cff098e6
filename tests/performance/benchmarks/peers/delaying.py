"""A path between a client and a server with a delay, as on a long cable: no bytes are lost.

`delaying.py HOST:PORT SECONDS`: prints its port. Bytes arrive that many seconds after they were sent, whatever their
number: this is distance, not a narrow line.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress
from queue import SimpleQueue

CHUNK = 256 * 1024


def carry(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """Start two threads for one direction: one receives, the other sends what is due."""
    way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()

    def take_in() -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            way.put((time.monotonic() + seconds, data))

    def give_out() -> None:
        with suppress(OSError):
            while True:
                due, data = way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)

    for part in (take_in, give_out):
        threading.Thread(target=part, daemon=True).start()


def main(target: tuple[str, int], seconds: float) -> None:
    """Carry connections forever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(target)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            carry(near, far, seconds)
            carry(far, near, seconds)


if __name__ == "__main__":
    host, _, port = sys.argv[1].partition(":")
    main((host, int(port)), float(sys.argv[2]))
