"""`benchmarks/simulation.py` against what queueing theory knows in closed form."""

from __future__ import annotations

import random
import sys
from math import factorial
from pathlib import Path
from statistics import mean

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from simulation import Layout, Pace, Plan, bursts, poisson, simulate

ENDLESS = 1_000_000
DICE = 20261125


def plans(rate: float, seconds: float = 20_000) -> list[Plan]:
    """Poisson arrivals whose passes are exponential, one in the mean."""
    dice = random.Random(DICE)
    return [Plan(at, dice.expovariate(1)) for at in poisson(rate, seconds, dice)]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_waits_as_an_mm1_queue(load: float) -> None:
    fates = simulate(Layout(1, 1, 1, ENDLESS), Pace(1, 0), plans(load))
    assert mean(fate.seconds for fate in fates) == pytest.approx(1 / (1 - load), rel=0.12)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_card_that_is_shared_takes_as_long_in_the_mean(load: float) -> None:
    """Processor sharing: a pass that takes a second for each plan in it."""
    fates = simulate(Layout(1, 1, ENDLESS, 0), Pace(0, 1), plans(load))
    assert mean(fate.seconds for fate in fates) == pytest.approx(1 / (1 - load), rel=0.12)
    assert all(fate.began == fate.plan.arrives for fate in fates)


@pytest.mark.parametrize("slots", [1, 4, 8])
def test_without_a_queue_as_many_are_refused_as_erlang_says(slots: int) -> None:
    load = 0.8 * slots
    fates = simulate(Layout(1, 1, slots, 0), Pace(1, 0), plans(load, 20_000 / slots))
    refused = load**slots / factorial(slots) / sum(load**each / factorial(each) for each in range(slots + 1))
    assert mean(fate.ended is None for fate in fates) == pytest.approx(refused, rel=0.1)


def test_a_pass_is_as_long_as_its_share_of_the_batch_makes_it() -> None:
    pace = Pace(0.01, 0.002)
    assert pace.seconds(1) == pytest.approx(0.012) and pace.seconds(8) == pytest.approx(0.026)
    # Half of the time outside: of two plans one is in the batch, in the mean.
    assert Pace(0.01, 0.002, outside=0.012).seconds(2) == pytest.approx(0.024)


def test_front_ends_share_their_cards_and_what_waits_goes_on_when_a_slot_is_free() -> None:
    crowd = [Plan(0.0, 1.0) for _ in range(12)]
    fates = simulate(Layout(2, 4, 4, 1, "two"), Pace(1, 0), crowd)
    assert [fate.ended for fate in fates] == [1.0] * 8 + [2.0] * 2 + [None] * 2
    one, many = (simulate(Layout(1, 2, 64, 0, "two"), Pace(0, 1), crowd[:count]) for count in (1, 12))
    assert one[0].seconds == 1.0 and max(fate.seconds for fate in many) < 12.0, "two cards do not take what one would"


def test_bursts_bring_as_many_plans_half_of_them_at_once() -> None:
    when = list(bursts(2.0, 6_000, random.Random(DICE), 60))
    assert when == sorted(when) and len(when) == pytest.approx(12_000, rel=0.03)
    assert sum(at % 60 >= 30 and at % 60 < 30.2 for at in when) == pytest.approx(6_000, rel=0.03)
