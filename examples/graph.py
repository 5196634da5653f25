"""A graph (LangGraph) that asks a router for a plan and runs its steps: each with a specialist, in the plan's order.

    python -m examples.graph --texts FOLDER "What is 12 * (7 + 5)? Which of our notes are about it?"

    START -> router -> dispatch -> /math | /code | /general-search -> dispatch -> … -> review -> END
                          |  ^
                          v  |
                         doubt       where the router is less sure than it should be, a person chooses

It needs `pip install langgraph httpx` and a router at --url.
"""

from __future__ import annotations

import argparse
import operator
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import httpx
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt

from examples.specialists import Specialist, calculator, python, search

_STEP = re.compile(r"\s*(/[\w-]+)\s*\(?(.*?)\)?\s*\Z", re.DOTALL)
_PATIENCE = 600.0  # seconds for a plan


class Result(NamedTuple):
    """What came of one step."""

    tool: str
    step: str
    text: str


class State(TypedDict, total=False):
    """`confidence` is the router's probability of the first tool; None where the server does not tell it."""

    task: str
    plan: dict[str, Any]
    confidence: float | None
    left: list[str]
    results: Annotated[list[Result], operator.add]
    answer: str


Graph = CompiledStateGraph[State, None, State, State]


class Router:
    """The server, and how sure it must be: below `sure` a person is asked."""

    def __init__(self, url: str, key: str = "none", *, sure: float = 0.5, budget: int = 600) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=_PATIENCE)
        self.sure, self.budget = sure, budget

    def plan(self, state: State) -> State:
        """The first node. Raises httpx.HTTPStatusError."""
        answer = self.client.post("/v1/plan", json={"query": state["task"], "max_new_tokens": self.budget})
        answer.raise_for_status()
        plan = answer.json()["plan"]
        told = answer.headers.get("x-router-confidence")
        return {"plan": plan, "left": plan["route_plan"], "confidence": None if told is None else float(told)}


def graph(router: Router, specialists: Mapping[str, Specialist]) -> Graph:
    """The graph, compiled. `specialists`: what does the steps of each tool, such as `/math`."""

    def doubt(state: State) -> State:
        """Waits for a person, who names the tool to begin with. Nothing of the plan has run yet."""
        first, step = parsed(state["left"][0])
        question = {"task": state["task"], "first": first, "confidence": state["confidence"], "tools": [*specialists]}
        while (chosen := interrupt(question)) not in specialists:
            pass  # it asks again
        return {"left": [f"{chosen}({step})", *state["left"][1:]], "confidence": None}

    def dispatch(state: State) -> State:
        return {}

    def following(state: State) -> str:
        """Who is next: the tool of the first step that is left."""
        confidence = state["confidence"]
        if confidence is not None and confidence < router.sure and not state.get("results"):
            return "doubt"
        return parsed(state["left"][0])[0] if state["left"] else "review"

    def runs(tool: str) -> Any:  # noqa: ANN401 - a node, as LangGraph takes it
        def run(state: State) -> State:
            step = parsed(state["left"][0])[1]
            return {"results": [Result(tool, step, specialists[tool](step, state["task"]))], "left": state["left"][1:]}

        return run

    built = StateGraph(State)
    built.add_node("router", router.plan)
    built.add_node("dispatch", dispatch)
    built.add_node("doubt", doubt)
    built.add_node("review", review)
    for tool in specialists:
        built.add_node(tool, runs(tool))
        built.add_edge(tool, "dispatch")
    built.add_edge(START, "router")
    built.add_edge("router", "dispatch")
    built.add_edge("doubt", "dispatch")
    built.add_conditional_edges("dispatch", following, [*specialists, "doubt", "review"])
    built.add_edge("review", END)
    return built.compile(checkpointer=InMemorySaver())


def parsed(step: str) -> tuple[str, str]:
    """A step's tool and what it is to do. Raises ValueError where it is none."""
    found = _STEP.match(step)
    if found is None:
        raise ValueError(f"not a step of a route: {step!r}")
    return found[1], found[2]


def review(state: State) -> State:
    """The last node: what came of each step, and what the plan says that it is judged by."""
    done = [f"{number}. {each.tool}: {each.text}" for number, each in enumerate(state["results"], 1)]
    criteria = [f"- {each}" for each in state["plan"]["acceptance_criteria"]]
    return {"answer": "\n".join([*done, "", "It is good enough if:", *criteria])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--key", default="none")
    parser.add_argument("--texts", type=Path, default=Path("docs"))
    options = parser.parse_args()
    specialists = {"/math": calculator, "/code": python, "/general-search": search(options.texts)}
    built = graph(Router(options.url, options.key), specialists)
    thread: Any = {"configurable": {"thread_id": uuid.uuid4().hex}}
    state: Any = built.invoke({"task": options.task}, thread)
    while "__interrupt__" in state:
        chosen = input(f"{state['__interrupt__'][0].value}\nWho begins? ")
        state = built.invoke(Command(resume=chosen.strip()), thread)
    print(state["answer"])


if __name__ == "__main__":
    main()
