"""Forward passes per token of a plan, with each source of free tokens on and off.

    python benchmarks/passes.py replay DATA.jsonl --checkpoint FOLDER

`replay`: reference plans as the model's own choices; no model runs. The real loop, grammars and stages are driven by a
runner that gives all probability to the reference plan's next token. Where these plans have a form that is never served
(notes inside the hand-off's chain, several to-dos of the router's, objects as metrics), they are brought into the one
that is. History comes from one part of the plans; the rest are measured.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from router_backend.engines.transformers.drafts import Drafter, NgramTable
from router_backend.engines.transformers.model import DecodedModel
from router_backend.engines.transformers.tokens import Tokens
from router_backend.errors import PlanError
from router_backend.jsonl import read_values
from router_backend.plan.rules import QA, tool_of, validate
from router_backend.plan.write import PlanWriter
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, ModelInfo, SamplingParams

PARTS: dict[str, dict[str, Any]] = {
    "plain": {"forcing": False, "draft_tokens": 0},
    "forced tokens": {"draft_tokens": 0},
    "prompt lookup": {"forcing": False, "history_bits": 0},
    "forced and lookup": {"history_bits": 0},
    "history alone": {"lookup": False},
    "all": {},
}


def as_served(completion: str) -> str:
    """The reference plan in the form that every served plan has, see above."""
    plan = json.loads(completion)
    route = [str(tool_of(step)) for step in plan["route_plan"]]
    _, found, tail = plan["handoff_plan"].rpartition(QA)
    plan["handoff_plan"] = " -> ".join([*route, QA]) + (tail if found and tail.startswith((" ", ". ")) else "")
    *items, last = plan["todo_list"]
    items = [item for item in items if re.match(r"- \[ \] (/[a-z-]+):", item) and item[6:].partition(":")[0] in route]
    plan["todo_list"] = [*items, re.sub(r"^- \[ \] /?[Rr]outer( QA)?:", f"- [ ] {QA}:", last)]
    plan["metrics"] = {key: value for key, value in plan["metrics"].items() if not isinstance(value, dict)}
    return json.dumps(plan, ensure_ascii=False)


class Teacher:
    """A runner that wants one text, whatever the sequence was tokenised like."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._ids: list[int] = []
        self._first = 0
        self.begin([], "")

    def begin(self, prompt: Sequence[int], text: str) -> None:
        self._prompt, self._text = len(prompt), text.encode()
        self._next: dict[int, int] = {}
        offset = 0
        for token in self._tokens.encode(text):
            self._next[offset] = token
            offset += len(self._tokens.bytes_of([token]))

    def row(self, sequence: Sequence[int]) -> NDArray[np.float32] | None:
        place = len(sequence) - 1
        if not self._first <= place < len(self._ids) or self._ids[: place + 1] != sequence:
            return None
        offset = len(self._tokens.bytes_of(sequence[self._prompt :]))
        row = np.zeros(self._tokens.grammar.vocab_size, np.float32)
        if offset < len(self._text):
            token = self._next.get(offset)
            if token is None:
                token = self._tokens.encode(self._text[offset:].decode(errors="ignore"))[0]
            row[token] = 100.0
        return row

    def cached(self, sequence: Sequence[int]) -> int:
        return 0

    def run(self, sequence: Sequence[int], draft: Sequence[int], cancelled: Callable[[], bool]) -> int:
        self._ids, self._first = [*sequence, *draft], len(sequence) - 1
        return 1

    def turn_to(self, owner: str) -> None:
        """Nothing: it keeps no caches."""

    def forget(self) -> None:
        self._ids = []


def replay(options: argparse.Namespace) -> None:
    settings = load_settings()
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    tokens = Tokens(tokenizer, [], vocabulary=len(tokenizer))
    rows = [row for _, row in read_values(options.data)]
    rows = [{**row, "completion": as_served(row["completion"])} for row in rows]
    rows = [row for row in rows if not validate(json.loads(row["completion"]), settings.tools)[1]]
    held = rows[:: max(1, len(rows) // options.rows)][: options.rows]
    known = [row["completion"] for row in rows if row not in held][: options.history]
    print(f"{len(held)} plans replayed, history of {len(known)} others, budget {options.budget}")
    print("parts | history | plans as the reference | tokens | passes/token | drafted/token | accepted/token")
    for name, parts in PARTS.items():
        for past in ([], known) if parts.get("history_bits") is None and parts.get("draft_tokens") is None else ([],):
            if name == "history alone" and not past:
                continue
            teacher = Teacher(tokens)
            info = ModelInfo("replay", "cpu", "transformers", 16_384)
            model = DecodedModel(info, tokens, teacher, remembered=past, **{"draft_tokens": options.draft, **parts})
            if not options.grow:
                model.remember = lambda text, owner="": None  # type: ignore[method-assign] # what is measured stays unseen
            writer = PlanWriter(model, settings.tools)
            passes = used = same = drafted = accepted = 0
            for row in held:
                sampling = SamplingParams(max_new_tokens=options.budget, temperature=0)
                request = GenerateRequest("replay", row["prompt"], sampling, "plan")
                teacher.begin(tokens.wrap(row["prompt"]), row["completion"])
                try:
                    chunks = list(writer.write(request, lambda: False))
                except PlanError:  # it has something that no served plan has, and the teacher lost its place
                    continue
                text, last = "".join(chunk.text for chunk in chunks), chunks[-1]
                assert last.budget is not None
                if text != row["completion"]:
                    continue
                same += 1
                used += last.budget.used
                passes += last.timings.forward_passes
                drafted += last.timings.drafted
                accepted += last.timings.accepted
            print(
                f"{name} | {len(past)} | {same} | {used / same:.0f} | {passes / used:.3f} | "
                f"{drafted / used:.2f} | {accepted / used:.2f}",
                flush=True,
            )
    bound(tokens, held, known)


def bound(tokens: Tokens, held: list[dict[str, Any]], known: list[str]) -> None:
    """The share of tokens that the same tables guess wrongly: each costs a pass, whatever the drafts are made of."""
    for past in ([], known):
        history = NgramTable(21)
        for text in past:
            history.learn(tokens.encode(text))
        wrong = total = 0
        for row in held:
            drafter = Drafter(history)
            sequence = tokens.wrap(row["prompt"])
            for token in tokens.encode(row["completion"]):
                wrong += drafter.propose(sequence, 1) != [token]
                total += 1
                sequence.append(token)
        print(f"bound of these tables, no stages, endless drafts | {len(past)} | {len(held)} | | {wrong / total:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["replay"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint (replay needs its tokenizer alone)")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--history", type=int, default=394)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--draft", type=int, default=16, help="tokens of a draft at most")
    parser.add_argument("--grow", action="store_true", help="what is measured goes into the history too, as in service")
    options = parser.parse_args()
    replay(options)


if __name__ == "__main__":
    main()
