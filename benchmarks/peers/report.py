"""What is kept of a run, and what is made of it: `peers.json`, the tables and the plots."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from peers.processes import PEERS, SERVERS

_TIMES = "first text s | route s | plan s p50 | p95"
_Key = tuple[str, str, int, int]  # checkpoint, peer, budget, clients


class Kept:
    """A file of JSON lines that grows with the run: what it is of, then starts, refusals and rounds."""

    def __init__(self, path: Path, about: dict[str, Any], *, anew: bool = False) -> None:
        """Goes on with the file, or begins it anew where it is of something else."""
        self._path = path
        if anew or not path.is_file() or read(path)[0] != about:
            path.write_text(json.dumps({"about": about}) + "\n", "utf-8")

    def walls(self, checkpoint: str) -> dict[tuple[str, str, int, int, int], float]:
        """Seconds of each round that is there."""
        return {
            (row["checkpoint"], row["peer"], row["budget"], row["clients"], row["round"]): row["wall"]
            for row in read(self._path)[1]
            if "wall" in row and row["checkpoint"] == checkpoint
        }

    def cold(self, checkpoint: str, server: str, seconds: float) -> None:
        self._add(checkpoint=checkpoint, server=server, cold=seconds)

    def unavailable(self, checkpoint: str, peer: str, reason: str) -> None:
        self._add(checkpoint=checkpoint, peer=peer, unavailable=reason)

    def left_out(self, checkpoint: str, peer: str, budget: int, clients: int, reason: str) -> None:
        self._add(checkpoint=checkpoint, peer=peer, budget=budget, clients=clients, left_out=reason)

    def round(
        self,
        key: _Key,
        number: int,
        outcomes: list[dict[str, Any]],
        **sums: float,
    ) -> None:
        """`sums`: wall (seconds), peak_bytes, others_busy (the other servers' processor seconds)."""
        names = dict(zip(("checkpoint", "peer", "budget", "clients"), key, strict=True))
        self._add(**names, round=number, **sums, outcomes=outcomes)

    def _add(self, **row: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the run is of, and its rows. A last line that was cut off is left out."""
    about, rows = {}, []
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "about" in row:
            about = row["about"]
        else:
            rows.append(row)
    return about, rows


def summed(path: Path) -> dict[str, Any]:
    """The report: what it is of, and a row for each cell."""
    about, rows = read(path)
    cells: dict[_Key, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "wall" in row:
            cells[row["checkpoint"], row["peer"], row["budget"], row["clients"]].append(row)
    cold: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if "cold" in row:
            cold[row["checkpoint"], row["server"]].append(row["cold"])
    weights = {name: (each["gguf_bytes"], each["folder_bytes"]) for name, each in about["checkpoints"].items()}
    servers = [
        {
            "checkpoint": checkpoint,
            "server": server,
            "title": SERVERS[server].title,
            "version": about["versions"].get(server),
            "cold_start_to_first_plan": statistics.median(seconds),
            "disk_mb": (about["installed_bytes"][server] + weights[checkpoint][SERVERS[server].weights == "folder"])
            / 1e6,
            "peak_mb": max(
                (
                    row["peak_bytes"]
                    for key, found in cells.items()
                    for row in found
                    if key[0] == checkpoint and PEERS[key[1]].server == server
                ),
                default=0,
            )
            / 1e6,
        }
        for (checkpoint, server), seconds in cold.items()
    ]
    measured = {row_key(row) for row in rows if "wall" in row}
    return {
        **about,
        "cells": [_cell(key, found) for key, found in cells.items()],
        "servers": servers,
        "unavailable": _last(rows, "unavailable", ("checkpoint", "peer"), {key[:2] for key in measured}),
        "left_out": _last(rows, "left_out", ("checkpoint", "peer", "budget", "clients"), measured),
    }


def row_key(row: dict[str, Any]) -> _Key:
    return row["checkpoint"], row["peer"], row["budget"], row["clients"]


def _last(rows: list[dict[str, Any]], what: str, names: tuple[str, ...], measured: set[Any]) -> list[dict[str, Any]]:
    """The last reasons of those that were not measured after all."""
    found = {tuple(row[name] for name in names): row[what] for row in rows if what in row}
    return [
        dict(zip(names, key, strict=True)) | {"reason": reason} for key, reason in found.items() if key not in measured
    ]


def _cell(key: _Key, found: list[dict[str, Any]]) -> dict[str, Any]:
    outcomes = [outcome for row in found for outcome in row["outcomes"]]
    valid = [each for each in outcomes if each["rules"] and each["error"] is None]
    wall = sum(row["wall"] for row in found)
    seconds = sorted(each["seconds"] for each in outcomes)

    def middle(name: str) -> float | None:
        values = [each[name] for each in outcomes if each[name] is not None]
        return statistics.median(values) if values else None

    return {
        **dict(zip(("checkpoint", "peer", "budget", "clients"), key, strict=True)),
        "requests": len(outcomes),
        **{name: sum(each[name] for each in outcomes) for name in ("json", "schema")},
        "rules": len(valid),
        "valid_a_minute": 60 * len(valid) / wall,
        "tokens_mean": statistics.mean(each["tokens"] for each in outcomes),
        "tokens_max": max(each["tokens"] for each in outcomes),
        "first_text_p50": middle("first"),
        "route_p50": middle("route"),
        "seconds_p50": statistics.median(seconds),
        "seconds_p95": seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
        "peak_mb": max(row["peak_bytes"] for row in found) / 1e6,
        "others_busy_seconds": sum(row["others_busy"] for row in found),
        "errors": sorted({each["error"] for each in outcomes if each["error"]}),
    }


def tables(summary: dict[str, Any]) -> str:
    """Markdown: a table for each checkpoint, budget and number of clients, one of the servers, and what is missing."""
    cells = {row_key(cell): cell for cell in summary["cells"]}
    lines: list[str] = []
    for checkpoint, budget, clients in sorted({(key[0], key[2], key[3]) for key in cells}):
        lines += [
            f"**{checkpoint}, {budget:,} tokens, {clients} at once**",
            "",
            f"| | requests | JSON | schema | rules | valid plans/min | tokens (max) | {_TIMES} |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        found = {name: cells.get((checkpoint, name, budget, clients)) for name in PEERS}
        lines += [f"| {PEERS[name].title} | {_figures(cell)} |" for name, cell in found.items() if cell]
        lines.append("")
    lines += [
        "| | version | checkpoint | cold start to first plan s | peak memory MB | on disk MB |",
        "|---|---|---|---|---|---|",
    ]
    for each in summary["servers"]:
        sizes = f"{each['cold_start_to_first_plan']:.1f} | {each['peak_mb']:.0f} | {each['disk_mb']:.0f}"
        lines.append(f"| {each['title']} | {each['version']} | {each['checkpoint']} | {sizes} |")
    on, sampling = summary["machine"], summary["sampling"]
    lines += [
        "",
        f"Commit {summary['commit'][:7]}; {on['cores']} cores of {on['processor']}, {on['memory_gb']:.0f} GB, "
        f"{summary['threads']} threads; {summary['requests']}; temperature {sampling['temperature']}, "
        f"top-p {sampling['top_p']}.",
        "",
    ]
    for each in summary["unavailable"]:
        lines.append(f"- {PEERS[each['peer']].title}, {each['checkpoint']}: not measured, {each['reason']}.")
    for each in summary["left_out"]:
        what = f"{each['checkpoint']}, {each['budget']:,} tokens, {each['clients']} at once"
        lines.append(f"- {PEERS[each['peer']].title}, {what}: not measured, {each['reason']}.")
    if len(summary["checkpoints"]) == 1:
        lines.append("- One checkpoint alone: no second adapter was named (`SECOND=FOLDER`).")
    return "\n".join(lines).rstrip() + "\n"


def _figures(cell: dict[str, Any]) -> str:
    tokens = f"{cell['tokens_mean']:.0f} ({cell['tokens_max']})"
    counts = [str(cell[name]) for name in ("requests", "json", "schema", "rules")]
    times = [cell[name] for name in ("first_text_p50", "route_p50", "seconds_p50", "seconds_p95")]
    shown = ["" if value is None else f"{value:.1f}" for value in times]
    return " | ".join([*counts, f"{cell['valid_a_minute']:.1f}", tokens, *shown])


def short(summary: dict[str, Any]) -> str:
    """The README's table: complete valid plans, and how many a minute, at the most clients that were measured."""
    most = max(cell["clients"] for cell in summary["cells"])
    columns = sorted({(cell["checkpoint"], cell["budget"]) for cell in summary["cells"]})
    cells = {
        (cell["peer"], cell["checkpoint"], cell["budget"]): cell for cell in summary["cells"] if cell["clients"] == most
    }
    lines = [
        f"| complete, valid plans (a minute), {most} at once | "
        + " | ".join(f"{c}, {b:,} tokens" for c, b in columns)
        + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, peer in PEERS.items():
        found = [cells.get((name, *column)) for column in columns]
        if any(found):
            texts = [
                f"{cell['rules']} of {cell['requests']} ({cell['valid_a_minute']:.1f})" if cell else ""
                for cell in found
            ]
            lines.append(f"| {f'**{peer.title}**' if peer.ours else peer.title} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def plots(summary: dict[str, Any], folder: Path) -> None:
    """peers-plans.png: complete valid plans a minute. peers-seconds.png: first text, route and plan, one client."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    checkpoints = list(summary["checkpoints"])
    counts = sorted({cell["clients"] for cell in summary["cells"]})
    budgets = sorted({cell["budget"] for cell in summary["cells"]})
    colours = ("tab:blue", "tab:orange", "tab:green", "tab:red")

    def drawn(file: str, clients: int, label: str, bars: list[tuple[str, int, str]]) -> None:
        figure, axes = pyplot.subplots(
            1, len(checkpoints), figsize=(7 * len(checkpoints), 5), squeeze=False, sharey=True
        )
        for axis, checkpoint in zip(axes[0], checkpoints, strict=True):
            cells = {
                (cell["peer"], cell["budget"]): cell
                for cell in summary["cells"]
                if cell["checkpoint"] == checkpoint and cell["clients"] == clients
            }
            names = [name for name in PEERS if any(key[0] == name for key in cells)][::-1]
            for place, (title, budget, field) in enumerate(bars):
                height = 0.8 / len(bars)
                values = [cells.get((name, budget), {}).get(field) or 0 for name in names]
                where = [row + 0.4 - (place + 0.5) * height for row in range(len(names))]
                axis.barh(where, values, height, label=title, color=colours[place % len(colours)])
            axis.set_yticks(range(len(names)), [PEERS[name].title for name in names])
            axis.set(xlabel=label, title=checkpoint)
            axis.legend()
        figure.tight_layout()
        figure.savefig(folder / file, dpi=80)
        pyplot.close(figure)

    each = [(f"{budget:,} tokens", budget, "valid_a_minute") for budget in budgets]
    drawn("peers-plans.png", counts[-1], f"complete, valid plans a minute, {counts[-1]} at once", each)
    named = (("plan", "seconds_p50"), ("route", "route_p50"), ("first text", "first_text_p50"))
    times = [(title, budgets[0], field) for title, field in named]
    drawn("peers-seconds.png", counts[0], f"seconds (median), {budgets[0]:,} tokens, {counts[0]} at once", times)


def insert(path: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    before, begin, rest = path.read_text("utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not end:
        raise SystemExit(f"{path} has no place for {name}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def write(path: Path, folder: Path, docs: Path | None = None) -> None:
    """The report of a file of rounds, into a folder, and into README.md and docs/ below `docs`."""
    if not path.is_file() or not (summary := summed(path))["cells"]:
        raise SystemExit(f"nothing was measured yet: {path}")
    place = docs / "docs" if docs else folder
    (place / "peers.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", "utf-8")
    plots(summary, place)
    text = tables(summary)
    if docs:
        drawn = "![Complete, valid plans a minute](peers-plans.png)\n![Seconds](peers-seconds.png)\n"
        insert(docs / "README.md", "peers", short(summary))
        insert(place / "performance.md", "peers", f"{drawn}\n{text}")
    else:
        (folder / "peers.md").write_text(f"{short(summary)}\n{text}", "utf-8")
    print(f"\n{short(summary)}\n{text}\n{place / 'peers.json'}, peers-plans.png, peers-seconds.png")
