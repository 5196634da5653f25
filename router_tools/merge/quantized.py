"""A copy of a checkpoint that is quantised already: what a small disk holds, and what loads without quantising anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from router_backend.errors import CandidateError

PRECISIONS = ("8bit", "4bit")


def write(folder: Path, out: Path, precision: str, *, shard_bytes: int) -> Any:  # noqa: ANN401 - the library's
    """Quantises the checkpoint with bitsandbytes, as the rungs of that name do, and writes it to a folder.

    Returns:
        The model that was written.

    Raises:
        CandidateError: transformers or bitsandbytes refuse it.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        dtype = getattr(config.get_text_config(), "dtype", None) or torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=_recipe(precision, dtype), device_map="cpu", local_files_only=True
        )
        model.save_pretrained(out, max_shard_size=shard_bytes)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise CandidateError(f"it cannot be quantised to {precision}: {type(error).__name__}: {error}") from error
    for path in beside_weights(folder):
        if not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    return model.eval()


def _recipe(precision: str, dtype: torch.dtype) -> Any:  # noqa: ANN401 - the library's
    if precision == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def beside_weights(folder: Path) -> list[Path]:
    """Config, tokenizer, chat template: what belongs to a checkpoint beside its weights and its card."""
    kept = (".json", ".jinja", ".txt", ".model")
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in kept)
    return [path for path in found if not path.name.endswith(".index.json")]
