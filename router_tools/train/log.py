"""What a run says: a log of JSON lines, and the same for a person's eyes, as a bar and as a picture of its losses."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from router_backend.jsonl import read_values


@dataclass
class Log:
    """One JSON object a line: `start`, `step`, `validation`, `sample`."""

    file: TextIO
    console: Console

    def write(self, event: str, **values: Any) -> None:  # noqa: ANN401 - any JSON value
        self.file.write(json.dumps({"event": event, **values}, ensure_ascii=False, default=str) + "\n")
        self.file.flush()
        if event != "step":
            self.console.print(f"{event}: {values}", markup=False, highlight=False)

    def progress(self) -> Progress:
        """A bar; its task has `step` and `loss` as fields."""
        told = TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}")
        return Progress(told, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)


def figure(value: float, places: int) -> float | None:
    """A number as the log holds it; JSON has no NaN."""
    return round(value, places) if math.isfinite(value) else None


def plot(log: Path, out: Path) -> None:
    """Draws the training and validation losses of a JSON-lines log into a PNG."""
    from matplotlib.figure import Figure

    events = [event for _, event in read_values(log)]
    steps = [each for each in events if each["event"] == "step"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([each["step"] for each in steps], [each["loss"] for each in steps], alpha=0.3, label="training")
    seen = [each for each in events if each["event"] == "validation"]
    for name in ("reference", "budget_600"):
        points = [(each["step"], each[name]) for each in seen if each.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=f"validation, {name.replace('_', ' ')}")
    axes.set(xlabel="step", ylabel="cross-entropy of a completion token (nats)")
    axes.legend()
    figure.savefig(out, dpi=120)
