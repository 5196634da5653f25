"""What is made of the points of growth.py: exponents, tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
Result = dict[str, Any]  # `rows`, and `broke`: each point that failed, with what the client was told
MEMORY = {"server_mb": "server MB", "llama_mb": "llama.cpp MB"}
_LEAST = 3  # points that an exponent is made of


@dataclass(frozen=True)
class Panel:
    """A part of the report.

    Attributes:
        size: what grows, as the axis and the first column call it.
        columns: further fields of a row, with their headings.
        fitted: those of them that have an exponent.
        also: one that is drawn beside the seconds.
    """

    title: str
    size: str
    columns: dict[str, str]
    fitted: tuple[str, ...]
    also: str | None = None


_PLAN = {"seconds": "s", "prefill": "of them prefill s", "passes": "passes"}
_READ = {"prefilled": "tokens prefilled", "tokens": "tokens written"}
_SERVED = {"seconds": "p50 s", "p95": "p95 s", "per_minute": "plans/min", "served": "served", "refused": "refused"}
_PAGE = {"seconds": "page s", "list": "list s", "work": "page's work s", "heap_mb": "page's heap MB"}
_PAGE |= {"stored_kb": "stored kB"}
PANELS = {
    "budget": Panel("A plan's budget", "budget, tokens", _PLAN | _READ, ("seconds", "passes", "tokens")),
    "prompt": Panel("A prompt, the smallest plan", "prompt, tokens", _PLAN | _READ, ("seconds", "prefill"), "prefill"),
    "clients": Panel(
        "Clients at once, plans of 600 tokens", "clients", _SERVED, ("seconds", "p95", "per_minute"), "p95"
    ),
    "tools": Panel("Tools offered, a call of one", "tools", {"seconds": "s"} | _READ, ("seconds", "prefilled")),
    "history": Panel(
        "Plans in the browser's history", "plans", _PAGE, ("seconds", "list", "heap_mb", "stored_kb"), "list"
    ),
}


@dataclass(frozen=True)
class Power:
    """y = factor · x^exponent, over a range of x."""

    exponent: float
    factor: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{round(self.exponent, 2) + 0:.2f} ({figure(self.least)} to {figure(self.most)})"


def power(points: Sequence[tuple[float, float]]) -> Power:
    """Least squares on the logarithms of both; all of them are above 0."""
    x, y = np.log(np.array(points)).T
    exponent, shift = np.polyfit(x, y, 1)
    return Power(float(exponent), float(np.exp(shift)), points[0][0], points[-1][0])


def powers(rows: Sequence[Row], field: str) -> tuple[Power | None, Power | None]:
    """Over all points, and over those that cost at least twice the first one, where the constant no longer dominates.

    None where there are fewer than three. A point at which some were refused is left out: it shows who was served.
    """
    served = [(float(row["x"]), float(row[field])) for row in rows if not row.get("refused")]
    points = [point for point in served if min(point) > 0]
    above = [point for point in points if point[1] >= 2 * served[0][1]]
    every, beyond = (power(each) if len(each) >= _LEAST else None for each in (points, above))
    return every, beyond


def figure(value: object) -> str:
    if not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def exponents(parts: dict[str, Result]) -> list[str]:
    lines = ["| of | against | exponent, all points | exponent, beyond the constant |", "|---|---|---|---|"]
    for name, part in parts.items():
        panel, rows = PANELS[name], part["rows"]
        for field in (*panel.fitted, *MEMORY):
            every, beyond = powers(rows, field) if rows else (None, None)
            if every:
                times = rows[-1][field] / rows[0][field] if rows[0][field] else 0
                why = "the constant dominates" if times < 2 else "too few points"
                told = beyond or f"{why}: {times:.2f} times from first to last"
                lines.append(f"| {(panel.columns | MEMORY)[field]} | {panel.size} | {every} | {told} |")
    return lines


def broken(row: Row) -> str:
    """What a client was told at a point."""
    who = f"HTTP {row['status']} `{row['code']}`" if row["status"] else row["code"]
    limit = f", with MAX_BODY_BYTES={row['MAX_BODY_BYTES']}" if "MAX_BODY_BYTES" in row else ""
    many = f", {row['times']} of them" if "times" in row else ""
    return f"- {figure(row['x'])}{limit}{many}: {who}, {row['message']}"


def table(name: str, part: Result) -> list[str]:
    """A row for each point, and the points that failed."""
    panel = PANELS[name]
    columns = {"x": panel.size} | panel.columns | MEMORY | {"times": "times"}
    lines = [f"**{panel.title}**", "", f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(figure(row[field]) for field in columns)} |" for row in part["rows"]]
    return [*lines, "", "Breaks first:" if part["broke"] else "Nothing broke.", "", *map(broken, part["broke"]), ""]


def report(summary: dict[str, Any]) -> str:
    """The section for docs/performance.md."""
    on, parts = summary["machine"], summary["parts"]
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines = [
        "![Seconds and memory against five sizes](growth.png)",
        "",
        *exponents(parts),
        "",
        f"Commit {summary['commit'][:7]}; {on['cores']} cores of {on['processor']}, {on['memory_gb']:.0f} GB; "
        f"{versions}.",
        "",
        *(line for name, part in parts.items() for line in table(name, part)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def picture(parts: dict[str, Result], path: Path) -> None:
    """Both axes logarithmic; memory on the right. Red lines stand where it broke."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(2, 3, figsize=(15, 8))
    for axis in axes.flat[len(parts) :]:
        axis.axis("off")
    for axis, (name, part) in zip(axes.flat, parts.items(), strict=False):
        panel, right = PANELS[name], axis.twinx()
        rows = [row for row in part["rows"] if row["x"] > 0]
        sizes = [row["x"] for row in rows]
        for field, line in {"seconds": "o-", panel.also: "s--"}.items():
            if field:
                axis.plot(sizes, [row[field] for row in rows], line, color="tab:blue", label=panel.columns[field])
        fitted = next(filter(None, powers(part["rows"], "seconds")[::-1]), None)
        if fitted:
            ends = np.array([fitted.least, fitted.most])
            label = f"s ∝ size^{fitted.exponent:.2f}"
            axis.plot(ends, fitted.factor * ends**fitted.exponent, ":", color="black", label=label)
        for field, colour in zip(MEMORY, ("tab:green", "tab:orange"), strict=True):
            right.plot(sizes, [row[field] for row in rows], ".-", color=colour, label=f"{MEMORY[field]}, on the right")
        broke = sorted({row["x"] for row in part["broke"]})
        for at in broke:
            label = f"broke at {' and '.join(map(figure, broke))}"
            axis.axvline(at, color="tab:red", linestyle=":", label=label if at == broke[0] else None)
        ticks = [at for at in sorted({*sizes, *broke}, reverse=True) if not sizes or at >= sizes[0]]
        ticks = [at for at, above in zip(ticks, [np.inf, *ticks], strict=False) if above > 1.2 * at]
        axis.set(xscale="log", yscale="log", xlabel=panel.size, ylabel="seconds", title=panel.title)
        axis.set_xticks(ticks, [*map(figure, ticks)], rotation=45)
        axis.xaxis.minorticks_off()
        axis.yaxis.set_major_formatter(lambda value, _: figure(value))
        axis.yaxis.set_minor_formatter(lambda value, _: figure(value) if f"{value:e}"[0] in "25" else "")
        axis.legend(fontsize=8, loc="upper left")
        right.set(yscale="log", ylabel="peak MB", ylim=(50, 5000))
        axes.flat[-1].legend(*right.get_legend_handles_labels(), loc="center")
    drawing.tight_layout()
    drawing.savefig(path, dpi=76)
    pyplot.close(drawing)
