"""Remembered: the last values of a function, each worked out once, however many threads ask for it at a time."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

V = TypeVar("V")
# What an engine remembers of texts' tokens: so many characters, with those that an entry of its own stands for.
_CHARACTERS, _ENTRY = 2_000_000, 1000


class Remembered(Generic[V]):
    """A function with a memory. Thread-safe. What it raises is raised to all who wait, and forgotten."""

    def __init__(self, function: Callable[..., V], most: int, weigh: Callable[..., int] = lambda *_: 1) -> None:
        """`weigh`: what a call's arguments weigh; of all that is remembered together the weight is at most `most`."""
        self._function, self._most, self._weigh = function, most, weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[tuple[Hashable, ...], Future[V]] = OrderedDict()
        self._weight = 0

    def __call__(self, *arguments: Hashable) -> V:
        with self._lock:
            found = self._values.get(arguments)
            if found is not None:
                self._values.move_to_end(arguments)
            else:
                mine = self._values[arguments] = Future[V]()
                self._weight += self._weigh(*arguments)
        if found is not None:
            error = found.exception()
            if error is not None:
                raise copy.copy(error)  # each its own: handlers add to them
            return found.result()
        try:
            mine.set_result(self._function(*arguments))
        except BaseException as error:
            mine.set_exception(error)
            self._forget(arguments)
            raise
        self._shrink()
        return mine.result()

    @classmethod
    def of_texts(cls, function: Callable[..., V]) -> Remembered[V]:
        """For tokens of texts. The first argument is whose text it is, the second the text."""
        return cls(function, _CHARACTERS, lambda owner, text, *_: len(text) + _ENTRY)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self._weight = 0

    def _forget(self, arguments: tuple[Hashable, ...]) -> None:
        with self._lock:
            if self._values.pop(arguments, None) is not None:
                self._weight -= self._weigh(*arguments)

    def _shrink(self) -> None:
        """Forgets what was asked for longest ago. (Whoever waits for it has it in hand.)"""
        with self._lock:
            while self._weight > self._most:
                oldest, _ = self._values.popitem(last=False)
                self._weight -= self._weigh(*oldest)
