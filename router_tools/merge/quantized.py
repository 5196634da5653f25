"""A copy of a checkpoint that is quantised already: what a small disk holds, and what loads without quantising anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from router_backend.checkpoints.description import BESIDE_WEIGHTS
from router_backend.engines.transformers.load import bitsandbytes
from router_backend.errors import explained

PRECISIONS = ("8bit", "4bit")


def write(folder: Path, out: Path, precision: str, *, shard_bytes: int) -> Any:  # noqa: ANN401 - the library's
    """Quantises the checkpoint with bitsandbytes, as the rungs of that name do, and writes it to a folder.

    Returns:
        The model that was written.

    Raises:
        CandidateError: transformers or bitsandbytes refuse it.
    """
    with explained(f"it cannot be quantised to {precision}"):
        config = AutoConfig.from_pretrained(folder)
        dtype = getattr(config.get_text_config(), "dtype", None) or torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=bitsandbytes(precision, dtype),
            device_map="cpu",
            local_files_only=True,
        )
        model.save_pretrained(out, max_shard_size=shard_bytes)
    for path in beside_weights(folder):
        if not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    return model.eval()


def beside_weights(folder: Path) -> list[Path]:
    """Config, tokenizer, chat template: what belongs to a checkpoint beside its weights and its card."""
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in BESIDE_WEIGHTS)
    return [path for path in found if not path.name.endswith(".index.json")]
