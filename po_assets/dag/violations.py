"""Violating rows of a check: all are counted, the first or worst few are kept to be shown."""

import heapq
from collections.abc import Mapping
from itertools import count

SHOWN = 20


class Violations:
    """Counts rows and keeps the `SHOWN` with the greatest weight, the earliest first among equals."""

    def __init__(self) -> None:
        self.count = 0
        self._heap: list[tuple[float, int, Mapping[str, object]]] = []
        self._order = count(0, -1)

    def add(self, row: Mapping[str, object], weight: float = 0.0) -> None:
        """Count one row; a greater weight is worse."""
        self.count += 1
        entry = (weight, next(self._order), row)
        if len(self._heap) < SHOWN:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    @property
    def rows(self) -> list[Mapping[str, object]]:
        """The kept rows, worst first."""
        return [row for _, _, row in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))]

    def __bool__(self) -> bool:
        return self.count > 0
