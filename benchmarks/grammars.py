"""What the grammars cost: building one cold and cached, masks, tokens/s with and without, memory after many plans.

    python benchmarks/grammars.py [built] [masked] [decoded] [remembered] [--data DATA.jsonl]

`masked` walks through reference plans, and needs their file and transformers.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import psutil
from replay import Reference

from router_backend.checkpoints import embedded, ladder
from router_backend.engines.echo import EchoModel
from router_backend.jsonl import read_values
from router_backend.plan import grammar
from router_backend.plan.budget import Costs
from router_backend.plan.prompt import router_prompt
from router_backend.plan.script import PlanScript
from router_backend.plan.write import PlanWriter
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams
from router_backend.writing.grammar import choice, problem_of

ANY_TEXT = "start: TEXT\nTEXT: /(?s:.)*/\n"


def built() -> None:
    """Every kind of grammar of a plan, compiled for the first time and out of the cache."""
    kinds = {
        "text": grammar.text(leads=(" ",)),
        "text, two tools banned": grammar.text(leads=(" ",), banned=("/math", "/general-search")),
        "tag, three taken": grammar.tag(["graph-theory", "persistent-homology", "jax"]),
        "choice": choice(["/general-search(", "/math(", "/code("]),
    }
    for name, text in kinds.items():
        times = []
        for _ in range(50):
            problem_of.cache_clear()
            began = time.perf_counter()
            problem_of(text)
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
        problem_of(text)
        cached = time.perf_counter() - began
        print(f"{name}: cold p50 {1e6 * statistics.median(times):.0f} µs, cached {1e6 * cached:.1f} µs")


def masked(data: Path) -> None:
    """The mask of each token of reference plans at 600 tokens: llguidance and the embedded tokenizer, no model."""
    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
    from transformers import AutoTokenizer

    path = embedded.base()
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    fast = from_tokenizer(tokenizer)
    bits = allocate_token_bitmask(1, fast.vocab_size)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    costs = Costs(lambda text: len(encode(text)), load_settings().tools)
    plans = [json.loads(row["completion"]) for _, row in read_values(data)][::20]
    masks, builds = [], []
    for plan in plans:
        script = PlanScript(600, lambda text: len(encode(text)), costs)
        teacher, stages = Reference(plan, script), script.stages()
        ask = next(stages)
        try:
            while True:
                reply = teacher.reply(ask)
                began = time.perf_counter()
                matcher = LLMatcher(fast, ask.grammar, log_level=0)
                fill_next_token_bitmask(matcher, bits)
                builds.append(time.perf_counter() - began)
                for token in encode(reply.text):
                    if not matcher.consume_token(token):
                        break
                    began = time.perf_counter()
                    fill_next_token_bitmask(matcher, bits)
                    masks.append(time.perf_counter() - began)
                ask = stages.send(reply)
        except StopIteration:
            pass
    for name, times in (("mask", masks), ("grammar and its first mask", builds)):
        times.sort()
        p50, p99 = 1e6 * times[len(times) // 2], 1e6 * times[99 * len(times) // 100]
        print(f"{name}: p50 {p50:.0f} µs, p99 {p99:.0f} µs, {len(times)} times in {len(plans)} plans")


def remembered() -> None:
    """Memory after 10,000 whole plans, each with another budget or query: no weights, but every grammar compiled."""
    words = [line.strip() for line in Path(__file__).read_text("utf-8").split() if line.isalpha()]

    def says(request: GenerateRequest) -> str:
        assert request.grammar is not None
        problem_of(request.grammar)
        dice = random.Random(request.sampling.seed)
        if "CHOICE:" in request.grammar:
            options = request.grammar.partition("CHOICE: ")[2].split(" | ")
            return str(json.loads(dice.choice(options)))
        if "TAG:" in request.grammar:
            return f'tag-{dice.randrange(10**9)}",'
        lead = " " if request.grammar.startswith('start: (" "') else ""
        return lead + " ".join(dice.choices(words, k=dice.randrange(4, 20))) + dice.choice(('",', '"]'))

    model = EchoModel(script=says)
    writer = PlanWriter(model, ("/general-search", "/math", "/code"))
    process = psutil.Process()
    before = 0
    for index in range(11_000):
        if index == 1000:
            before = process.memory_info().rss
        budget = writer.smallest_budget + index % 1800
        request = GenerateRequest("g", router_prompt(f"Add {index}."), SamplingParams(budget, seed=index), "plan")
        list(writer.write(request, lambda: False))
        model.seen.clear()
    after = process.memory_info().rss
    print(f"10,000 plans after 1,000: {(after - before) / 2**20:.1f} MiB more, {problem_of.cache_info()}")


def decoded() -> None:
    """Milliseconds a token with no grammar and with one that forbids nothing that the model says, in turns."""
    settings = load_settings(model_repo="embedded", slots=1)
    model = Loader(settings).model(ladder.Rung(ladder.candidates(settings)[0], "gguf"))
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
    model.close()


def main() -> None:
    parts = {"built": built, "decoded": decoded, "remembered": remembered}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, "masked"], default=list(parts))
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    for name in options.parts:
        parts[name]() if name in parts else masked(options.data)


if __name__ == "__main__":
    main()
