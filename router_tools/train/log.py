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
        self._file.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
        self._file.flush()
        if event != "step":
            self._console.print(f"{event}: {values}", markup=False, highlight=False)

    def progress(self) -> Bar:
        return Bar(self._console)


class Bar:
    """The share of a run that is done, with step and loss."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("training", total=1.0, step=0, loss=0.0)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, step: int, share: float, loss: float) -> None:
        self._progress.update(self._task, completed=share, step=step, loss=loss)


def figure(value: float, places: int) -> float | None:
    """A number as the log holds it; JSON has no NaN."""
    return round(value, places) if math.isfinite(value) else None
