"""A router checkpoint on the rows that its training held out, through HTTP; a row of a table for each checkpoint.

    python benchmarks/embedded.py run/held-out.jsonl --train DATA.jsonl --checkpoints embedded,other.gguf --out FOLDER

Starts a server for each, asks for a plan of 600 tokens at temperature 0.2 for each row, scores the answers with
`router-backend evaluate`, and goes on where it was interrupted. `--text`: the raw model's text, without any grammar.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console

from router_backend.client import RouterClient
from router_tools.evaluate.predictions import Prediction, Store, predict_all, predict_with
from router_tools.evaluate.results import Evaluation, ScoredRow, load_thresholds, score
from router_tools.evaluate.rows import GoldRow, read_gold

TOOLS = ("/general-search", "/math", "/code")
HEADER = (
    "checkpoint | plans | whole | rules | thresholds met | route exact (commonest) | texts clipped | "
    "arguments on the subject | tokens | plans/min"
)
_WORD = re.compile(r"[a-z0-9]{4,}")
# Words of nearly every request or plan say nothing of the subject.
_COMMON = frozenset(
    _WORD.findall(
        "with that this from using into such then their have been will must should including ensure each between which "
        "based derive implement analysis analyze method methods code math search general query results following where "
        "compare design research state provide clear clearly python model models mode site both"
    )
)


def on_the_subject(prompt: str, step: str) -> bool:
    """Whether a step's argument shares a content word with the request (words that begin alike count: six letters)."""
    request = prompt.partition("User query:")[2] or prompt
    return bool(_content(request) & _content(step.partition("(")[2]))


def _content(text: str) -> set[str]:
    return {word[:6] for word in _WORD.findall(text.lower()) if word not in _COMMON}


def texts(plan: object) -> int:
    if isinstance(plan, str):
        return 1
    inner = plan.values() if isinstance(plan, dict) else plan if isinstance(plan, list) else ()
    return sum(map(texts, inner))


@contextmanager
def serving(checkpoint: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MODEL_REPO": checkpoint, "PORT": str(port), "HF_HUB_OFFLINE": "1", "REQUEST_TIMEOUT": "3600"}
    command = [sys.executable, "-m", "router_backend.cli", "serve"]
    server = subprocess.Popen(command, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            try:
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def evaluate(checkpoint: str, gold: Sequence[GoldRow], options: argparse.Namespace) -> tuple[Evaluation, float]:
    """The scored answers, and plans a minute, of those that were not there already."""
    sampling = {"max_new_tokens": options.max_new_tokens, "temperature": 0.2, "seed": 0}
    if options.text:
        sampling["output"] = "text"
    store = Store(options.out / f"{Path(checkpoint).stem}{'-text' if options.text else ''}.jsonl")
    had = len(store.load())
    prompts = [row.prompt for row in gold]
    began = time.monotonic()
    with serving(checkpoint) as url, RouterClient(url, timeout=3600) as client:
        found: dict[str, Prediction] = predict_all(
            prompts,
            predict_with(client, sampling),
            store,
            {"checkpoint": checkpoint, **sampling},
            concurrency=options.slots,
            console=Console(stderr=True),
        )
    seconds = time.monotonic() - began
    rows: list[ScoredRow] = [score(row, found[row.prompt], TOOLS) for row in gold]
    result = Evaluation.of(rows, load_thresholds(), source=checkpoint, sampling=dict(sampling))
    return result, 60 * (len(store.load()) - had) / seconds


def row(checkpoint: str, result: Evaluation, pace: float, commonest: float) -> str:
    overall = result.buckets["overall"].scores
    plans = [each for each in result.rows if each.predicted is not None]
    steps = [
        on_the_subject(each.gold.prompt, step)
        for each in plans
        for step in (each.predicted or {}).get("route_plan", ())
        if isinstance(step, str)
    ]
    clipped = sum(len(each.prediction.clipped or ()) for each in plans)
    met = sum(verdict.passed is True for verdict in result.verdicts)
    return (
        f"{Path(checkpoint).name} | {len(result.rows)} | {overall['json_valid']:.0%} | {overall['rules_ok']:.0%} | "
        f"{met} of {len(result.verdicts)} | {overall['route_tools_exact']:.2f} ({commonest:.2f}) | "
        f"{clipped / max(1, sum(texts(each.predicted) for each in plans)):.1%} | "
        f"{sum(steps) / max(1, len(steps)):.1%} of {len(steps)} | "
        f"{result.generation.get('completion_tokens_mean', 0):.0f} "
        f"({result.generation.get('completion_tokens_max', 0):.0f}) | {pace:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--train", type=Path, help="for the commonest route; the held-out rows do not count")
    parser.add_argument("--checkpoints", default="embedded")
    parser.add_argument("--max-new-tokens", type=int, default=600)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("embedded-evaluation"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    gold = read_gold(options.gold, options.limit)
    commonest = usual_route_share(gold, read_gold(options.train)) if options.train else float("nan")
    print(HEADER)
    for checkpoint in options.checkpoints.split(","):
        result, pace = evaluate(checkpoint, gold, options)
        print(row(checkpoint, result, pace, commonest), flush=True)
        missed = [f"{v.threshold.bucket}.{v.threshold.metric}" for v in result.verdicts if v.passed is not True]
        print(f"  missed: {', '.join(missed)}", flush=True)


def usual_route_share(gold: Sequence[GoldRow], every: Sequence[GoldRow]) -> float:
    """How many of the held-out rows have the route that is commonest in the others."""
    held_out = {each.prompt for each in gold}
    routes = [_tools(each) for each in every if each.prompt not in held_out]
    usual = max(set(routes), key=routes.count)
    return sum(_tools(each) == usual for each in gold) / len(gold)


def _tools(gold: GoldRow) -> tuple[str, ...]:
    return tuple(step.partition("(")[0] for step in gold.plan["route_plan"])


if __name__ == "__main__":
    main()
