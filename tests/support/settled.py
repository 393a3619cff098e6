"""For an owner in tests: which publishes a call of `settle` speaks of."""

from __future__ import annotations

from router_trio.outbox.operation import Operation, OperationBatch


class Settled:
    """A batch tells its owners one after the other, in order; here one owner has them all."""

    def __init__(self) -> None:
        self._told: dict[OperationBatch, int] = {}

    def orders(self, operation: Operation, count: int) -> range:
        """The numbers of the `count` publishes of `operation` whose fate is told now."""
        if not isinstance(operation, OperationBatch):
            assert count == 1
            return range(operation.order, operation.order + 1)
        first = operation.order - operation.count + 1 + self._told.get(operation, 0)
        assert first + count - 1 <= operation.order, "told of more than there are"
        self._told[operation] = self._told.get(operation, 0) + count
        return range(first, first + count)
