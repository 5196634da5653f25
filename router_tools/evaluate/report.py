"""Reports: tables on the terminal, scores.json for programs, report.html for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

from rich.console import Console
from rich.table import Table
from rich.text import Text

from router_backend import __version__
from router_backend.plan.prompt import INSTRUCTIONS
from router_tools.evaluate.confidence import Confidence
from router_tools.evaluate.metrics import BUCKETS, METRICS, quality, route_of
from router_tools.evaluate.results import Evaluation, ScoredRow
from router_tools.evaluate.thresholds import Verdict

PAGE = Path(__file__).with_name("report.html")
WORST = 20
_ALWAYS_SHOWN = ("route_tools_exact", "rules_ok")
_BARS = 12
_LONGEST_TEXT = 6000


def show(result: Evaluation, console: Console) -> None:
    """A table for each bucket: every figure for `overall`, elsewhere those with a threshold and the two beside them."""
    limits = _limits(result)
    for bucket, figures in result.buckets.items():
        if not figures.rows:
            console.print(f"{bucket}: no rows", style="dim", highlight=False)
            continue
        table = Table(title=f"{bucket} ({figures.rows} rows)", title_justify="left")
        for title in ("metric", "value", "threshold", ""):
            table.add_column(title, justify="right" if title != "metric" else "left")
        for metric, value in figures.scores.items():
            verdicts = limits.get((bucket, metric), [])
            if verdicts or bucket == "overall" or metric in _ALWAYS_SHOWN:
                limit, word = _judged(verdicts)
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
    """`scores.json` and `report.html`."""
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
    failed = sum(verdict.passed is False for verdict in result.verdicts)
    verdict = f'<b class="no">{failed} thresholds failed</b>' if failed else '<b class="yes">all thresholds passed</b>'
    sampling = ", ".join(f"{key} {value}" for key, value in result.sampling.items())
    tokens = [row.prediction.completion_tokens for row in result.rows]
    parts = [
        f"<h1>Evaluation of {escape(result.source)}</h1>",
        f"<p>{len(result.rows)} rows: {verdict}. {escape(sampling)}</p>",
        "<h2>Scores</h2>",
        _scores(result),
        "<h2>Answers</h2>",
        _table(("figure", "value"), ((escape(name), f"{value:.4g}") for name, value in result.generation.items())),
        _histogram("Tokens of an answer", [each for each in tokens if each is not None]),
        _confidence(result.confidence) if result.confidence else "",
        "<h2>Routes that differ</h2>",
        _routes(result.rows),
        "<h2>Worst rows</h2>",
        _worst(result.rows),
    ]
    return Template(PAGE.read_text("utf-8")).substitute(
        title=escape(result.source), body="\n".join(filter(None, parts))
    )


def _scores(result: Evaluation) -> str:
    limits = _limits(result)
    heads = ["metric", *(f"{bucket}<br><small>{result.buckets[bucket].rows} rows</small>" for bucket in BUCKETS)]
    return _table(
        heads,
        (
            [escape(metric)]
            + [_cell(result.buckets[bucket].scores.get(metric), limits.get((bucket, metric), [])) for bucket in BUCKETS]
            for metric in METRICS
            if any(metric in figures.scores for figures in result.buckets.values())
        ),
    )


def _cell(value: float | None, verdicts: Sequence[Verdict]) -> str:
    if value is None:
        return "–"
    if not verdicts:
        return f"{value:.4f}"
    limit, word = _judged(verdicts)
    return f'<b class="{"no" if word == "FAIL" else "yes"}">{value:.4f}</b> <small>{limit} {word}</small>'


def _routes(rows: Sequence[ScoredRow]) -> str:
    pairs = Counter((_route(row.gold.plan), _route(row.predicted)) for row in rows)
    wrong = [(gold, said, count) for (gold, said), count in pairs.most_common() if gold != said][:WORST]
    if not wrong:
        return "<p>None.</p>"
    return _table(("gold", "predicted", "rows"), ((escape(gold), escape(said), str(n)) for gold, said, n in wrong))


def _route(plan: dict[str, object] | None) -> str:
    if plan is None:
        return "(no plan)"
    return " ".join(tool or "(no call)" for tool in route_of(plan)) or "(no route)"


def _worst(rows: Sequence[ScoredRow]) -> str:
    ordered = sorted(rows, key=lambda row: (quality(row.scores), row.gold.line))
    worst = [row for row in ordered if row.findings or quality(row.scores) < 1][:WORST]
    return "\n".join(map(_row, worst)) or "<p>None.</p>"


def _row(row: ScoredRow) -> str:
    query = row.gold.prompt.removeprefix(INSTRUCTIONS).strip()
    zeros = [name for name, value in row.scores.items() if value == 0 and "length" not in name]
    findings = "".join(f"<li>{escape(finding)}</li>" for finding in row.findings)
    return (
        f"<details><summary>{quality(row.scores):.2f} · line {row.gold.line} · {escape(_short(query, 110))}</summary>"
        f"<ul>{findings}</ul>"
        f"<p>Zero: {escape(', '.join(zeros)) or 'nothing'}</p>"
        f"<p>Gold: {escape(_route(row.gold.plan))}<br>Predicted: {escape(_route(row.predicted))}</p>"
        f"<pre>{escape(_short(query, _LONGEST_TEXT))}</pre>"
        f"<pre>{escape(_short(row.prediction.text, _LONGEST_TEXT))}</pre></details>"
    )


def _histogram(title: str, values: Sequence[int]) -> str:
    if not values:
        return ""
    least, width = min(values), max(1, -(-(max(values) - min(values) + 1) // _BARS))
    counts = Counter((value - least) // width for value in values)
    most = max(counts.values())
    bars = (
        (
            f"{least + bar * width}–{least + (bar + 1) * width - 1}",
            f'<div class="bar" style="width:{20 * counts[bar] / most:.2f}rem"></div>',
            str(counts[bar]),
        )
        for bar in range(max(counts) + 1)
    )
    return f"<h3>{escape(title)}</h3>" + _table(("tokens", "", "rows"), bars)


def _confidence(found: Confidence) -> str:
    """A reliability diagram: how often the likeliest first tool was right (the bar), and was said to be (the mark)."""
    rows = (
        (
            f"{each.low:.1f}–{each.high:.1f}",
            f'<div class="meter"><div class="bar" style="width:{20 * each.right:.2f}rem"></div>'
            f'<i style="left:{20 * each.said:.2f}rem"></i></div>',
            f"{each.said:.3f}",
            f"{each.right:.3f}",
            str(each.rows),
        )
        for each in found.bins
    )
    heads = ("probability", "", "said", "right", "rows")
    return f"<h2>The first tool's probabilities</h2><p>{escape(str(found))}</p>" + _table(heads, rows)


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _limits(result: Evaluation) -> dict[tuple[str, str], list[Verdict]]:
    found: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in result.verdicts:
        found.setdefault((verdict.threshold.bucket, verdict.threshold.metric), []).append(verdict)
    return found


def _judged(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """The limits, and whether they are kept."""
    word = ("pass" if all(verdict.passed for verdict in verdicts) else "FAIL") if verdicts else ""
    return " ".join(str(each.threshold) for each in verdicts), word


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
