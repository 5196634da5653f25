"""The training loop."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from router_backend.errors import InvalidRequest
from router_backend.plan.prompt import with_budget
from router_tools.train import checkpoint
from router_tools.train.checkpoint import Place
from router_tools.train.examples import CONTRACT, Example, Examples, batches
from router_tools.train.model import Student, best_device, has_bf16, load_base
from router_tools.train.plot import plot
from router_tools.train.rows import Row, Rows, read_rows, split

LOG = "log.jsonl"
# The rows of the validation, as `router-backend evaluate --gold` reads them.
HELD_OUT = "held-out.jsonl"
INTERRUPTED = 130
# The rate falls to this share of its peak.
_LAST = 0.05


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """A run.

    Attributes:
        data, out: the rows; the folder for checkpoint, adapter, log and plot.
        base: `embedded`, a GGUF file, a folder or a hub repo.
        tools: the specialists that plans may use.
        steps: optimiser steps; None where the time alone decides.
        max_minutes: the run ends then, and its learning rate falls so as to be down by then; None: no limit.
        batch, accumulate: examples in one pass; passes in one step.
        rate, warmup, rank, clip: the peak learning rate and the steps up to it; the adapter; the gradient's norm.
        validation: rows kept for validation; `glance` of them are used at intervals, all at the end.
        every, checkpoint_minutes, sample_tokens: steps between validations; between checkpoints; length of the sample.
        longest: tokens of prompt and plan; longer rows are left out.
        threads: for the processor; None: as torch finds right.
    """

    data: Path
    out: Path
    base: str = "embedded"
    tools: tuple[str, ...] = ("/general-search", "/math", "/code")
    steps: int | None = None
    max_minutes: float | None = None
    resume: bool = False
    batch: int = 2
    accumulate: int = 2
    rate: float = 1.5e-3
    warmup: int = 12
    rank: int = 32
    clip: float = 1.0
    seed: int = 0
    validation: int = 54
    glance: int = 8
    every: int = 50
    checkpoint_minutes: float = 10.0
    sample_tokens: int = 160
    longest: int = 2048
    threads: int | None = None

    def recipe(self) -> dict[str, Any]:
        """What two sessions of one run must have in common. Not its end: a run may be given more steps, or fewer."""
        fixed = (
            "base",
            "tools",
            "batch",
            "accumulate",
            "rate",
            "warmup",
            "rank",
            "clip",
            "seed",
            "validation",
            "longest",
        )
        given = asdict(self)
        return {key: given[key] for key in fixed}


def train(options: TrainOptions, console: Console | None = None) -> int:
    """Trains an adapter; everything lands in `options.out`. Returns the exit code: 130 when it was interrupted.

    Raises:
        InvalidRequest: no usable row, no end to the run, or no checkpoint that fits to resume from.
        CandidateError: the base does not load.
    """
    if options.steps is None and options.max_minutes is None:
        raise InvalidRequest("a run needs an end: steps, minutes, or both")
    torch.manual_seed(options.seed)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = read_rows(options.data, options.tools)
    with _Log(options.out / LOG, console or Console(stderr=True), fresh=not options.resume) as log:
        run = _Run(options, rows, log)
        finished = run.train()
    plot(options.out / LOG, options.out / "loss.png")
    return 0 if finished else INTERRUPTED


def learning_rate(step: int, share: float, options: TrainOptions) -> float:
    """Linear warm-up by steps, then half a cosine over the share of the run that is done."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return options.rate * min(1.0, (step + 1) / options.warmup) * (_LAST + (1 - _LAST) * cosine)


class _Run:
    def __init__(self, options: TrainOptions, rows: Rows, log: _Log) -> None:
        self._options, self._log = options, log
        base, tokenizer = load_base(options.base)
        device = best_device()
        self._student = Student(base, options.rank, device=device, half=has_bf16(device))
        self._tokenizer = tokenizer
        self._examples = Examples(tokenizer, options.tools, options.longest)
        fitting = [row for row in rows.kept if self._examples.reference(row)]
        rows.refused["too long"] += len(rows.kept) - len(fitting)
        self._rows, self._held_out = split(fitting, options.validation)
        _keep(self._held_out, options.out / HELD_OUT)
        self._optimizer = torch.optim.AdamW(self._student.parameters, lr=options.rate, weight_decay=0.0)
        self._place = Place()
        if options.resume:
            self._place = checkpoint.resume(options.out, self._student, self._optimizer, options.recipe())
        log.write(
            "start",
            **{key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()},
            rows=len(self._rows),
            mended=sum(row.mended for row in fitting),
            refused={reason: times for reason, times in rows.refused.items() if times},
            device=device.type,
            bf16=has_bf16(device),
            parameters=sum(each.numel() for each in self._student.parameters),
            from_step=self._place.step,
        )

    def train(self) -> bool:
        """Returns whether the run came to its end."""
        options, place = self._options, self._place
        began = time.monotonic() - place.elapsed
        if not place.step:
            self._validate(options.glance)
        self._learn(began)
        self._save()
        if self._share() < 1:
            return False
        self._validate(options.validation)
        return True

    def _learn(self, began: float) -> None:
        """Steps until the end of the run, or until somebody asks it to stop."""
        options, place = self._options, self._place
        saved = time.monotonic()
        with self._log.progress() as bar, _Stop() as stop:
            for group in self._steps():
                loss = self._step(group)
                place.elapsed = time.monotonic() - began
                bar(place.step, self._share(), loss)
                if place.step % options.every == 0:
                    self._validate(options.glance)
                    self._sample()
                if time.monotonic() - saved > 60 * options.checkpoint_minutes:
                    self._save()
                    saved = time.monotonic()
                if self._share() >= 1 or stop.asked:
                    return

    def _steps(self) -> Iterator[list[list[Example]]]:
        """Groups of batches, one group a step, without end. `place` is behind the group that was taken last."""
        options, place = self._options, self._place
        group: list[list[Example]] = []
        epoch, skip = place.epoch, place.batch
        while True:
            made = batches(self._examples, self._rows, size=options.batch, seed=options.seed, epoch=epoch)
            for index, batch in islice(enumerate(made), skip, None):
                group.append(batch)
                if len(group) == options.accumulate:
                    place.epoch, place.batch = epoch, index + 1
                    yield group
                    group = []
            epoch, skip = epoch + 1, 0

    def _step(self, group: list[list[Example]]) -> float:
        options, place = self._options, self._place
        tokens = sum(example.completion_tokens for batch in group for example in batch)
        rate = learning_rate(place.step, self._share(), options)
        for each in self._optimizer.param_groups:
            each["lr"] = rate
        total = 0.0
        began = time.monotonic()
        for batch in group:
            loss = self._student.loss(batch) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self._student.parameters, options.clip).item()
        self._optimizer.step()
        self._optimizer.zero_grad()
        place.step += 1
        place.seen += sum(map(len, group))
        place.tokens += tokens
        read = sum(len(example.ids) for batch in group for example in batch)
        speed = read / (time.monotonic() - began)
        self._log.write(
            "step",
            **vars(place),
            loss=round(total, 5),
            rate=rate,
            norm=round(norm, 4),
            tokens_per_second=round(speed, 1),
        )
        return total

    def _share(self) -> float:
        """How much of the run is done: by steps or by time, whichever is further."""
        options, place = self._options, self._place
        by_steps = place.step / options.steps if options.steps else 0.0
        by_time = place.elapsed / (60 * options.max_minutes) if options.max_minutes else 0.0
        return max(by_steps, by_time)

    def _validate(self, rows: int) -> None:
        chosen = self._held_out[:: max(1, len(self._held_out) // rows)][:rows]
        losses = {
            "reference": self._mean(chosen, [self._examples.reference(row) for row in chosen]),
            f"budget_{CONTRACT}": self._mean(chosen, [self._examples.budgeted(row, CONTRACT) for row in chosen]),
        }
        self._log.write("validation", step=self._place.step, rows=len(chosen), **losses)

    def _mean(self, rows: Sequence[Row], examples: Sequence[Example | None]) -> float | None:
        made = sorted((each for each in examples if each), key=lambda each: len(each.ids))
        size = self._options.batch
        return (
            round(self._student.mean_loss([made[at : at + size] for at in range(0, len(made), size)]), 4)
            if made
            else None
        )

    def _sample(self) -> None:
        prompt = self._examples.prompt_ids(with_budget(self._held_out[0].prompt, CONTRACT))
        said = self._student.write(prompt, self._options.sample_tokens)
        self._log.write("sample", step=self._place.step, text=self._tokenizer.decode(said))

    def _save(self) -> None:
        checkpoint.save(self._options.out, self._student, self._optimizer, self._place, self._options.recipe())


def _keep(rows: Sequence[Row], path: Path) -> None:
    lines = (json.dumps({"prompt": row.prompt, "completion": row.completion}, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


class _Stop:
    """Turns an interrupt into a wish, so that a run ends between two steps and can be resumed from there."""

    def __enter__(self) -> _Stop:
        self.asked = False
        self._before = {each: signal.signal(each, self._ask) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True


class _Log:
    """One JSON object a line, and the same for a person's eyes."""

    def __init__(self, path: Path, console: Console, *, fresh: bool) -> None:
        self._file = path.open("w" if fresh else "a", encoding="utf-8")
        self._console = console

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, event: str, **values: Any) -> None:  # noqa: ANN401 - any JSON value
        self._file.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
        self._file.flush()
        if event != "step":
            self._console.print(f"{event}: {values}", markup=False, highlight=False)

    def progress(self) -> _Bar:
        return _Bar(self._console)


class _Bar:
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("training", total=1.0, step=0, loss=0.0)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, step: int, share: float, loss: float) -> None:
        self._progress.update(self._task, completed=share, step=step, loss=loss)
