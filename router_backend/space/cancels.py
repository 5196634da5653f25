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
        self._cells = memoryview(mmap.mmap(-1, 8 * _CELLS)).cast("q")
        self._numbers = itertools.count(1)

    def begin(self) -> CallFlag:
        return CallFlag(self, next(self._numbers))

    def cancel(self, number: int) -> None:
        self._cells[number % _CELLS] = number

    def has(self, number: int) -> bool:
        return self._cells[number % _CELLS] == number


@dataclass(frozen=True, slots=True)
class CallFlag:
    """One call's flag; `number` is what a worker is told."""

    cancels: Cancels
    number: int

    def set(self) -> None:
        self.cancels.cancel(self.number)

    def is_set(self) -> bool:
        return self.cancels.has(self.number)
