"""The embedded base with a fault: weights that hold no numbers, or another chat template."""

from __future__ import annotations

import mmap
import shutil
import struct
from pathlib import Path

from gguf import GGUFReader

from router_backend.checkpoints.embedded import base

TEMPLATE = b"tokenizer.chat_template"


def faulty(path: Path, *, fill: float | None = None, template: str | None = None) -> Path:
    """Writes it at `path`. `fill` is what the last norm's weights hold; a `template` is no longer than the base's."""
    shutil.copyfile(base(), path)
    path.chmod(0o600)
    if fill is not None:
        tensors = GGUFReader(path, "r+").tensors
        next(tensor for tensor in tensors if tensor.name == "output_norm.weight").data[:] = fill
    if template is not None:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            start = content.find(TEMPLATE) + len(TEMPLATE) + 4
            (length,) = struct.unpack_from("<Q", content, start)
            content[start + 8 : start + 8 + length] = template.encode().ljust(length)
    return path
