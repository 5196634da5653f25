"""What a run needs to go on as if it had never stopped: adapter, optimiser, random state, place in the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from router_backend.errors import InvalidRequest
from router_tools.train.model import Student

FILE = "checkpoint.pt"


@dataclass
class Place:
    """Where a run is.

    Attributes:
        step: optimiser steps done.
        epoch, batch: the next batch.
        elapsed: seconds of training, over all sessions.
        seen: examples, tokens: completion tokens learned from.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    elapsed: float = 0.0
    seen: int = 0
    tokens: int = 0


def save(
    folder: Path, student: Student, optimizer: torch.optim.Optimizer, place: Place, recipe: dict[str, Any]
) -> None:
    """Writes the checkpoint and the adapter; whoever is interrupted here keeps the last whole checkpoint."""
    state = {
        "adapter": student.state(),
        "optimizer": optimizer.state_dict(),
        "place": vars(place),
        "recipe": recipe,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    new = folder / f"{FILE}.new"
    torch.save(state, new)
    new.replace(folder / FILE)
    student.save(folder / "adapter")


def resume(folder: Path, student: Student, optimizer: torch.optim.Optimizer, recipe: dict[str, Any]) -> Place:
    """Puts everything back as it was.

    Raises:
        InvalidRequest: there is no checkpoint, or it is of another recipe.
    """
    path = folder / FILE
    if not path.is_file():
        raise InvalidRequest(f"{folder} holds no checkpoint to resume from")
    state = torch.load(path, weights_only=True)
    different = [key for key, value in recipe.items() if state["recipe"].get(key) != value]
    if different:
        raise InvalidRequest(f"the checkpoint was made with another {', '.join(different)}")
    student.restore(state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    return Place(**state["place"])
