"""calibrate: finds the temperature at which a checkpoint's odds of a plan's first tool come true, and keeps it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from rich.progress import track

from router_backend.decisions import calibration
from router_backend.decisions.calibration import Right
from router_backend.errors import InvalidRequest
from router_backend.types import GenerateRequest, Question, SamplingParams
from router_tools.evaluate.confidence import Confidence, odds_of
from router_tools.evaluate.local import Local
from router_tools.evaluate.rows import read_gold

FEWEST = 20


def calibrate(data: Path, candidate: str, say: Callable[[str], None]) -> float | None:
    """Fits the temperature on rows `{"prompt", "completion"}` and writes it beside the checkpoint; returns it.

    The rows are halved by their prompts' hashes: what is told of "after" is of each half at the temperature of the
    other. What is kept is the temperature of all of them; nothing is, and None returned, where "after" is no better.

    Raises:
        InvalidRequest: a row is wrong, or too few of them begin with a tool of this router.
        LoadError: the checkpoint does not load.
    """
    gold = read_gold(data)
    with closing(Local(candidate, 1)) as local:
        tools = local.settings.tools
        known = [row for row in gold if row.first in tools]
        if len(known) < FEWEST:
            raise InvalidRequest(f"{data} has {len(known)} rows that begin with one of {tools}; {FEWEST} are needed")
        question = Question(("",), tools, plan_budget=local.settings.max_new_tokens)
        rows: list[tuple[str, Right]] = []
        for row in track(known, "asking", transient=True):
            request = GenerateRequest("calibrate", row.prompt, SamplingParams(1), "decision", questions=(question,))
            (odds,) = local.ask(request)[-1].odds
            rows.append((row.prompt, (replace(odds, temperature=1.0), row.first)))  # as the checkpoint makes them
        path = calibration.place(local.place)
    try:
        temperature, before, after = fitted(rows)
    except ValueError as error:
        raise InvalidRequest(f"{data}: {error}") from None
    say(f"before: {before}")
    say(f"after:  {after}")
    if after.surprise >= before.surprise:
        say("nothing is kept: on rows that it was not fitted on, a temperature does not help; more rows may")
        return None
    kept = {"temperature": temperature, "before": asdict(before), "after": asdict(after)}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="ascii")
    say(f"temperature {temperature}, kept in {path}; a server reads it when it loads the checkpoint")
    return temperature


def fitted(rows: Sequence[tuple[str, Right]]) -> tuple[float, Confidence, Confidence]:
    """The temperature of prompts with what was made of them, and how far the probabilities can be trusted.

    As they are, and each half at the other's temperature. Raises ValueError where a half is empty.
    """
    halves: list[list[Right]] = [[], []]
    for prompt, answer in rows:
        halves[hashlib.sha256(prompt.encode()).digest()[0] % 2].append(answer)
    if not all(halves):
        raise ValueError("all rows fall into one half; more rows are needed")
    one, other = halves
    crossed = [*calibration.at(one, calibration.fit(other)), *calibration.at(other, calibration.fit(one))]
    together = [*one, *other]
    before, after = (Confidence.of([(odds_of(odds), right) for odds, right in each]) for each in (together, crossed))
    return round(calibration.fit(together), 4), before, after
