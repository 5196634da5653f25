"""Replays reference plans as the checkpoint's own words: what does a budget cost them?

No model runs, only its tokenizer: each stage is answered with what the reference plan has at that place. Prints, for
each budget, the share of texts that were clipped and what became of the items.

    python benchmarks/replay.py DATA.jsonl [BUDGET ...]
"""

from __future__ import annotations

import json
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from router_backend.checkpoints import ladder
from router_backend.jsonl import read_values
from router_backend.plan.budget import Costs
from router_backend.plan.rules import QA, tool_of, validate
from router_backend.plan.script import PlanScript
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.writing.clip import escape
from router_backend.writing.stages import Ask, Reply

_PLACE = re.compile(r"([\w.]+)(?:\[(\d+)\])?")


class Reference:
    """Answers asks out of a reference plan."""

    def __init__(self, plan: dict[str, Any], script: PlanScript) -> None:
        self._plan = plan
        self._script = script
        self._todo = list(plan["todo_list"])

    def reply(self, ask: Ask) -> Reply:
        if "CHOICE" in ask.grammar:
            return Reply(self._choose(ask), ended=True)
        place = _PLACE.fullmatch(ask.field)
        assert place is not None
        text, more = self._text(place[1], int(place[2] or 0))
        said = escape(text) + ('",' if more else '"]')
        limited = self._cut(said, ask.max_tokens)
        return Reply(limited, ended=limited == said)

    def _text(self, field: str, index: int) -> tuple[str, bool]:
        if field == "route_plan":
            steps = self._plan["route_plan"]
            step = steps[min(index, len(steps) - 1)]
            return step.partition("(")[2], index + 1 < len(steps)
        if field == "todo_list":
            who = self._script.text.rpartition("- [ ] ")[2].removesuffix(":")
            item = next((item for item in self._todo if self._who(item) == who), None)
            if item is None:
                return " what is left", True
            self._todo.remove(item)
            return " " + item.partition(":")[2].strip(), True
        if field == "handoff_plan":
            tail = str(self._plan[field]).rpartition(" -> ")[2]
            return " " + tail.partition(QA)[2].strip(), False
        value = self._plan["metrics"][field[8:]] if field.startswith("metrics.") else self._plan[field]
        if isinstance(value, str):
            return value, False
        text = value[min(index, len(value) - 1)]
        if field == "thinking_outline":
            text = " " + re.sub(r"^\d+\.\s*", "", text)
        return text, index + 1 < len(value)

    def _choose(self, ask: Ask) -> str:
        options = [json.loads(each) for each in re.findall(r'"(?:[^"\\]|\\.)*"', ask.grammar)]
        if ask.field == "difficulty":
            return str(self._plan["difficulty"])
        if ask.field == "metrics":
            return str(options[0])
        if ask.field == "todo_list":
            wanted = [who for item in self._todo if (who := self._who(item))]
            ranked = sorted(options, key=lambda option: wanted.index(option[1:-1]) if option[1:-1] in wanted else 99)
            return str(ranked[0]).removesuffix(":")
        steps = self._plan["route_plan"]
        if options[0].startswith('"'):
            return '",' if len(self._script.route) < len(steps) else '"]'
        tool = tool_of(steps[min(len(self._script.route), len(steps) - 1)])
        return str(tool) if f"{tool}(" in options else str(options[0]).removesuffix("(")

    def _who(self, item: str) -> str | None:
        match = re.match(r"- \[ \] ([^:]+):\s*\S", item)
        return match[1].replace("Router", "router") if match else None

    def _cut(self, text: str, tokens: int) -> str:
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._script.count(text[:middle]) <= tokens else (low, middle - 1)
        return text[:low]


def main() -> None:
    data, *budgets = sys.argv[1:]
    settings = load_settings(model_repo="embedded")
    model = Loader(settings).model(ladder.Rung(ladder.candidates(settings)[0], "gguf"))
    count = lru_cache(maxsize=200_000)(model.count_tokens)
    costs = Costs(count, settings.tools)
    plans = [json.loads(row["completion"]) for _, row in read_values(Path(data))][::6]
    print(f"{len(plans)} plans, smallest budget {costs.smallest}")
    for limit in [int(each) for each in budgets] or [300, 400, 600, 800, 1000, 1200, 1400, 2048]:
        clipped = texts = broken = over = used = 0
        items: dict[str, int] = {}
        for plan in plans:
            script = PlanScript(limit, count, costs)
            teacher = Reference(plan, script)
            stages = script.stages()
            try:
                ask = next(stages)
                while True:
                    ask = stages.send(teacher.reply(ask))
            except StopIteration:
                pass
            out = json.loads(script.text)
            broken += bool(validate(out, settings.tools)[1])
            tokens = count(script.text)
            used += tokens
            over += tokens > limit
            clipped += len(script.clipped)
            for key, value in out.items():
                size = len(value) if isinstance(value, list) else 1
                texts += size + (1 if key == "metrics" else 0)
                items[key] = items.get(key, 0) + size
        means = " ".join(f"{key}={value / len(plans):.1f}" for key, value in items.items() if value != len(plans))
        print(
            f"{limit:5} tokens: clipped {clipped / texts:.3f} of the texts, used {used / len(plans):.0f}, "
            f"broken {broken}, over {over}; items {means}"
        )


if __name__ == "__main__":
    main()
