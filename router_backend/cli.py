"""The command line: each command calls one function. Heavy imports wait until their command is chosen."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from router_backend import __version__
from router_backend.errors import InvalidRequest, RouterError
from router_backend.types import is_blank

app = typer.Typer(
    name="router-backend",
    help="Serves router checkpoints: every answer is a whole routing plan inside its token budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

drafter = typer.Typer(help="Plans that drafts are made of.", no_args_is_help=True)
app.add_typer(drafter, name="drafter")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; wins over HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; wins over PORT. 0: any free one.")] = None,
) -> None:
    """Serve the API, the UI and the console."""

    def run() -> int:
        from router_backend.settings import load_settings

        if load_settings().spaces_zero_gpu:
            from router_backend.space import serve as serve_here
        else:
            from router_backend.server.serve import serve as serve_here
        return serve_here(host=host, port=port)

    raise typer.Exit(_readable(run))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt, a file that holds it, or - for standard input.")],
    text: Annotated[bool, typer.Option("--text", help="The model's raw text instead of a plan.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Token budget.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Answer one prompt without a server; a bare query becomes the canonical router prompt."""
    from router_backend.service.once import answer_once

    def run() -> int:
        said = _read_prompt(prompt)
        if is_blank(said):
            raise InvalidRequest("the prompt is blank")
        asyncio.run(answer_once(said, text=text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed))
        return 0

    raise typer.Exit(_readable(run))


@app.command()
def doctor() -> None:
    """Show the machine and what would be loaded, in order, and why. Loads nothing."""
    from router_backend.service.doctor import report
    from router_backend.settings import load_settings

    raise typer.Exit(_readable(lambda: report(load_settings())))


@app.command()
def evaluate(
    gold: Annotated[Path, typer.Option(help="Benchmark: JSONL rows with prompt and completion.")],
    out: Annotated[Path, typer.Option(help="Folder for predictions, scores and the report.")] = Path("evaluation"),
    url: Annotated[str | None, typer.Option(help="A deployed /v1/generate.")] = None,
    candidate: Annotated[str | None, typer.Option(help="A checkpoint to load here, e.g. embedded.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Rows with prompt and text, to score only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N rows only.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 600,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    text: Annotated[bool, typer.Option("--text", help="Score the model's raw text instead of plans.")] = False,
    lenient: Annotated[bool, typer.Option(help="Look for the plan in answers that are no plain JSON.")] = False,
    thresholds: Annotated[Path | None, typer.Option(help="Thresholds of your own, as JSON.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256)] = 4,
    api_key: Annotated[str | None, typer.Option(envvar="ROUTER_API_KEY", help="Better in the environment.")] = None,
) -> None:
    """Score a router on a benchmark file; exit code 1 when a threshold fails."""
    from router_backend.settings import load_settings
    from router_tools.evaluate import EvaluateOptions
    from router_tools.evaluate import evaluate as run
    from router_tools.evaluate.local import predictor

    def work() -> int:
        options = make(tools=load_settings().tools)
        if candidate is None:
            return run(options)
        with predictor(candidate, options) as predict:
            return run(options, predict)

    make = partial(
        EvaluateOptions,
        gold=gold,
        out=out,
        url=url,
        api_key=api_key,
        candidate=candidate,
        predictions=predictions,
        limit=limit,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        output="text" if text else "plan",
        lenient=lenient,
        thresholds=thresholds,
        concurrency=concurrency,
    )
    raise typer.Exit(_readable(work, failed=2))


@app.command()
def smoke(
    url: Annotated[str | None, typer.Argument(envvar="HF_ROUTER_API", help="A deployed /v1/generate.")] = None,
    within: Annotated[float, typer.Option(min=0, help="Seconds that a plan may take.")] = 120,
    api_key: Annotated[str | None, typer.Option(envvar="ROUTER_API_KEY", help="Better in the environment.")] = None,
) -> None:
    """Check a deployment: exit code 0 when all is well, 1 when a check failed, 2 when nothing could be checked."""
    from router_backend.settings import load_settings
    from router_tools.smoke import run_smoke

    def work() -> int:
        return run_smoke(url, api_key, within=within, tools=load_settings().tools)

    raise typer.Exit(_readable(work, failed=2))


@drafter.command("build")
def drafter_build(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL: rows with completion or text, or plans.")],
    out: Annotated[Path, typer.Option(help="What to write; DRAFTER names it when serving.")] = Path("drafter.jsonl"),
) -> None:
    """Collect earlier plans, so that the transformers engine drafts well from its first answer on."""
    from router_backend.engines.transformers.drafter import build
    from router_backend.settings import load_settings

    def work() -> int:
        written, left_out = build(source, out, load_settings().tools)
        typer.echo(f"{out}: {written} plans ({left_out} rows without a valid plan left out)")
        return 0

    raise typer.Exit(_readable(work))


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="JSONL rows with prompt and completion.")],
    out: Annotated[Path, typer.Argument(help="Folder for the adapter, the checkpoint, the log and the loss plot.")],
    base: Annotated[str, typer.Option(help="embedded, a GGUF file, a folder or a hub repo.")] = "embedded",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="The run ends by then.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Examples in one pass.")] = 2,
    accumulate: Annotated[int, typer.Option(min=1, help="Passes in one step.")] = 2,
    rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1.5e-3,
    rank: Annotated[int, typer.Option(min=1)] = 32,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    validation: Annotated[int, typer.Option(min=1, help="Rows held out.")] = 54,
    every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 50,
    threads: Annotated[int | None, typer.Option(min=1, help="1 where other work shares the processor.")] = None,
) -> None:
    """Train a LoRA adapter on router data. SIGINT and SIGTERM stop it between two steps, ready for --resume."""
    from router_backend.settings import load_settings
    from router_tools.train import TrainOptions
    from router_tools.train import train as run

    make = partial(
        TrainOptions,
        data=data,
        out=out,
        base=base,
        steps=steps,
        max_minutes=max_minutes,
        resume=resume,
        batch=batch,
        accumulate=accumulate,
        rate=rate,
        rank=rank,
        seed=seed,
        validation=validation,
        every=every,
        threads=threads,
    )
    raise typer.Exit(_readable(lambda: run(make(tools=load_settings().tools))))


@app.command()
def merge(
    base: Annotated[str, typer.Argument(help="A folder of safetensors, a hub repo, a GGUF file or embedded.")],
    adapter: Annotated[Path, typer.Argument(help="A folder with a LoRA adapter in PEFT's format.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; or, of a GGUF base, a .gguf file.")],
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; without: as in the base.")] = None,
    copy: Annotated[list[str] | None, typer.Option(help="A quantised copy beside it: 4bit or 8bit.")] = None,
    gguf: Annotated[str | None, typer.Option(help="A GGUF in the folder, of this kind: Q8_0, F16, …")] = None,
    memory: Annotated[float, typer.Option(min=0.05, help="GB that weights may take at once.")] = 4,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare the logits.")] = True,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Upload to this repository.")] = None,
    private: Annotated[bool, typer.Option(help="Of a repository that is created.")] = False,
) -> None:
    """Make a merged router checkpoint; exit code 1 when it does not compute what base and adapter compute."""

    def work() -> int:
        from router_backend.settings import load_settings
        from router_tools.merge import MergeOptions
        from router_tools.merge import merge as run

        copies, size = tuple(copy or ()), int(memory * 1e9)
        options = MergeOptions(base, adapter, out, dtype, copies, gguf, size, verify, push, private)
        return run(options, load_settings(), typer.echo)

    raise typer.Exit(_readable(work, failed=2))


@app.command()
def deploy(
    space: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The Space; created where it is missing.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be changed, and change nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it runs, then check it.")] = True,
    private: Annotated[bool, typer.Option("--private", help="Of a Space that is created.")] = False,
    all_secrets: Annotated[bool, typer.Option("--all-secrets", help="Set those anew that are there already.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that are waited for.")] = 1800,
) -> None:
    """Bring a Space to the declared state and check it: 0 well, 1 it fails, 2 not possible, 3 hardware refused."""

    def work() -> int:
        from router_backend.settings import load_settings
        from router_tools.deploy import DeployOptions
        from router_tools.deploy import deploy as run

        options = DeployOptions(
            space, dry_run=dry_run, wait=wait, private=private, all_secrets=all_secrets, timeout=timeout
        )
        return run(options, load_settings(), typer.echo)

    raise typer.Exit(_readable(work, failed=2))


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(__version__)


def _read_prompt(argument: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if argument == "-" else Path(argument).read_bytes()
    except (OSError, ValueError):  # no such file, or too long for a name: it is the prompt
        return argument
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{argument} is no UTF-8 text") from None


def _readable(run: Callable[[], int], failed: int = 1) -> int:
    """Runs a command; an expected error is one message and the exit code `failed`, never a traceback."""
    try:
        return run()
    except RouterError as error:
        typer.secho(f"router-backend: {error.message}", fg="red", err=True)
        return failed
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    app()
