"""Folder: the place for what a command makes."""

from __future__ import annotations

import tempfile
from pathlib import Path


def writable(folder: Path) -> Path:
    """The folder, made where it is missing. Raises OSError where no file can be made in it: before the work."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder
