"""The example of docs/agents.md: the graph with the real embedded checkpoint, and each specialist alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.types import Command

from examples import specialists as room
from examples.graph import Graph, Router, graph, parsed
from examples.specialists import Specialist, calculator, python, search
from router_backend.engines.llamacpp import LlamaCppModel
from tests.fakes.running import Kept, Served, served

TASK = """\
How much is 12 * (7 + 5)? Check it with this program, and find the note about tides.
```python
print(sum(12 for _ in range(7 + 5)))
```"""
SAYS = {"/math": "12 * (7 + 5) = 144", "/code": "144", "/general-search": "notes.md: Tides follow the moon."}
THREAD: Any = {"configurable": {"thread_id": "1"}}


@pytest.fixture
def specialists(tmp_path: Path) -> dict[str, Specialist]:
    (tmp_path / "notes.md").write_text("# Notes\n\nTides follow the moon.\n\nBread needs salt.\n", encoding="utf-8")
    (tmp_path / "other.txt").write_text("Nothing of that kind.", encoding="utf-8")
    return {"/math": calculator, "/code": python, "/general-search": search(tmp_path)}


@pytest.fixture(scope="module")
def server(embedded: LlamaCppModel) -> Iterator[Served]:
    with served(Kept(embedded), request_timeout=280) as running:  # type: ignore[arg-type]
        yield running


def built(server: Served, specialists: dict[str, Specialist], sure: float) -> tuple[Graph, Router]:
    router = Router(server.url, sure=sure, budget=300)
    return graph(router, specialists), router


@pytest.mark.real
def test_the_graph_runs_the_steps_of_a_plan_in_its_order(server: Served, specialists: dict[str, Specialist]) -> None:
    running, router = built(server, specialists, sure=0)
    state: Any = running.invoke({"task": TASK}, THREAD)
    router.client.close()
    steps = [parsed(step) for step in state["plan"]["route_plan"]]
    assert [(each.tool, each.step) for each in state["results"]] == steps
    for result in state["results"]:
        assert SAYS[result.tool] in result.text, "each specialist has found what the task holds for it"
    assert state["left"] == [] and all(each in state["answer"] for each in state["plan"]["acceptance_criteria"])


@pytest.mark.real
def test_a_person_chooses_where_the_router_is_not_sure(server: Served, specialists: dict[str, Specialist]) -> None:
    running, router = built(server, specialists, sure=1.1)
    state: Any = running.invoke({"task": TASK}, THREAD)
    router.client.close()
    if state["confidence"] is None:  # it does not say how sure it is: it is believed
        assert "__interrupt__" not in state and state["answer"]
        return
    [question] = state["__interrupt__"]
    assert 0 < question.value["confidence"] < 1.1 and not state.get("results")
    state = running.invoke(Command(resume="/nobody"), THREAD)
    state = running.invoke(Command(resume="/code"), THREAD)
    assert state["results"][0].tool == "/code" and state["answer"]


@pytest.mark.parametrize(
    ("step", "task", "text"),
    [
        ("compute 2 + 3 * 4", "", "2 + 3 * 4 = 14"),
        ("prove it", "is (1 + 2) ** 3 / 2 even?", "(1 + 2) ** 3 / 2 = 13.5"),
        ("prove it", "for 3 cases", "there is nothing to calculate"),
        ("1 / 0", "", "1 / 0 = not a sum (division by zero)"),
        ("9 ** 9 ** 9", "", "9 ** 9 ** 9 = not a sum (the power is too large)"),
        ("(" * 5000 + "1 + 1" + ")" * 5000, "", "not a sum"),
        ("7 + 1; 8 - 2", "", "7 + 1 = 8; 8 - 2 = 6"),
    ],
)
def test_the_calculator_does_sums_and_nothing_else(step: str, task: str, text: str) -> None:
    assert text in calculator(step, task)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print(6 * 7)", "42"),
        ("1 / 0", "ZeroDivisionError"),
        ("while True: pass", "it (failed with code|did not end)"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("while True: print('x' * 10000)", "it failed with code"),
        ("import os; print(sorted(os.environ), os.listdir('.'))", r"\[\]"),
    ],
)
def test_python_runs_within_its_limits(code: str, text: str) -> None:
    said = python("", f"```python\n{code}\n```")
    assert re.search(text, said) and len(said) < 5000


def test_python_that_waits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PATIENCE", 1)
    assert python("```python\nimport time\ntime.sleep(1000)\n```", "") == "it did not end within 1 seconds"


def test_python_without_code_runs_nothing() -> None:
    assert python("check it", "no code here") == "there is no code to run"


def test_search_ranks_paragraphs_by_the_words_they_share(specialists: dict[str, Specialist]) -> None:
    find = specialists["/general-search"]
    assert find("salt in bread", "") == "notes.md: Bread needs salt."
    assert find("quantum gravity", "") == "none of the texts is about it"


@pytest.mark.parametrize("step", ["no step", "", "code(x)"])
def test_what_is_no_step_is_told(step: str) -> None:
    with pytest.raises(ValueError, match="not a step"):
        parsed(step)
