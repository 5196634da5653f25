"""Discrete events: plans that arrive at front ends and share the cards behind them.

A card decodes everything in its batch one pass at a time, so a pass gets longer with each plan in it and all plans go
on at the same rate. Between two events that rate does not change, so nothing is stepped through: a card keeps one
clock of passes, and a plan's end is a point on it. `capacity.py` gives the figures in, and compares.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Balance = Literal["own", "hash", "two"]


@dataclass(frozen=True)
class Pace:
    """A card's seconds for a pass: `fixed`, and `each` more for every plan in its batch.

    Attributes:
        outside: seconds for each pass that a plan spends outside the batch: HTTP, grammars, the writer's own work.
    """

    fixed: float
    each: float
    outside: float = 0.0

    def seconds(self, plans: int) -> float:
        """One pass of one plan, of so many on the card. Only the share of them that is in the batch makes it longer."""
        half = (self.fixed + self.each * plans - self.outside) / 2
        return half + math.sqrt(half * half + self.fixed * self.outside) + self.outside


@dataclass(frozen=True)
class Plan:
    """What one request costs.

    Attributes:
        arrives: seconds after the start.
        passes: forward passes of it, or whatever else the pace is counted in.
    """

    arrives: float
    passes: float


@dataclass(frozen=True)
class Layout:
    """Front ends with a bounded queue each, before cards.

    Requests go to the front ends in turns. `own`: a front end has one card, its own; `hash`: a plan goes to a card by
    the hash of its session, at random that is; `two`: to the less busy one of two.
    """

    fronts: int
    cards: int
    slots: int
    queue: int
    balance: Balance = "own"


@dataclass(frozen=True)
class Fate:
    """What became of a plan. `ended` is None where it was refused."""

    plan: Plan
    began: float
    ended: float | None

    @property
    def seconds(self) -> float:
        return math.inf if self.ended is None else self.ended - self.plan.arrives


@dataclass
class _Card:
    """Plans by where on the card's clock they end. `moves` tells an event of a state that is over."""

    rate: list[float]  # passes a second, by the number of plans
    clock: float = 0.0
    now: float = 0.0
    moves: int = 0
    plans: list[tuple[float, int]] = field(default_factory=list)

    def advance(self, now: float) -> None:
        self.clock += (now - self.now) * self.rate[len(self.plans)]
        self.now = now
        self.moves += 1

    def next_end(self) -> float:
        return self.now + max(0.0, self.plans[0][0] - self.clock) / self.rate[len(self.plans)]


def simulate(layout: Layout, pace: Pace, plans: Sequence[Plan], seed: int = 0) -> list[Fate]:
    """What becomes of each plan, in the order of arrival, until the last one has left."""
    dice = random.Random(seed)
    most = layout.slots * layout.fronts
    known = min(most, 4096)
    rate = [0.0] + [1 / pace.seconds(count) for count in range(1, known + 1)]
    cards = [_Card(rate) for _ in range(layout.cards)]
    running = [0] * layout.fronts
    waiting: list[deque[int]] = [deque() for _ in range(layout.fronts)]
    front_of, began = [0] * len(plans), [math.nan] * len(plans)
    ended: list[float | None] = [None] * len(plans)
    ends: list[tuple[float, int, int]] = []  # when, card, its moves then

    def choose(front: int) -> int:
        if layout.balance == "own":
            return front
        if layout.balance == "hash":
            return dice.randrange(layout.cards)
        one, other = dice.randrange(layout.cards), dice.randrange(layout.cards)
        return one if len(cards[one].plans) <= len(cards[other].plans) else other

    def expect(number: int) -> None:
        if cards[number].plans:
            heapq.heappush(ends, (cards[number].next_end(), number, cards[number].moves))

    def begin(index: int, now: float) -> None:
        front = front_of[index]
        number = choose(front)
        card = cards[number]
        card.advance(now)
        running[front] += 1
        began[index] = now
        heapq.heappush(card.plans, (card.clock + plans[index].passes, index))
        expect(number)

    def finish(number: int, now: float) -> None:
        card = cards[number]
        card.advance(now)
        _, index = heapq.heappop(card.plans)
        ended[index] = now
        front = front_of[index]
        running[front] -= 1
        expect(number)
        if waiting[front]:
            begin(waiting[front].popleft(), now)

    def run_until(now: float) -> None:
        while ends and ends[0][0] <= now:
            when, number, moves = heapq.heappop(ends)
            if cards[number].moves == moves:
                finish(number, when)

    for index, plan in enumerate(plans):
        run_until(plan.arrives)
        front = front_of[index] = index % layout.fronts
        if running[front] < layout.slots:
            begin(index, plan.arrives)
        elif len(waiting[front]) < layout.queue:
            waiting[front].append(index)
    run_until(math.inf)
    return [Fate(plan, began[index], ended[index]) for index, plan in enumerate(plans)]


def poisson(rate: float, seconds: float, dice: random.Random) -> Iterator[float]:
    """Arrivals that know nothing of each other, `rate` a second."""
    now = dice.expovariate(rate)
    while now < seconds:
        yield now
        now += dice.expovariate(rate)


def bursts(rate: float, seconds: float, dice: random.Random, every: float) -> Iterator[float]:
    """As many, of which half come in bursts: at one moment in `every` seconds, all within a tenth of a second."""
    size = round(rate * every / 2)
    crowd = [start + dice.uniform(0, 0.1) for start in _steps(every / 2, seconds, every) for _ in range(size)]
    yield from sorted([*poisson(rate / 2, seconds, dice), *crowd])


def _steps(start: float, end: float, step: float) -> Iterator[float]:
    while start < end:
        yield start
        start += step
