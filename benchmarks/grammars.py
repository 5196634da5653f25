"""What the grammars cost: building one cold and cached, tokens/s with and without, memory after many different ones.

python benchmarks/grammars.py
"""

from __future__ import annotations

import statistics
import time

import psutil

from router_backend import engines, ladder
from router_backend.engines.llamacpp import check_grammar
from router_backend.plan import grammar
from router_backend.plan.prompt import router_prompt
from router_backend.plan.write import PlanWriter
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams

ANY_TEXT = "start: TEXT\nTEXT: /(?s:.)*/\n"


def built() -> None:
    """Every kind of grammar of a plan, compiled for the first time and out of the cache; then 10,000 others."""
    kinds = {
        "text": grammar.text(lead=" "),
        "text, two tools banned": grammar.text(lead=" ", banned=("/math", "/general-search")),
        "tag, three taken": grammar.tag(["graph-theory", "persistent-homology", "jax"]),
        "choice": grammar.choice(["/general-search(", "/math(", "/code("]),
    }
    for name, text in kinds.items():
        times = []
        for _ in range(50):
            check_grammar.cache_clear()
            began = time.perf_counter()
            check_grammar(text)
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        check_grammar(text)
        cached = time.perf_counter() - began
        print(f"{name}: cold p50 {1e6 * statistics.median(times):.0f} µs, cached {1e6 * cached:.1f} µs")
    process = psutil.Process()
    check_grammar.cache_clear()
    for index in range(1000):
        check_grammar(grammar.tag([f"warm-{index}"]))
    before = process.memory_info().rss
    for index in range(10_000):
        check_grammar(grammar.tag([f"tag-{index}", f"other-{index * 7}"]))
    after = process.memory_info().rss
    print(
        f"10,000 different grammars after 1,000: {(after - before) / 2**20:.1f} MiB more, {check_grammar.cache_info()}"
    )


def decoded() -> None:
    """Milliseconds a token with no grammar and with one that forbids nothing that the model says, in turns."""
    settings = load_settings(model_repo="embedded", slots=1)
    model = engines.load(ladder.Rung(ladder.candidates(settings)[0], "gguf"), settings)
    speeds: dict[str, list[float]] = {"none": [], "any text": [], "plan text": []}
    rules = {"none": None, "any text": ANY_TEXT, "plan text": grammar.text()}
    for turn in range(9):
        for name, text in rules.items():
            sampling = SamplingParams(128, temperature=0.7, seed=turn)
            request = GenerateRequest("g", "Write about the sea, on one line.", sampling, grammar=text)
            last = list(model.generate(request, lambda: False))[-1]
            if turn and last.usage.completion_tokens > 20:
                speeds[name].append(1000 * last.timings.decode_seconds / (last.usage.completion_tokens - 1))
    for name, values in speeds.items():
        print(f"decode with grammar {name}: p50 {statistics.median(values):.2f} ms a token, {len(values)} runs")
    process = psutil.Process()
    writer = PlanWriter(model, settings.tools)
    budgets = [writer.smallest_budget + extra for extra in range(20)]
    for budget in budgets[:4]:
        plan(writer, budget)
    before = process.memory_info().rss
    for budget in budgets:
        plan(writer, budget)
    after = process.memory_info().rss
    print(f"{len(budgets)} plans, each with another budget and query: {(after - before) / 2**20:.1f} MiB more")
    model.close()


def plan(writer: PlanWriter, budget: int) -> None:
    sampling = SamplingParams(budget, seed=budget)
    request = GenerateRequest("g", router_prompt(f"Add {budget} and {budget * 3}."), sampling, "plan")
    list(writer.write(request, lambda: False))


if __name__ == "__main__":
    built()
    decoded()
