"""The command line: each command calls one function. Heavy imports wait until their command is chosen."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from router_backend import __version__
from router_backend.errors import RouterError

app = typer.Typer(
    name="router-backend",
    help="Serves router checkpoints: every answer is a whole routing plan inside its token budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; wins over HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; wins over PORT. 0: any free one.")] = None,
) -> None:
    """Serve the API, the UI and the console."""
    from router_backend.serve import serve as run

    raise typer.Exit(_readable(lambda: run(host=host, port=port)))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt, a file that holds it, or - for standard input.")],
    text: Annotated[bool, typer.Option("--text", help="The model's raw text instead of a plan.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Token budget.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Answer one prompt without a server; a bare query becomes the canonical router prompt."""
    from router_backend.once import answer_once

    def run() -> int:
        said = sys.stdin.read() if prompt == "-" else _file_or_text(prompt)
        asyncio.run(answer_once(said, text=text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed))
        return 0

    raise typer.Exit(_readable(run))


@app.command()
def doctor() -> None:
    """Show the machine and what would be loaded, in order, and why. Loads nothing."""
    from router_backend.doctor import report
    from router_backend.settings import load_settings

    raise typer.Exit(_readable(lambda: report(load_settings())))


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(__version__)


def _file_or_text(argument: str) -> str:
    path = Path(argument)
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else argument
    except (OSError, ValueError):  # too long for a path, or no text
        return argument


def _readable(run: object) -> int:
    """Runs a command; an expected error is one message and exit code 1, never a traceback."""
    assert callable(run)
    try:
        return int(run())
    except RouterError as error:
        typer.secho(f"router-backend: {error.message}", fg="red", err=True)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUTF8", "1")
    app()
