"""`transformers.Trainer` with what this project adds: budgets, a clock, stops between two steps, a plan as a sample."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.progress import Progress
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    GenerationConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from router_backend.errors import CandidateError
from router_backend.plan.prompt import with_budget
from router_tools.train.examples import CONTRACT, IGNORED, Batches, Example, Examples, collate
from router_tools.train.log import Log, figure
from router_tools.train.model import Rounded, save_adapter
from router_tools.train.options import TrainOptions, learning_rate
from router_tools.train.rows import Row


@dataclass
class Place:
    """Where a run is: optimiser steps, seconds over all sessions, examples and completion tokens learned from."""

    step: int = 0
    elapsed: float = 0.0
    seen: int = 0
    tokens: int = 0


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: the state is what the library writes last into one."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda each: int(each.name.rpartition("-")[2]), reverse=True)
    for each in found:
        with contextlib.suppress(OSError, ValueError):
            json.loads((each / "trainer_state.json").read_bytes())
            return each
    return None


class PlanTrainer(Trainer):  # type: ignore[misc]  # transformers is read as untyped
    """Learns batches of plans; logs, validates, saves and ends as the options say."""

    def __init__(
        self,
        options: TrainOptions,
        model: PeftModel,
        examples: Examples,
        rows: Sequence[Row],
        held_out: Sequence[Row],
        log: Log,
        place: Place,
        rounded: Rounded | None = None,
    ) -> None:
        self.place, self.rounded = place, rounded
        self._options, self._examples, self._held_out, self._log = options, examples, held_out, log
        self._began = time.monotonic() - place.elapsed
        weights = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1.0, weight_decay=0.0)
        schedule = LambdaLR(optimizer, lambda step: learning_rate(step, self.share(step), options))
        super().__init__(
            model,
            _arguments(options),
            data_collator=lambda batches: collate(*batches),
            train_dataset=Batches(examples, rows, size=options.batch, seed=options.seed),
            optimizers=(optimizer, schedule),
        )
        self.remove_callback(PrinterCallback)

    def run(self, checkpoint: Path | None) -> bool:
        """Returns whether the run came to its end; it stops before that when it is interrupted."""
        if checkpoint is None:
            self._validate(self._options.glance)
        if self.share() < 1:
            with self._log.progress() as bar, _interrupts() as asked:
                bar.add_task("training", total=1.0, step=0, loss=0.0)
                self.add_callback(_Turns(self, self._options, self._log, bar, asked))
                self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        if self.share() < 1:
            return False
        self._validate(self._options.validation)
        return True

    def share(self, step: int | None = None) -> float:
        """How much of the run is done: by steps or by time, whichever is further."""
        options, place = self._options, self.place
        by_steps = (place.step if step is None else step) / options.steps if options.steps else 0.0
        by_time = place.elapsed / (60 * options.max_minutes) if options.max_minutes else 0.0
        return max(by_steps, by_time)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ANN401
        self.place.seen += len(inputs["labels"])
        self.place.tokens += int((inputs["labels"] != IGNORED).sum())
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.place.elapsed = time.monotonic() - self._began
        return loss

    def evaluate(self, *_: object, **__: object) -> dict[str, float]:
        """A glance at the held-out rows, and a plan as the model writes it without a grammar."""
        losses = self._validate(self._options.glance)
        prompt = self._examples.prompt_ids(with_budget(self._held_out[0].prompt, CONTRACT))
        self._log.write("sample", step=self.place.step, text=self._write(prompt))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        return losses

    @torch.no_grad()
    def _write(self, prompt: list[int]) -> str:
        self.model.eval()
        ids = torch.tensor([prompt], device=self.args.device)
        end = self._examples.end
        greedy = GenerationConfig(max_new_tokens=self._options.sample_tokens, pad_token_id=end, eos_token_id=end)
        said = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        return self._examples.text(said[0, len(prompt) :].tolist())

    def _validate(self, rows: int) -> dict[str, float]:
        if self.rounded:
            self.rounded()
        chosen = self._held_out[:: max(1, len(self._held_out) // rows)][:rows]
        examples = {
            "reference": [self._examples.reference(row) for row in chosen],
            f"budget_{CONTRACT}": [self._examples.budgeted(row, CONTRACT) for row in chosen],
        }
        losses = {name: self._mean_loss([each for each in made if each]) for name, made in examples.items()}
        self._log.write("validation", step=self.place.step, rows=len(chosen), **losses)
        return {name: loss for name, loss in losses.items() if loss is not None}

    @torch.no_grad()
    def _mean_loss(self, examples: list[Example]) -> float | None:
        """Mean cross-entropy of a completion token. Raises CandidateError where it is no number."""
        self.model.eval()
        examples.sort(key=lambda each: len(each.ids))
        tokens = sum(each.completion_tokens for each in examples)
        size, total = self._options.batch, 0.0
        for start in range(0, len(examples), size):
            batch = self._prepare_inputs(collate(examples[start : start + size]))
            total += self.model(**batch, num_items_in_batch=tokens).loss.item()
        if not math.isfinite(total):
            raise CandidateError(
                f"the held-out rows' loss is {total} after {self.place.step} steps: the base's weights hold NaN, or "
                "the learning rate is too high (a lower --rate)"
            )
        return figure(total, 4) if examples else None


class _Turns(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: PlanTrainer, options: TrainOptions, log: Log, bar: Progress, asked: list[int]) -> None:
        self._trainer, self._options, self._log, self._bar, self._asked = trainer, options, log, bar, asked
        self._saved = time.monotonic()

    def on_step_begin(self, *_: object, **__: object) -> None:
        self._began, self._before = time.monotonic(), self._trainer.place.tokens
        if self._trainer.rounded:
            self._trainer.rounded()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        options = self._options
        self._seconds = time.monotonic() - self._began
        self._trainer.place.step = state.global_step
        control.should_evaluate = state.global_step % options.every == 0
        if self._trainer.share() >= 1 or self._asked:
            control.should_training_stop = True
        late = time.monotonic() - self._saved > 60 * options.checkpoint_minutes
        control.should_save = control.should_training_stop or late

    def on_log(self, *_: object, logs: dict[str, float] | None = None, **__: object) -> None:
        if logs and "grad_norm" in logs:
            place = self._trainer.place
            speed = (place.tokens - self._before) / self._seconds
            self._log.write(
                "step",
                **vars(place),
                loss=figure(logs["loss"], 5),
                rate=logs["learning_rate"],
                norm=figure(logs["grad_norm"], 4),
                tokens_per_second=round(speed, 1),
            )
            share = self._trainer.share()
            self._bar.update(self._bar.task_ids[0], completed=share, step=place.step, loss=logs["loss"])

    def on_save(self, *_: object, model: PeftModel, **__: object) -> None:
        save_adapter(model, self._options.out / "adapter")
        self._saved = time.monotonic()


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Turns an interrupt into a wish, so that a run ends between two steps and can be resumed from there."""
    asked: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: asked.append(number)) for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _arguments(options: TrainOptions) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(options.out),
        per_device_train_batch_size=1,  # one of `Batches`, which holds several examples
        gradient_accumulation_steps=options.accumulate,
        max_steps=options.steps or sys.maxsize,
        max_grad_norm=options.clip,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # _Turns asks for it
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        accelerator_config={"dispatch_batches": False},
        use_cpu=not torch.cuda.is_available(),
        seed=options.seed,
    )
    arguments._n_gpu = 1  # several would share each batch, and a step be another one
    return arguments
