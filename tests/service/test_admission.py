"""Who runs, who waits, who is refused, and what the refused are told."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine

import pytest

from router_backend.errors import Overloaded, RateLimited
from router_backend.service.admission import Admission, Quota, Ticket

FOREVER = 1e9


def go(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(main())


def admission(slots: int = 1, limit: int = 64, per_minute: float = 0, at_once: int = 0) -> Admission:
    made = Admission(slots, limit, Quota(per_minute, at_once))
    made.open(slots)
    return made


def enter(made: Admission, key: str = "", tokens: int = 100, deadline: float = FOREVER) -> Ticket:
    return made.enter(key, tokens, deadline)


def runs(ticket: Ticket) -> bool:
    return ticket.granted.done() and not ticket.granted.cancelled() and ticket.granted.exception() is None


def test_nothing_runs_before_it_is_open() -> None:
    async def main() -> None:
        made = Admission(2, 8, Quota(0, 0))
        tickets = [enter(made) for _ in range(3)]
        assert (made.running, made.waiting) == (0, 3)
        made.open(2)
        assert [runs(each) for each in tickets] == [True, True, False]
        made.shut()
        made.leave(tickets[0])
        assert not runs(tickets[2])
        made.open(3)
        assert runs(tickets[2]) and made.running == 2

    go(main)


def test_slots_go_round_between_keys() -> None:
    """One key with ten waiting does not hold up another with one."""

    async def main() -> None:
        made = admission()
        running = enter(made, "greedy")
        greedy = [enter(made, "greedy") for _ in range(10)]
        modest = [enter(made, "modest") for _ in range(2)]
        order = []
        everyone = [*greedy, *modest]
        while everyone:
            made.leave(running)
            (running,) = (each for each in everyone if runs(each))
            everyone.remove(running)
            order.append(running.key)
        assert "".join(key[0] for key in order[:4]) in ("gmgm", "mgmg")
        assert order[4:] == ["greedy"] * 8

    go(main)


def test_the_key_with_the_fewest_running_is_next() -> None:
    async def main() -> None:
        made = admission(slots=3)
        first = [enter(made, "a") for _ in range(3)]
        waiting = [enter(made, "a"), enter(made, "b"), enter(made, "b")]
        made.leave(first[0])
        assert [runs(each) for each in waiting] == [False, True, False]
        made.leave(first[1])
        assert [runs(each) for each in waiting] == [True, True, False], "as many running: whose turn was longest ago"

    go(main)


def test_a_full_queue_makes_room_for_who_has_none_of_it() -> None:
    async def main() -> None:
        made = admission(slots=1, limit=4)
        greedy = [enter(made, "greedy") for _ in range(5)]
        with pytest.raises(Overloaded):
            enter(made, "greedy")
        modest = enter(made, "modest")
        victim = greedy[-1].granted.exception()
        assert isinstance(victim, Overloaded) and victim.retry_after and not modest.granted.done()
        assert made.waiting == 4, "the limit holds"
        enter(made, "modest")
        with pytest.raises(Overloaded):  # two of four: that is its share
            enter(made, "modest")
        made.leave(greedy[-1])
        assert made.waiting == 4

    go(main)


def test_row_17_retry_after_comes_from_the_queue_and_the_speed() -> None:
    async def main() -> None:
        made = admission(slots=2, limit=6)
        learn(made, seconds=10, tokens=100)
        for _ in range(8):
            enter(made, tokens=200)  # twenty seconds each
        with pytest.raises(Overloaded) as caught:
            enter(made)
        assert caught.value.retry_after == pytest.approx(20 * (2 + 6) / 2, abs=1)

    go(main)


def learn(made: Admission, seconds: float, tokens: int) -> None:
    ticket = enter(made, tokens=tokens)
    assert ticket.began is not None
    ticket.began -= seconds
    made.leave(ticket, finished=True)


def test_what_cannot_be_in_time_is_refused_at_once() -> None:
    async def main() -> None:
        made = admission()
        learn(made, seconds=10, tokens=100)
        running = enter(made)
        enter(made, deadline=time.monotonic() + 25)  # ten for the one before, ten of its own
        with pytest.raises(Overloaded) as caught:
            enter(made, deadline=time.monotonic() + 25)
        assert caught.value.code == "too_late"
        assert caught.value.retry_after == pytest.approx(5, abs=1)
        enter(made, tokens=30, deadline=time.monotonic() + 25)
        made.leave(running)

    go(main)


def test_a_key_that_waits_behind_nobody_of_its_own_is_not_refused_for_the_queue_of_another() -> None:
    async def main() -> None:
        made = admission()
        learn(made, seconds=10, tokens=100)
        for _ in range(20):
            enter(made, "greedy")
        assert not enter(made, "modest", deadline=time.monotonic() + 45).granted.done()

    go(main)


def test_what_waited_too_long_is_not_begun() -> None:
    async def main() -> None:
        made = admission()
        running, late, fine = enter(made), enter(made, deadline=time.monotonic() + 3), enter(made)
        assert running.began is not None
        running.began -= 10
        made.leave(running, finished=True)
        error = late.granted.exception()
        assert isinstance(error, Overloaded) and error.code == "too_late"
        assert runs(fine)

    go(main)


def test_only_whole_answers_are_learnt_from() -> None:
    async def main() -> None:
        made = admission()
        ticket = enter(made)
        assert ticket.began is not None
        ticket.began -= 1000
        made.leave(ticket)
        enter(made)
        assert enter(made, deadline=time.monotonic() + 1), "nothing is known of the speed"

    go(main)


def test_requests_a_minute() -> None:
    async def main() -> None:
        made = admission(per_minute=2)
        for key in ("a", "b"):
            for _ in range(2):
                made.leave(enter(made, key))
            with pytest.raises(RateLimited, match="2 requests a minute") as caught:
                enter(made, key)
            assert caught.value.retry_after == pytest.approx(30, abs=1)

    go(main)


def test_requests_a_minute_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("router_backend.service.admission.time.monotonic", lambda: now)
    quota = Quota(60, 0)

    def ask() -> None:
        quota.check("a", 0, 1)
        quota.spend("a")

    for _ in range(60):
        ask()
    with pytest.raises(RateLimited):
        ask()
    now += 1.1
    ask()
    with pytest.raises(RateLimited):
        ask()
    now += 10_000
    for _ in range(60):
        ask()
    with pytest.raises(RateLimited):
        ask()


def test_requests_at_once() -> None:
    async def main() -> None:
        made = admission(slots=1, at_once=2)
        learn(made, seconds=10, tokens=100)
        first, _ = enter(made, "a"), enter(made, "a")
        with pytest.raises(RateLimited, match="2 requests at once") as caught:
            enter(made, "a")
        assert caught.value.retry_after == pytest.approx(10, abs=1)
        enter(made, "b")
        made.leave(first)
        enter(made, "a")

    go(main)


def test_whatever_happens_no_slot_is_lost() -> None:
    async def main() -> None:
        dice = random.Random(7)
        made = admission(slots=3, limit=10)
        held: list[Ticket] = []
        for _ in range(3000):
            if dice.random() < 0.55 or not held:
                with contextlib.suppress(Overloaded):
                    held.append(enter(made, dice.choice("abc"), deadline=time.monotonic() + dice.choice([0.001, 100])))
            else:
                ticket = held.pop(dice.randrange(len(held)))
                if dice.random() < 0.3:
                    ticket.granted.cancel()
                made.leave(ticket, finished=dice.random() < 0.5)
            assert made.running <= 3 and made.waiting <= 10
            assert made.running == 3 or made.waiting == 0
        for ticket in held:
            made.leave(ticket)
        assert (made.running, made.waiting, made._waiting, dict(made._running_of)) == (0, 0, {}, {})

    go(main)
