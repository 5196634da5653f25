"""Cancels: which calls were cancelled, seen by this process and by every worker that is forked from it."""

from __future__ import annotations

import itertools
import mmap
from dataclasses import dataclass

_CELLS = 4096  # more than calls can live at once


class Cancels:
    """Shared memory of one number a cell; a call's cell holds its number once it is cancelled.

    A worker can be reached by nothing else while it computes: it looks at `spaces`' own event only when it has
    something to send.
    """

    def __init__(self) -> None:
        self.cells = memoryview(mmap.mmap(-1, 8 * _CELLS)).cast("q")
        self._numbers = itertools.count(1)

    def begin(self) -> CallFlag:
        return CallFlag(self, next(self._numbers))


@dataclass(frozen=True, slots=True)
class CallFlag:
    """One call's flag; `number` is what a worker is told."""

    cancels: Cancels
    number: int

    def set(self) -> None:
        self.cancels.cells[self.number % _CELLS] = self.number

    def is_set(self) -> bool:
        return self.cancels.cells[self.number % _CELLS] == self.number
