"""What commands are given: the base that an adapter is trained on or merged into, and the place for what they make."""

from __future__ import annotations

import tempfile
from pathlib import Path

from router_backend.checkpoints import embedded, hub
from router_backend.checkpoints.description import gguf_file
from router_backend.checkpoints.ladder import Candidate, parse_candidate
from router_backend.settings import Settings, check_name


def named(option: str, name: str, settings: Settings) -> Candidate:
    """What a name means. Raises SettingsError, with the option, where it is a name that only looks like one."""
    check_name(option, name)
    return parse_candidate(name, settings.model_owner)


def files(base: Candidate, settings: Settings) -> Path:
    """Its folder of safetensors, or its GGUF file, fetched where it is on a hub.

    Raises:
        CandidateError: it cannot be had, or is neither.
    """
    if base.kind == "embedded":
        return embedded.base()
    if base.kind == "gguf":
        gguf_file(Path(base.name))
        return Path(base.name)
    return hub.fetch(base, settings)


def writable(folder: Path) -> Path:
    """The folder, made where it is missing. Raises OSError where no file can be made in it: before the work."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder
