"""Whole plans or fragments? Our budgeted plans beside the bare model and llama.cpp's own JSON-schema mode.

Same weights, sampling and machine; each mode answers the same prompts, `--slots` at once. A row is one answer; the
table at the end has the shares. The modes take turns, so that a noisy machine harms them alike.

    python benchmarks/plans.py DATA.jsonl --model embedded --modes plan:600,text:600,schema:600 --rows 64
    UPSTREAM_API_KEY=… python benchmarks/plans.py DATA.jsonl --model http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from router_backend.checkpoints import ladder
from router_backend.engines.base import LocalModel
from router_backend.engines.llamacpp import LlamaCppModel
from router_backend.errors import PlanError
from router_backend.jsonl import read_values
from router_backend.plan.rules import validate
from router_backend.plan.schema import Plan
from router_backend.plan.write import PlanWriter
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.types import Chunk, GenerateRequest, SamplingParams


def schema_mode(model: LocalModel, request: GenerateRequest, slot: int) -> Iterator[Chunk]:
    """The engine's own structured output: the plan's JSON schema, and the limit cuts where it cuts."""
    if not isinstance(model, LlamaCppModel):
        return model.generate(replace(request, schema=json.dumps(Plan.model_json_schema())), lambda: False, slot)
    body, tokens = model._body(request, slot)
    return model._answer({**body, "json_schema": Plan.model_json_schema()}, tokens, request, lambda: False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--modes", default="plan:600,text:600,schema:600,schema:1400")
    parser.add_argument("--rows", type=int, default=64, help="prompts, evenly spread over the file")
    parser.add_argument("--part", default="1/1", help="i/n: every n-th of these prompts, from the i-th")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("plans.jsonl"))
    options = parser.parse_args()

    settings = load_settings(model_repo=options.model, slots=options.slots)
    loader = Loader(settings)
    model = loader.model(loader.rungs(ladder.candidates(settings)[0])[0])
    writer = PlanWriter(model, settings.tools)
    prompts = [row["prompt"] for _, row in read_values(options.data)]
    chosen = [prompts[index * len(prompts) // options.rows] for index in range(options.rows)]
    part, _, parts = options.part.partition("/")
    chosen = chosen[int(part) - 1 :: int(parts)]
    free: SimpleQueue[int] = SimpleQueue()
    for slot in range(options.slots):
        free.put(slot)

    def run(mode: str, index: int) -> dict[str, Any]:
        kind, _, limit = mode.partition(":")
        sampling = SamplingParams(max_new_tokens=int(limit), seed=index)
        request = GenerateRequest(f"{mode}-{index}", chosen[index], sampling, "plan" if kind == "plan" else "text")
        slot = free.get()
        try:
            began = time.monotonic()
            if kind == "plan":
                chunks = list(writer.write(request, lambda: False, slot))
            elif kind == "schema":
                chunks = list(schema_mode(model, request, slot))
            else:
                chunks = list(model.generate(request, lambda: False, slot))
        except PlanError as error:  # what a client gets as a 502
            chunks = [Chunk(str(error))]
        finally:
            free.put(slot)
        seconds = time.monotonic() - began
        text = "".join(chunk.text for chunk in chunks)
        last = chunks[-1]
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        plan, findings = validate(value, settings.tools)
        return {
            "mode": mode,
            "row": index,
            "json": value is not None,
            "schema": plan is not None,
            "rules": plan is not None and not findings,
            "tokens": model.count_tokens(text),
            "seconds": seconds,
            "passes": last.timings.forward_passes,
            "texts": sum(1 for _ in _texts(value)) if plan is not None else 0,
            "clipped": len(last.budget.clipped) if last.budget else 0,
            "budget": asdict(last.budget) if last.budget else None,
            "text": text,
        }

    modes = options.modes.split(",")
    spent = dict.fromkeys(modes, 0.0)
    with options.out.open("w", encoding="utf-8") as out, ThreadPoolExecutor(options.slots) as pool:
        rows: list[dict[str, Any]] = []
        block = 4 * options.slots if len(modes) > 1 else len(chosen)
        for start in range(0, len(chosen), block):
            indices = range(start, min(start + block, len(chosen)))
            for mode in modes:
                began = time.monotonic()
                for row in pool.map(lambda index, mode=mode: run(mode, index), indices):
                    rows.append(row)
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
                    out.flush()
                spent[mode] += time.monotonic() - began
            print(f"{indices[-1] + 1} of {len(chosen)} prompts", flush=True)
    print("mode | plans | JSON | schema | rules | tokens (max) | plans/min | passes/token | clipped texts")
    for mode in modes:
        mine = [row for row in rows if row["mode"] == mode]
        total = len(mine)
        tokens = [row["tokens"] for row in mine]
        texts = sum(row["texts"] for row in mine)
        share = f"{sum(row['clipped'] for row in mine) / texts:.3f}" if texts else "-"
        counts = " | ".join(str(sum(row[key] for row in mine)) for key in ("json", "schema", "rules"))
        print(
            f"{mode} | {total} | {counts} | {sum(tokens) / total:.0f} ({max(tokens)}) | "
            f"{60 * total / spent[mode]:.1f} | {sum(row['passes'] for row in mine) / max(1, sum(tokens)):.2f} | {share}"
        )
    model.close()


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


if __name__ == "__main__":
    main()
