"""Admission: who may run now, who waits, and who is told at once that it would be in vain."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from router_backend.errors import Overloaded, RateLimited

_FIRST_GUESS = 5.0  # seconds of a request, before any has finished
_LONGEST_RETRY = 600.0
_REMEMBERED = 4096  # keys that have taken something lately


@dataclass(eq=False, slots=True)
class Ticket:
    """One request's place, from its admission to its end. It may run when `granted` is done."""

    key: str
    tokens: int
    deadline: float
    granted: asyncio.Future[None]
    began: float | None = None


@dataclass(slots=True)
class Pace:
    """How long a request takes for each token of its budget, as it was lately (exponentially weighted)."""

    seconds_per_token: float | None = None

    def learn(self, seconds: float, tokens: int) -> None:
        new, old = seconds / tokens, self.seconds_per_token
        self.seconds_per_token = new if old is None else old + 0.1 * (new - old)

    def seconds(self, tokens: int) -> float:
        return _FIRST_GUESS if self.seconds_per_token is None else self.seconds_per_token * tokens


class Buckets:
    """Token buckets, one for each key: each is full at first, and again a minute after it was empty."""

    def __init__(self, size: float) -> None:
        self._size = size
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and since when

    def wait(self, key: str) -> float:
        """Seconds until there is one to take."""
        return max(0.0, (1 - self._filled(key)) * 60 / self._size)

    def take(self, key: str) -> None:
        """Takes one, also where none is left."""
        self._left[key] = max(0.0, self._filled(key) - 1), time.monotonic()
        self._left.move_to_end(key)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)

    def _filled(self, key: str) -> float:
        now = time.monotonic()
        left, then = self._left.get(key, (self._size, now))
        return min(self._size, left + (now - then) * self._size / 60)


class Quota:
    """What one key may ask for: so many requests a minute, and so many at once. 0: no limit."""

    def __init__(self, per_minute: float, at_once: int) -> None:
        self.per_minute, self.at_once = per_minute, at_once
        self._buckets = Buckets(per_minute)

    def check(self, key: str, open_now: int, pause: float) -> None:
        """Raises RateLimited; `pause` is how long it takes until one of this key's requests has ended."""
        if self.at_once and open_now >= self.at_once:
            raise RateLimited(f"this key may have {self.at_once} requests at once", retry_after=_polite(pause))
        if self.per_minute and (wait := self._buckets.wait(key)):
            raise RateLimited(f"this key may send {self.per_minute:g} requests a minute", retry_after=_polite(wait))

    def spend(self, key: str) -> None:
        """Counts a request, also one that finds nothing left."""
        if self.per_minute:
            self._buckets.take(key)


class Admission:
    """Slots and a bounded queue in front of them, fair between keys.

    A slot goes to the key that has the fewest running, of these to the one that was served longest ago; within a key
    the first comes first. All methods belong to one event loop.
    """

    def __init__(self, slots: int, queue_limit: int, quota: Quota) -> None:
        self.queue_limit = queue_limit
        self._slots = slots
        self._quota = quota
        self._open = False
        self._pace = Pace()
        self._running: dict[Ticket, None] = {}
        self._running_of: Counter[str] = Counter()
        self._waiting: dict[str, deque[Ticket]] = {}  # keys in the order of their turns
        self._length = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return self._length

    def open(self, slots: int) -> None:
        """From now on requests run, this many at once."""
        self._slots, self._open = slots, True
        self._grant()

    def shut(self) -> None:
        """Nothing new is begun; who waits goes on waiting."""
        self._open = False

    def check(self, key: str) -> None:
        """Raises RateLimited where the key has had its share."""
        if self._quota.at_once or self._quota.per_minute:
            here = len(self._waiting.get(key, ())) + self._running_of[key]
            self._quota.check(key, here, min(self._left(key), default=1.0))

    def count(self, key: str) -> None:
        """A request of this key that does not come as far as `enter`."""
        self._quota.spend(key)

    def enter(self, key: str, tokens: int, deadline: float) -> Ticket:
        """A place in the queue. Give it back with `leave`, always.

        Raises:
            RateLimited: the key has had its share.
            Overloaded: the queue is full, or so long that the answer could not be whole before the deadline.
        """
        self.check(key)
        self._quota.spend(key)
        if self.running + self.waiting >= self._slots + self.queue_limit and not self._make_room(key):
            raise Overloaded(
                f"{self.waiting} requests are waiting already; try again later", retry_after=_polite(self._wait(key))
            )
        if self.waiting and self._pace.seconds_per_token is not None:
            late = time.monotonic() + self._wait(key) + self._pace.seconds(tokens) - deadline
            if late > 0:
                raise Overloaded(
                    "the queue is so long that this request could not finish in time; try again later",
                    code="too_late",
                    retry_after=_polite(late),
                )
        ticket = Ticket(key, tokens, deadline, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(key, deque()).append(ticket)
        self._length += 1
        self._grant()
        return ticket

    def leave(self, ticket: Ticket, *, finished: bool = False) -> None:
        """The request has ended, wherever it was. The pace is learnt from those that `finished` their answer."""
        if ticket in self._running:
            del self._running[ticket]
            self._running_of[ticket.key] -= 1
            if not self._running_of[ticket.key]:
                del self._running_of[ticket.key]
            if finished and ticket.began is not None:
                self._pace.learn(time.monotonic() - ticket.began, ticket.tokens)
            self._grant()
        elif ticket in self._waiting.get(ticket.key, ()):
            self._remove(ticket)
        if ticket.granted.done() and not ticket.granted.cancelled():
            ticket.granted.exception()  # seen: it is no loss if nobody waited for it

    def _grant(self) -> None:
        while self._open and self._waiting and len(self._running) < self._slots:
            key = min(self._waiting, key=lambda each: self._running_of[each])  # the first of the least
            ticket = self._waiting[key][0]
            self._remove(ticket)
            if key in self._waiting:
                self._waiting[key] = self._waiting.pop(key)  # to the end of the round
            if ticket.granted.done():
                continue
            now = time.monotonic()
            if self._hopeless(ticket, now):
                ticket.granted.set_exception(
                    Overloaded("too little time is left to answer; try again later", code="too_late", retry_after=1)
                )
                continue
            ticket.began = now
            self._running[ticket] = None
            self._running_of[key] += 1
            ticket.granted.set_result(None)

    def _hopeless(self, ticket: Ticket, now: float) -> bool:
        """Whether not even half of the usual time is left: the work would be thrown away."""
        known = self._pace.seconds_per_token is not None
        return known and ticket.deadline - now < self._pace.seconds(ticket.tokens) / 2

    def _remove(self, ticket: Ticket) -> None:
        line = self._waiting[ticket.key]
        line.remove(ticket)
        self._length -= 1
        if not line:
            del self._waiting[ticket.key]

    def _make_room(self, key: str) -> bool:
        """The queue is full. The last of a key that holds far more of it than this one gives way."""
        if not self._waiting:
            return False
        greedy = max(self._waiting, key=lambda each: len(self._waiting[each]))
        if len(self._waiting[greedy]) <= len(self._waiting.get(key, ())) + 1:
            return False
        victim = self._waiting[greedy][-1]
        self._remove(victim)
        if not victim.granted.done():
            victim.granted.set_exception(
                Overloaded("the queue is full, and others had less of it", retry_after=_polite(self._wait(greedy)))
            )
        return True

    def _wait(self, key: str) -> float:
        """Seconds until a slot would be free for one more request of this key, as far as one can know."""
        turn = len(self._waiting.get(key, ())) + 1
        ahead = (ticket for line in self._waiting.values() for ticket in islice(line, turn))
        return (sum(self._left()) + sum(self._pace.seconds(ticket.tokens) for ticket in ahead)) / self._slots

    def _left(self, key: str | None = None) -> Iterator[float]:
        now = time.monotonic()
        for ticket in self._running:
            if key in (None, ticket.key):
                yield max(0.0, self._pace.seconds(ticket.tokens) - (now - (ticket.began or now)))


def _polite(seconds: float) -> float:
    """At least a second, and not so long that nobody comes back."""
    return min(max(1.0, seconds), _LONGEST_RETRY)
