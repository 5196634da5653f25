"""A training run, from the rows to the adapter."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from router_backend.checkpoints.adapter import read
from router_backend.checkpoints.gguf_merge import check_kind
from router_backend.errors import InvalidRequest
from router_backend.jsonl import read_values
from router_backend.settings import load_settings
from router_tools.base import writable
from router_tools.train.examples import Examples
from router_tools.train.log import Log, plot
from router_tools.train.model import Rounded, has_bf16, load_base, with_adapter
from router_tools.train.options import TrainOptions
from router_tools.train.rows import read_rows, split
from router_tools.train.trainer import Place, PlanTrainer, last_checkpoint

LOG = "log.jsonl"
# The rows of the validation, as `router-backend evaluate --gold` reads them.
HELD_OUT = "held-out.jsonl"
INTERRUPTED = 130


def train(options: TrainOptions, console: Console | None = None) -> int:
    """Trains an adapter; everything lands in `options.out`. Returns the exit code: 130 when it was interrupted.

    Raises:
        InvalidRequest: no usable row, no end to the run, no such GGUF, or no checkpoint that fits to resume from.
        CandidateError: the base or the adapter to begin with does not load.
    """
    if options.steps is None and options.max_minutes is None:
        raise InvalidRequest("a run needs an end: steps, minutes, or both")
    if options.gguf is not None:
        check_kind(options.gguf)
    if options.adapter is not None:
        read(options.adapter)  # PEFT would look for a folder that is not there on the hub, after the base is loaded
    torch.manual_seed(options.seed)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows, refused = read_rows(options.data, options.tools)
    checkpoint, place = _resumed(options) if options.resume else (None, Place())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = has_bf16(device)
    writable(options.out)
    base, tokenizer = load_base(options.base, load_settings())
    examples = Examples(tokenizer, options.tools, options.longest)
    fitting = [row for row in rows if examples.reference(row)]
    refused["too long"] += len(rows) - len(fitting)
    learned, held_out = split(fitting, options.validation)
    kept = (json.dumps({"prompt": row.prompt, "completion": row.completion}, ensure_ascii=False) for row in held_out)
    (options.out / HELD_OUT).write_text("".join(f"{line}\n" for line in kept), "utf-8")
    with (options.out / LOG).open("a" if options.resume else "w", encoding="utf-8") as file:
        log = Log(file, console or Console(stderr=True))
        model = with_adapter(base, options.rank, half=half, begin=options.adapter)
        rounded = Rounded(model, options.gguf) if options.gguf else None
        log.write(
            "start",
            **asdict(options),
            rows=len(learned),
            mended=sum(row.mended for row in fitting),
            refused={reason: times for reason, times in refused.items() if times},
            device=device.type,
            bf16=half,
            parameters=model.get_nb_trainable_parameters()[0],
            from_step=place.step,
        )
        trainer = PlanTrainer(options, model, examples, learned, held_out, log, place, rounded)
        finished = trainer.run(checkpoint)
    plot(options.out / LOG, options.out / "loss.png")
    return 0 if finished else INTERRUPTED


def _resumed(options: TrainOptions) -> tuple[Path, Place]:
    """The run's last checkpoint, and where the log says that the run was then."""
    checkpoint = last_checkpoint(options.out)
    if checkpoint is None or not (options.out / LOG).is_file():
        raise InvalidRequest(f"{options.out} holds no checkpoint to resume from")
    place, made = Place(), {}
    for _, event in read_values(options.out / LOG):
        if event["event"] == "start":
            made = event
        elif event["event"] == "step" and checkpoint.name == f"checkpoint-{event['step']}":
            place = Place(event["step"], event["elapsed"], event["seen"], event["tokens"])
    recipe = json.loads(json.dumps(options.recipe(), default=str))
    different = [key for key, value in recipe.items() if made.get(key) != value]
    if different:
        raise InvalidRequest(f"the checkpoint was made with another {', '.join(different)}")
    return checkpoint, place
