"""The checkpoints: adapters merged onto the embedded base, each as a GGUF in Q8_0 and as safetensors in bf16."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from router_backend.checkpoints.embedded import ADAPTER
from router_backend.plan.prompt import BUDGET_KEY, with_budget


@dataclass(frozen=True)
class Checkpoint:
    """Attributes: adapter: as the report names it; folder: its safetensors; gguf: the same in Q8_0."""

    name: str
    adapter: str
    folder: Path
    gguf: Path

    @property
    def budget_line(self) -> bool:
        """Whether it was trained to read its budget in the prompt."""
        return bool(json.loads((self.folder / "config.json").read_text("utf-8")).get(BUDGET_KEY))

    def prompt(self, prompt: str, budget: int) -> str:
        """As a client of a server that adds nothing sends it."""
        return with_budget(prompt, budget) if self.budget_line else prompt


def made(place: Path, second: Path | None) -> list[Checkpoint]:
    """The embedded router, and a second one where its adapter is named. Merged once, kept in `place`."""
    adapters = {"embedded": ADAPTER} | ({"second": second} if second else {})
    return [_merged(name, adapter, place / name) for name, adapter in adapters.items()]


def _merged(name: str, adapter: Path, folder: Path) -> Checkpoint:
    if not (adapter / "adapter_config.json").is_file():
        sys.exit(f"{adapter} holds no adapter: it has no adapter_config.json")
    source = folder / "adapter.txt"
    if not source.is_file() or source.read_text("utf-8") != str(adapter.resolve()):
        shutil.rmtree(folder, ignore_errors=True)
        what = ("embedded", str(adapter), str(folder), "--gguf", "Q8_0", "--dtype", "bf16", "--no-verify")
        command = [sys.executable, "-W", "ignore", "-m", "router_backend.cli", "merge", *what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{adapter} cannot be merged: {done.stderr.strip().splitlines()[-1]}")
        source.write_text(str(adapter.resolve()), "utf-8")
    (gguf,) = folder.glob("*.gguf")
    return Checkpoint(name, f"{adapter.parent.name}/{adapter.name}", folder, gguf)
