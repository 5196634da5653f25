"""The command line: each command calls one function. Heavy imports wait until their command is chosen."""

from __future__ import annotations

import asyncio
import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from router_backend import __version__
from router_backend.errors import InvalidRequest, RouterError, printable
from router_backend.types import is_blank

if TYPE_CHECKING:
    from router_backend.settings import Settings

# Commands whose exit code 1 is a verdict: of theirs, 2 says that there is none.
_JUDGES = ("evaluate", "smoke", "merge", "deploy")
# What is done about trouble with a place.
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "; make room there, or name another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "; name another place, or get access to it"),
}
# The extra that holds what a command needs.
_EXTRAS = {"serve": "space", "train": "train", "merge": "merge", "cluster": "cluster"}


class _Commands(TyperGroup):
    """All commands, and the one place where a mistake that is to be expected becomes one line."""

    def main(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as Typer has it
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="json")
        sys.exit(_told(partial(super().main, *args, **options)))

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as Typer has it
        raise typer.Exit(_told(partial(super().invoke, ctx), ctx))


def _told(run: Callable[[], int | None], ctx: typer.Context | None = None) -> int:
    """The exit code of what is run. A mistake that is to be expected is told in one line, and is never 0."""
    try:
        code = run() or 0
        if sys.stdout:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except (RouterError, OSError, ModuleNotFoundError) as error:
        command = str(ctx.invoked_subcommand) if ctx else ""
        typer.secho(f"router-backend: {printable(_words(error, command))}", fg="red", err=True)
        return 2 if command in _JUDGES else 1


def _words(error: RouterError | OSError | ModuleNotFoundError, command: str) -> str:
    """What is wrong and what to do. Raises the error itself where it is a defect of ours, or a reader that left."""
    if isinstance(error, RouterError):
        return error.message
    if isinstance(error, ModuleNotFoundError):
        if (error.name or "router_").startswith("router_"):
            raise error
        extra = _EXTRAS.get(command)
        named = f", and {command} needs it: pip install 'router-backend[{extra}]'" if extra else ": run make install"
        return f"{error.name} is not installed{named}"
    if error.errno == errno.EPIPE:
        raise error  # Typer ends quietly then, as `head` expects
    place = error.filename or ("standard output" if _output_is_lost() else type(error).__name__)
    place = str(place).replace("\n", "\\n")
    return f"{place}: {error.strerror or error}{_ADVICE.get(error.errno or 0, '')}"


def _output_is_lost() -> bool:
    """Whether standard output takes no more. What it still holds is given up, or Python complains as it ends."""
    try:
        sys.stdout.flush()
    except AttributeError:  # it was closed from the start, so nothing was written
        return False
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _as_json(error: UnicodeError) -> tuple[str, int]:
    """What an encoding lacks, escaped as in JSON: the text of a plan stays the same plan."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("json", _as_json)

app = typer.Typer(
    cls=_Commands,
    name="router-backend",
    help="Serves router checkpoints: every answer is a whole routing plan inside its token budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

drafter = typer.Typer(help="Plans that drafts are made of.", no_args_is_help=True)
app.add_typer(drafter, name="drafter")


def _settings() -> Settings:
    from router_backend.settings import load_settings

    return load_settings()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; wins over HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; wins over PORT. 0: any free one.")] = None,
) -> int:
    """Serve the API, the UI and the console."""
    if _settings().spaces_zero_gpu:
        from router_backend.space import serve as serve_here
    else:
        from router_backend.server.serve import serve as serve_here
    return serve_here(host=host, port=port)


@app.command()
def ui(
    url: Annotated[str, typer.Argument(envvar="HF_ROUTER_API", help="The backend, or its /v1/generate.")],
    host: Annotated[str | None, typer.Option(help="Address to bind; wins over HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; wins over PORT. 0: any free one.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="ROUTER_API_KEY", help="Better in the environment.")] = None,
    ask_key: Annotated[bool, typer.Option("--ask-key", help="Ask for the backend's key here.")] = False,
) -> int:
    """Serve the page alone, as a client of a backend elsewhere."""
    from router_backend.server.serve import serve_page

    key = typer.prompt("The backend's key", hide_input=True, err=True) if ask_key else api_key
    return serve_page(url, key, host=host, port=port)


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

    said = _read_prompt(prompt)
    if is_blank(said):
        raise InvalidRequest("the prompt is blank")
    asyncio.run(answer_once(said, text=text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed))


@app.command()
def doctor() -> int:
    """Show the machine and what would be loaded, in order, and why. Loads nothing."""
    from router_backend.service.doctor import report

    return report(_settings())


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
) -> int:
    """Score a router on a benchmark file; exit code 1 when a threshold fails."""
    from router_tools.evaluate import EvaluateOptions
    from router_tools.evaluate import evaluate as run

    options = EvaluateOptions(
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
        tools=_settings().tools,
        thresholds=thresholds,
        concurrency=concurrency,
    )
    return run(options)


@app.command()
def calibrate(
    data: Annotated[Path, typer.Argument(help="JSONL rows with prompt and completion, none of them trained on.")],
    candidate: Annotated[str, typer.Option(help="The checkpoint: embedded, a GGUF file, a folder, a hub repo.")],
) -> None:
    """Find the temperature at which a router's probabilities of tools come true, and keep it beside the checkpoint."""
    _settings()  # what is wrong in it is told before the long imports
    from router_tools.calibrate import calibrate as run

    run(data, candidate, typer.echo)


@app.command()
def smoke(
    url: Annotated[str | None, typer.Argument(envvar="HF_ROUTER_API", help="A deployed /v1/generate.")] = None,
    within: Annotated[float, typer.Option(min=0, help="Seconds that a plan may take.")] = 120,
    api_key: Annotated[str | None, typer.Option(envvar="ROUTER_API_KEY", help="Better in the environment.")] = None,
) -> int:
    """Check a deployment: exit code 0 when all is well, 1 when a check failed, 2 when nothing could be checked."""
    from router_tools.smoke import run_smoke

    return run_smoke(url, api_key, within=within, tools=_settings().tools)


@drafter.command("build")
def drafter_build(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL: rows with completion or text, or plans.")],
    out: Annotated[Path, typer.Option(help="What to write; DRAFTER names it when serving.")] = Path("drafter.jsonl"),
) -> None:
    """Collect earlier plans, so that the transformers engine drafts well from its first answer on."""
    from router_backend.engines.transformers.drafter import build

    written, left_out = build(source, out, _settings().tools)
    typer.echo(f"{out}: {written} plans ({left_out} rows without a valid plan left out)")


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="JSONL rows with prompt and completion.")],
    out: Annotated[Path, typer.Argument(help="Folder for the adapter, the checkpoint, the log and the loss plot.")],
    base: Annotated[str, typer.Option(help="embedded, a GGUF file, a folder or a hub repo.")] = "embedded",
    adapter: Annotated[Path | None, typer.Option(help="A folder whose adapter the run begins with.")] = None,
    gguf: Annotated[str | None, typer.Option(help="The GGUF to be served: learn with weights rounded to it.")] = None,
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
) -> int:
    """Train a LoRA adapter on router data. SIGINT and SIGTERM stop it between two steps, ready for --resume."""
    tools = _settings().tools  # what is wrong in it is told before the long imports
    from router_tools.train import TrainOptions
    from router_tools.train import train as run

    options = TrainOptions(
        data=data,
        out=out,
        base=base,
        adapter=adapter,
        gguf=gguf,
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
        tools=tools,
        threads=threads,
    )
    return run(options)


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
) -> int:
    """Make a merged router checkpoint; exit code 1 when it does not compute what base and adapter compute."""
    settings = _settings()
    from router_tools.merge import MergeOptions
    from router_tools.merge import merge as run

    copies, size = tuple(copy or ()), int(memory * 1e9)
    options = MergeOptions(base, adapter, out, dtype, copies, gguf, size, verify, push, private)
    return run(options, settings, typer.echo)


@app.command()
def deploy(
    space: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The Space; created where it is missing.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be changed, and change nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it runs, then check it.")] = True,
    private: Annotated[bool, typer.Option("--private", help="Of a Space that is created.")] = False,
    all_secrets: Annotated[bool, typer.Option("--all-secrets", help="Set those anew that are there already.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that are waited for.")] = 1800,
) -> int:
    """Bring a Space to the declared state and check it: 0 well, 1 it fails, 2 not possible, 3 hardware refused."""
    from router_tools.deploy import DeployOptions
    from router_tools.deploy import deploy as run

    options = DeployOptions(
        space, dry_run=dry_run, wait=wait, private=private, all_secrets=all_secrets, timeout=timeout
    )
    return run(options, _settings(), typer.echo)


@app.command()
def cluster(
    replicas: Annotated[str, typer.Option(metavar="MIN:MAX", help="How many, by the load; or one number.")] = "1",
    cpus: Annotated[float, typer.Option(min=0, help="Cores of each replica.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each replica, or a part of one.")] = 0,
    grow_after: Annotated[float, typer.Option(min=0, help="Seconds of more load before replicas start.")] = 10,
    shrink_after: Annotated[float, typer.Option(min=0, help="Seconds of less load before replicas stop.")] = 300,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print Serve's configuration, and start nothing.")] = False,
    kuberay: Annotated[str | None, typer.Option(metavar="IMAGE", help="Print KubeRay's manifest instead.")] = None,
) -> int:
    """Serve with replicas on the Ray cluster that runs, or on one of this machine's own. Again: a rolling update."""
    from router_backend.cluster.layout import Layout, parse_replicas
    from router_backend.cluster.run import run

    layout = Layout(*parse_replicas(replicas), cpus, gpus, grow_after, shrink_after)
    return run(layout, _settings(), typer.echo, dry_run=dry_run, image=kuberay)


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(__version__)


def _read_prompt(argument: str) -> str:
    if argument == "-" and not sys.stdin:
        raise InvalidRequest("there is no standard input to read the prompt from")
    if argument == "-":
        raw = sys.stdin.buffer.read()
    elif os.path.isfile(argument):  # noqa: PTH113 - pathlib's raises where it is too long for a name
        raw = Path(argument).read_bytes()
    else:
        raw = os.fsencode(argument)  # UTF-8 as it was typed, whatever the locale says
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{argument} is no UTF-8 text") from None


if __name__ == "__main__":
    app()
