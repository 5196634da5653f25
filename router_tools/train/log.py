"""What a run says: a log of JSON lines, and the same for a person's eyes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Log:
    """One JSON object a line: `start`, `step`, `validation`, `sample`. A fresh log replaces the one that is there."""

    def __init__(self, path: Path, console: Console, *, fresh: bool) -> None:
        self._path, self._console = path, console
        self._file = path.open("w" if fresh else "a", encoding="utf-8")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, event: str, **values: Any) -> None:  # noqa: ANN401 - any JSON value
        self._file.write(json.dumps({"event": event, **values}, ensure_ascii=False, default=str) + "\n")
        self._file.flush()
        if event != "step":
            self._console.print(f"{event}: {values}", markup=False, highlight=False)

    def progress(self) -> Progress:
        """A bar; its task has `step` and `loss` as fields."""
        told = TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}")
        return Progress(told, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)


def figure(value: float, places: int) -> float | None:
    """A number as the log holds it; JSON has no NaN."""
    return round(value, places) if math.isfinite(value) else None
