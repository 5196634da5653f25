"""Row 24, short: what `make soak` watches for a quarter of an hour."""

from __future__ import annotations

import gc
import random
import threading

import httpx
import psutil
import pytest

from tests.fakes.running import in_threads, served, until


@pytest.mark.slow
def test_row_24_threads_handles_and_slots_stay_as_they_are() -> None:
    """Different prompts and budgets from eight clients, one in five of whom leaves."""
    me = psutil.Process()
    with served(queue_limit=64) as server:

        def client(index: int) -> int:
            dice, answered = random.Random(index), 0
            with httpx.Client(base_url=server.url, timeout=30) as http:
                for _ in range(12):
                    body = {
                        "prompt": " ".join(str(dice.random()) for _ in range(dice.randint(1, 30))),
                        "max_new_tokens": dice.choice([40, 205, 400, 600]),
                        "output": dice.choice(["text", "text", "plan"]),
                        "stream": dice.random() < 0.5,
                    }
                    try:
                        limit = 0.01 if dice.random() < 0.2 else 30
                        answered += http.post("/v1/generate", json=body, timeout=limit).status_code == 200
                    except httpx.TimeoutException:
                        continue
            return answered

        def more_than(before: tuple[int, int]) -> int:
            """Handles or threads that came, of which there would be about a hundred if each request left one."""
            until(lambda: server.idle)
            gc.collect()
            return max(me.num_fds() - before[0], threading.active_count() - before[1])

        in_threads(8, client)
        until(lambda: server.idle)
        before = me.num_fds(), threading.active_count()
        answered = sum(in_threads(8, client))
        assert answered > 50
        until(lambda: more_than(before) < 8)
        assert server.service.health().waiting == 0
        service = server.service
        assert service.metrics.of.cache_info().currsize < 40 and len(service.admission._running_of) == 0
