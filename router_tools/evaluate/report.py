"""Reports: tables on the terminal, scores.json for programs, report.html for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from rich.console import Console
from rich.table import Table
from rich.text import Text

from router_backend import __version__
from router_backend.plan.prompt import INSTRUCTIONS
from router_tools.evaluate.metrics import METRICS, quality, route_of
from router_tools.evaluate.predictions import Prediction
from router_tools.evaluate.results import Evaluation

PAGE = Path(__file__).with_name("report.html")
WORST = 20
_ALWAYS_SHOWN = ("route_tools_exact", "rules_ok")
_BARS = 12
_LONGEST_TEXT = 6000
_Bar = tuple[str, int, float]  # what it stands for, how many rows, its share of the whole width


def show(result: Evaluation, console: Console) -> None:
    """A table for each bucket: every figure for `overall`, elsewhere those with a threshold and the two beside them."""
    for bucket, figures in result.buckets.items():
        if not figures.rows:
            console.print(f"{bucket}: no rows", style="dim", highlight=False)
            continue
        table = Table(title=f"{bucket} ({figures.rows} rows)", title_justify="left")
        for title in ("metric", "value", "threshold", ""):
            table.add_column(title, justify="right" if title != "metric" else "left")
        for metric, value in figures.scores.items():
            limit, word = _judged(result, bucket, metric)
            if word or bucket == "overall" or metric in _ALWAYS_SHOWN:
                style = "bold red" if word == "FAIL" else "green"
                table.add_row(metric, f"{value:.4f}", limit, Text(word, style))
        console.print(table)
    if result.generation:
        told = ", ".join(f"{name} {value:.4g}" for name, value in result.generation.items())
        console.out(told, highlight=False)
    if result.confidence:
        console.out(f"first tool: {result.confidence}", highlight=False)
    failed = sum(verdict.passed is False for verdict in result.verdicts)
    measured = sum(verdict.passed is not None for verdict in result.verdicts)
    verdict = f"{failed} of {measured} thresholds FAILED" if failed else f"all {measured} thresholds passed"
    console.print(verdict, style="bold red" if failed else "bold green", highlight=False)


def write(result: Evaluation, folder: Path) -> None:
    scores = json.dumps(as_json(result), indent=2) + "\n"
    (folder / "scores.json").write_text(scores, encoding="ascii")
    # A lone surrogate in an answer has no bytes.
    (folder / "report.html").write_text(as_html(result), encoding="utf-8", errors="replace")


def as_json(result: Evaluation) -> dict[str, object]:
    return {
        "source": result.source,
        "version": __version__,
        "sampling": result.sampling,
        "rows": len(result.rows),
        "passed": result.passed,
        "buckets": {bucket: asdict(figures) for bucket, figures in result.buckets.items()},
        "thresholds": [
            {
                "bucket": verdict.threshold.bucket,
                "metric": verdict.threshold.metric,
                verdict.threshold.kind: verdict.threshold.limit,
                "value": verdict.value,
                "passed": verdict.passed,
            }
            for verdict in result.verdicts
        ],
        "generation": result.generation,
        "confidence": asdict(result.confidence) if result.confidence else None,
    }


def as_html(result: Evaluation) -> str:
    """One page that needs nothing but itself."""
    pairs = Counter((_route(row.gold.plan), _route(row.predicted)) for row in result.rows)
    rows = sorted(result.rows, key=lambda row: (quality(row.scores), row.gold.line))
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE.read_text("utf-8"))
    return page.render(
        result=result,
        failed=sum(verdict.passed is False for verdict in result.verdicts),
        metrics=[name for name in METRICS if any(name in figures.scores for figures in result.buckets.values())],
        judged=partial(_judged, result),
        charts=[chart for chart in _charts([row.prediction for row in result.rows]) if chart[2]],
        routes=[(pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]][:WORST],
        worst=[row for row in rows if row.findings or quality(row.scores) < 1][:WORST],
        quality=quality,
        zeros=lambda row: [name for name, value in row.scores.items() if value == 0 and "length" not in name],
        route=_route,
        short=lambda text, length: text if len(text) <= length else f"{text[:length]}…",
        instructions=INSTRUCTIONS,
        longest=_LONGEST_TEXT,
    )


def _route(plan: dict[str, object] | None) -> str:
    if plan is None:
        return "(no plan)"
    return " ".join(tool or "(no call)" for tool in route_of(plan)) or "(no route)"


def _charts(predictions: Sequence[Prediction]) -> list[tuple[str, str, list[_Bar]]]:
    """Each with its title and what its bars stand for."""
    cut = Counter(name for each in predictions for name in {text.partition("[")[0] for text in each.clipped or ()})
    tokens = [each.completion_tokens for each in predictions if each.completion_tokens is not None]
    seconds = [round(each.seconds) for each in predictions if each.seconds is not None and each.error is None]
    return [
        ("Tokens of an answer", "tokens", _bars(tokens)),
        ("Seconds of an answer", "seconds", _bars(seconds)),
        (
            "Rows with a truncated text",
            "field",
            [(name, count, count / len(predictions)) for name, count in cut.most_common()],
        ),
    ]


def _bars(values: Sequence[int]) -> list[_Bar]:
    """A histogram; its shares are of the most."""
    if not values:
        return []
    least, width = min(values), max(1, -(-(max(values) - min(values) + 1) // _BARS))
    counts = Counter((value - least) // width for value in values)
    starts = [least + bar * width for bar in range(max(counts) + 1)]
    most = max(counts.values())
    return [
        (f"{start}–{start + width - 1}" if width > 1 else str(start), counts[bar], counts[bar] / most)
        for bar, start in enumerate(starts)
    ]


def _judged(result: Evaluation, bucket: str, metric: str) -> tuple[str, str]:
    """The limits of a figure, and whether they are kept; both empty where it has none."""
    verdicts = [each for each in result.verdicts if each.threshold.bucket == bucket and each.threshold.metric == metric]
    word = ("pass" if all(verdict.passed for verdict in verdicts) else "FAIL") if verdicts else ""
    return " ".join(str(each.threshold) for each in verdicts), word
