"""How cost grows: seconds and memory of the embedded default against five sizes, and where each of them breaks first.

    python benchmarks/growth.py [budget|prompt|clients|tools|history ...] [--out DIR] [--quick]

Each part starts a server of its own with the default settings, and measures points that double, until one is refused.
No prompt comes twice: the prefix cache has the instructions alone. Writes growth.json, growth.md and growth.png into
DIR (default: .venv/growth). A run that was interrupted goes on with the parts that DIR lacks; parts that are named are
measured anew; another commit or machine begins all of them anew. `history` needs Chromium, as page.py does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import httpx
import psutil
from curves import PANELS, Result, Row, figure, picture, report
from page import REQUEST, metric
from peers.processes import ROOT, machine, peak
from playwright.sync_api import Browser, Error, Page, Response, sync_playwright
from serving import generate, server, until_ok

sys.path.insert(0, str(ROOT))
from router_backend.plan.prompt import router_prompt
from router_tools.evaluate.rows import BUNDLED, GoldRow, read_gold
from tests.fakes.browser import launch

REPEATS, PATIENCE = 3, 30.0  # a point is measured so often, and no further time after so many seconds
SILENCE = 120.0  # seconds until a page that shows no list is given up
BUDGET = 600
SENTENCE = "The sea is calm and the lamp is lit. "  # ten tokens
BESIDE = 40  # tokens of a prompt beside its sentences
LISTED = 100  # options that a list of Gradio shows until something is typed
WIDE = 64 << 20  # MAX_BODY_BYTES, to see what the page does beyond the default's 1 MiB


class Refused(Exception):
    """What a client was told in place of an answer. The status is 0 where it was no server that said so."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.told: Row = {"status": status, "code": code, "message": message}


def answered(answer: httpx.Response) -> Row:
    """Raises Refused."""
    if answer.is_error:
        error = answer.json()["error"]
        raise Refused(answer.status_code, error["code"], error["message"])
    return dict(answer.json())


Series = Callable[[Sequence[int], Callable[[int, int], Row], Callable[[], Row]], Result]


def series(
    points: Sequence[int],
    once: Callable[[int, int], Row],
    memory: Callable[[], Row],
    *,
    quick: bool = False,
) -> Result:
    """Medians of `once(point, turn)`, and the peaks of its processes, up to the first point that is refused."""
    rows: list[Row] = []
    for point in (*points[:-1:2], *points[-1:]) if quick else points:
        found: list[Row] = []
        began = time.monotonic()
        try:
            while len(found) < (1 if quick else REPEATS) and (not found or time.monotonic() - began < PATIENCE):
                found.append(once(point, len(found)))
        except Refused as refused:
            return {"rows": rows, "broke": [{"x": point, **refused.told}]}
        medians = {name: statistics.median(each[name] for each in found) for name in found[0]}
        rows.append({"x": point, **medians, "times": len(found), **memory()})
        print("  " + ", ".join(f"{name} {figure(value)}" for name, value in rows[-1].items()), flush=True)
    return {"rows": rows, "broke": []}


@contextlib.contextmanager
def measured(**variables: str) -> Iterator[tuple[str, Callable[[], Row]]]:
    """A server's address, and what tells how much it and its llama.cpp held at the most since it was last asked."""

    def memory() -> Row:
        held = {"server_mb": [serving], "llama_mb": serving.children()}
        peaks = {name: sum(map(peak, processes)) / 1e6 for name, processes in held.items()}
        for each in (serving, *held["llama_mb"]):
            with contextlib.suppress(OSError):  # elsewhere than on Linux
                Path(f"/proc/{each.pid}/clear_refs").write_text("5")
        return peaks

    before = {*psutil.Process().children()}
    with server(**variables) as (url, _):
        until_ok(url)
        [serving] = {*psutil.Process().children()} - before
        memory()
        yield url, memory


def plan(client: httpx.Client, url: str, prompt: str, budget: int) -> Row:
    """Raises Refused."""
    began = time.monotonic()
    try:
        details = generate(client, url, prompt=prompt, output="plan", max_new_tokens=budget)["details"]
    except httpx.HTTPStatusError as error:
        answered(error.response)
        raise
    except httpx.TransportError as error:
        raise Refused(0, type(error).__name__, str(error)) from error
    usage, timings = details["usage"], details["timings"]
    return {
        "seconds": time.monotonic() - began,
        "prefill": timings["prefill_seconds"],
        "passes": timings["forward_passes"],
        "prefilled": usage["prompt_tokens"] - timings["cached_tokens"],
        "tokens": usage["completion_tokens"],
    }


def asked(*case: int) -> str:
    """A prompt that no other case has."""
    return router_prompt(f"Case {'-'.join(map(str, case))}. {REQUEST}")


def least(client: httpx.Client, url: str) -> int:
    """The smallest budget that holds a plan, as the server tells it."""
    try:
        plan(client, url, REQUEST, 1)
    except Refused as refused:
        return int(re.findall(r"\d+", str(refused))[-1])
    raise AssertionError("a plan of one token")


def budget(series: Series) -> Result:
    with measured() as (url, memory), httpx.Client() as client:
        smallest = least(client, url)
        below = series([smallest - 1], lambda tokens, turn: plan(client, url, asked(turn), tokens), memory)
        points = [smallest, 256, 512, 1024, 2048, 4096]
        found = series(points, lambda tokens, turn: plan(client, url, asked(tokens, turn), tokens), memory)
        return {"rows": found["rows"], "broke": below["broke"] + found["broke"]}


def prompt(series: Series) -> Result:
    with measured() as (url, memory), httpx.Client() as client:
        smallest = least(client, url)

        def once(tokens: int, turn: int) -> Row:
            text = f"Case {tokens}-{turn}. {SENTENCE * ((tokens - BESIDE) // 10)}"
            return plan(client, url, text, smallest)

        return series([100, 200, 400, 800, 1600, 3200, 3500, 4000], once, memory)


def clients(series: Series) -> Result:
    refusals: dict[tuple[int, str], Row] = {}  # by point and code: the first one, and how many there were
    with measured() as (url, memory), httpx.Client() as client:
        plan(client, url, asked(0), BUDGET)  # from now on the queue knows how long a plan takes

        def once(count: int, turn: int) -> Row:
            def one(number: int) -> float | Refused:
                try:
                    return float(plan(client, url, asked(count, turn, number), BUDGET)["seconds"])
                except Refused as refused:
                    return refused

            began = time.monotonic()
            with ThreadPoolExecutor(count) as pool:
                outcomes = list(pool.map(one, range(count)))
            wall = time.monotonic() - began
            refused = [each for each in outcomes if isinstance(each, Refused)]
            for each in refused:
                told = {"x": count, "times": 0, **each.told}
                refusals.setdefault((count, each.told["code"]), told)["times"] += 1
            times = sorted(each for each in outcomes if not isinstance(each, Refused))
            if not times:
                raise refused[0]
            sums = {"served": len(times), "refused": len(refused), "per_minute": 60 * len(times) / wall}
            return {"seconds": statistics.median(times), "p95": times[int(0.95 * len(times))], **sums}

        found = series([1, 2, 4, 8, 16, 32, 64], once, memory)
    return {"rows": found["rows"], "broke": [*refusals.values()]}


def tools(series: Series) -> Result:
    def tool(name: str) -> Row:
        about = "Does the work of a department of the harbour."
        fields = {"task": {"type": "string"}, "urgent": {"type": "boolean"}}
        schema = {"type": "object", "properties": fields, "required": ["task"]}
        return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}

    with measured() as (url, memory), httpx.Client(base_url=url, timeout=330) as client:

        def once(count: int, turn: int) -> Row:
            said = [{"role": "user", "content": "Ask somebody to mend the lamp of the lighthouse."}]
            offered = [tool(f"t{count}-{turn}-{number}") for number in range(count)]
            body = {"messages": said, "tools": offered, "tool_choice": "required", "max_tokens": 64, "seed": turn}
            began = time.monotonic()
            usage = answered(client.post("/v1/chat/completions", json=body))["usage"]
            prefilled = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
            seconds = time.monotonic() - began
            return {"seconds": seconds, "prefilled": prefilled, "tokens": usage["completion_tokens"]}

        return series([1, 2, 4, 8, 16, 32, 64, 128], once, memory)


def history(series: Series) -> Result:
    points = [0, *(10 << double for double in range(11))]
    found: Result = {"rows": [], "broke": []}
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for variables in ({}, {"MAX_BODY_BYTES": str(WIDE)}):
            with measured(**variables) as (url, memory):
                httpx.get(f"{url}/gradio/config", timeout=60).raise_for_status()
                part = series(points, partial(opened, browser, url, read_gold(BUNDLED)), memory)
            for key, rows in part.items():
                found[key] += [row | variables for row in rows]
            points = [point for point in points if part["broke"] and point >= part["broke"][0]["x"]]
        browser.close()
    return found


def opened(browser: Browser, url: str, gold: Sequence[GoldRow], plans: int, turn: int) -> Row:
    """A browser that has kept so many plans opens the page, and then the list of them. Raises Refused."""
    rows = [
        {"at": f"plan {at:05}", "query": row.prompt, "prompt": row.prompt, "text": json.dumps(row.plan)}
        for at, row in enumerate(islice(cycle(gold), plans))
    ]
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        try:
            return looked(context.new_page(), url, json.dumps(rows, ensure_ascii=False), plans)
        except Error as error:
            raise Refused(0, "the browser", error.message.partition("\n")[0]) from error


def looked(page: Page, url: str, kept: str, plans: int) -> Row:
    """Raises Refused, and Playwright's Error."""
    refusals: list[Response] = []
    page.set_default_timeout(1000 * SILENCE)
    page.on("response", lambda answer: refusals.append(answer) if answer.status >= 400 else None)
    page.goto(f"{url}/livez")
    page.evaluate("text => localStorage.setItem('router-history', text)", kept)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    began = time.monotonic()
    page.goto(f"{url}/gradio/")
    page.get_by_role("tab", name="History").click()
    listed = page.locator("#export", has_text=f"{plans} plans")
    while not listed.count():
        if refusals:
            told = refusals[0].json()["error"]
            raise Refused(refusals[0].status, told["code"], told["message"])
        if time.monotonic() - began > SILENCE:
            raise Refused(0, "the page", f"no list after {SILENCE:.0f} s")
        page.wait_for_timeout(10)
    seconds = time.monotonic() - began
    page.get_by_label("Earlier plans").click()
    options = "most => document.querySelectorAll('[role=option]').length >= most"
    page.wait_for_function(options, arg=min(plans, LISTED))
    return {
        "seconds": seconds,
        "list": time.monotonic() - began - seconds,
        "work": metric(session, "TaskDuration"),
        "heap_mb": metric(session, "JSHeapUsedSize") / 1e6,
        "stored_kb": len(kept.encode()) / 1e3,
    }


_PARTS: tuple[Callable[[Series], Result], ...] = (budget, prompt, clients, tools, history)
PARTS = {part.__name__: part for part in _PARTS}


def about(*, quick: bool) -> Row:
    """What a run is of. Where it is another, the run begins anew."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    versions = {name: importlib.metadata.version(name) for name in ("xllamacpp", "gradio", "playwright")}
    return {"machine": machine(), "commit": commit.stdout.strip(), "versions": versions, "quick": quick}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: those that are not there yet")
    parser.add_argument("--out", type=Path, default=ROOT / ".venv" / "growth")
    parser.add_argument("--quick", action="store_true", help="every second point and the last, once: does it run?")
    options = parser.parse_args()
    if unknown := {*options.parts} - {*PARTS}:
        parser.error(f"there is no {min(unknown)}: choose among {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    path, of = options.out / "growth.json", about(quick=options.quick)
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    parts = kept.pop("parts", {})
    parts = parts if kept == of else {}
    for name in options.parts or [name for name in PARTS if name not in parts]:
        print(name, flush=True)
        parts[name] = PARTS[name](partial(series, quick=options.quick))
        summary = {**of, "parts": {name: parts[name] for name in PANELS if name in parts}}
        path.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (options.out / "growth.md").write_text(report(summary), "utf-8")
        picture(summary["parts"], options.out / "growth.png")


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("interrupted: the same command goes on")
    )  # its server ends with it
    main()
