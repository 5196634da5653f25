"""What agents ask a router for, through HTTP: hand-offs of an orchestrator, and plan classes of their own.

    python benchmarks/orchestrator.py handoffs HELD-OUT.jsonl [--calls 40]
    python benchmarks/orchestrator.py classes HELD-OUT.jsonl [--calls 100]

`handoffs` is a graph (LangGraph) whose first node asks with `ChatOpenAI.bind_tools` which of three specialists gets a
request; each is a tool of sixteen required arguments. `classes` asks with OpenAI's client for ten plan classes in turn.
Each call gets one row of the file (`prompt`, as `router-backend train` reads it) and a budget. A row of the output is
one call; the sums follow: complete and valid, rules kept, seconds by the clock, and seconds of a processor that the
server used, which on a quiet machine with `THREADS=1` is nearly the same. Checkpoints by MODEL_REPO: embedded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import psutil
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import SecretStr

from router_backend.jsonl import read_values
from router_backend.plan.rules import findings_of
from router_backend.plan.schema import KEYS
from router_backend.settings import load_settings
from tests.fakes.handoffs import HANDOFFS, NAMES
from tests.fakes.own_plans import OWN
from tests.fakes.running import Process, process

SYSTEM = """\
You coordinate three agents: general_agent_handoff for research and writing, code_agent_handoff for programs,
math_agent_handoff for proofs and calculations. Hand each request to the agent that should begin."""
WALL = 8.0  # seconds, after which such an orchestrator goes on without an answer
PATIENCE = 600.0


@dataclass(frozen=True)
class Outcome:
    """One call. `fault` says what is wrong with its answer; `tokens` are those of the answer."""

    tokens: int
    fault: str | None
    broken: bool


Ask = Callable[[int, str], Outcome]


def handoffs(base: str, budget: int) -> Ask:
    model = ChatOpenAI(
        base_url=base,
        api_key=SecretStr("none"),
        model="router",
        temperature=0,
        max_tokens=budget,  # type: ignore[call-arg]
        max_retries=0,
        timeout=PATIENCE,
    ).bind_tools(HANDOFFS, parallel_tool_calls=True)

    def orchestrate(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke([SystemMessage(SYSTEM), *state["messages"]])]}

    def called(state: MessagesState) -> str:
        last = state["messages"][-1]
        return str(last.tool_calls[0]["name"]) if isinstance(last, AIMessage) and last.tool_calls else END

    def taken(state: MessagesState) -> dict[str, Any]:
        last = state["messages"][-1]
        assert isinstance(last, AIMessage)
        return {"messages": [ToolMessage("taken", tool_call_id=call["id"]) for call in last.tool_calls]}

    graph = StateGraph(MessagesState)
    graph.add_node("orchestrator", orchestrate)
    graph.add_edge(START, "orchestrator")
    graph.add_conditional_edges("orchestrator", called, [*NAMES, END])
    for name in NAMES:
        graph.add_node(name, taken)
        graph.add_edge(name, END)
    compiled = graph.compile()

    def ask(_: int, query: str) -> Outcome:
        answer = compiled.invoke({"messages": [HumanMessage(query)]})["messages"][1]
        tokens = answer.usage_metadata["output_tokens"]
        if answer.invalid_tool_calls or not answer.tool_calls:
            return Outcome(tokens, "no complete call", broken=True)
        arguments = answer.tool_calls[0]["args"]
        schema = HANDOFFS[0]["function"]["parameters"]
        return _judged(tokens, budget, arguments, [f"/{each}" for each in NAMES], schema)

    return ask


def classes(base: str, budget: int) -> Ask:
    client = openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=PATIENCE)
    tools = load_settings().tools

    def ask(number: int, query: str) -> Outcome:
        wanted = OWN[number % len(OWN)]
        answer = client.chat.completions.parse(
            model="router", messages=[{"role": "user", "content": query}], response_format=wanted, max_tokens=budget
        )
        assert answer.usage is not None
        tokens, parsed = answer.usage.completion_tokens, answer.choices[0].message.parsed
        if parsed is None:
            return Outcome(tokens, "nothing that could be parsed", broken=True)
        value = parsed.model_dump(exclude_unset=True)
        return _judged(tokens, budget, value.get("plan", value), tools, None)

    return ask


def _judged(
    tokens: int, budget: int, plan: Mapping[str, Any], tools: list[str] | tuple[str, ...], schema: dict[str, Any] | None
) -> Outcome:
    """Whether it keeps its schema, its budget and the rules of its plan."""
    wrong = None if schema is None or jsonschema_rs.is_valid(schema, plan) else "it does not keep its schema"
    if tokens > budget:
        wrong = f"{tokens} tokens"
    if wrong:
        return Outcome(tokens, wrong, broken=True)
    findings = findings_of(plan, (name for name in plan if name in KEYS), tools)
    return Outcome(tokens, "; ".join(map(str, findings)) or None, broken=False)


def queries(path: Path) -> Iterator[str]:
    """What stands after the canonical prompt's instructions, in each row."""
    for _, row in read_values(path):
        yield row["prompt"].partition("User query:\n")[2].strip() or row["prompt"]


def busy(server: Process) -> float:
    """Seconds of a processor that the server and what it started have used."""
    root = psutil.Process(server.popen.pid)
    return sum(sum(each.cpu_times()[:2]) for each in (root, *root.children(recursive=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("handoffs", "classes"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--calls", type=int, help="40 hand-offs or 100 classes, where it is not given")
    parser.add_argument("--budget", type=int, help="tokens: 700 for a hand-off, 600 for a class")
    options = parser.parse_args()
    asks, calls, budget = (handoffs, 40, 700) if options.what == "handoffs" else (classes, 100, 600)
    calls, budget = options.calls or calls, options.budget or budget
    texts = list(queries(options.data))
    environment = {"MODEL_REPO": os.environ.get("MODEL_REPO", "embedded"), "THREADS": "1", "PORT": "0"}
    environment["REQUEST_TIMEOUT"] = str(PATIENCE)
    outcomes, walls, processor = [], [], []
    with tempfile.TemporaryDirectory() as folder, process(folder=Path(folder), **environment) as server:
        ask = asks(f"{server.ready()}/v1", budget)
        for number in range(calls):
            start, used = time.monotonic(), busy(server)
            outcome = ask(number, texts[number % len(texts)])
            walls.append(time.monotonic() - start)
            processor.append(busy(server) - used)
            outcomes.append(outcome)
            spent = f"{walls[-1]:6.1f} s {processor[-1]:6.1f} CPU s {outcome.tokens:5} tokens"
            print(f"{number + 1:4} {spent}  {outcome.fault or 'complete, valid, rules kept'}", flush=True)
    tokens = statistics.mean(each.tokens for each in outcomes)
    print(f"{calls} calls of at most {budget} tokens; {tokens:.0f} on the average")
    print(f"complete and valid: {sum(not each.broken for each in outcomes)}")
    print(f"rules kept as well: {sum(each.fault is None for each in outcomes)}")
    for name, seconds in (("by the clock", walls), ("of a processor", processor)):
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        print(f"seconds {name}: {spread}; within {WALL:g}: {sum(each <= WALL for each in seconds)}")


if __name__ == "__main__":
    main()
