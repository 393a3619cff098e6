"""For an owner in tests: which publishes a call of `settle` covers."""

from __future__ import annotations

from router_trio.outbox.operation import Operation, OperationBatch


class Settled:
    """A batch settles its owners one after the other, in order; here one owner has all of them."""

    def __init__(self) -> None:
        self._settled: dict[OperationBatch, int] = {}

    def orders(self, operation: Operation, count: int) -> range:
        """Return the numbers of the `count` publishes of `operation` that are being settled."""
        if not isinstance(operation, OperationBatch):
            assert count == 1
            return range(operation.order, operation.order + 1)
        first = operation.order - operation.count + 1 + self._settled.get(operation, 0)
        assert first + count - 1 <= operation.order, "more are settled than exist"
        self._settled[operation] = self._settled.get(operation, 0) + count
        return range(first, first + count)
