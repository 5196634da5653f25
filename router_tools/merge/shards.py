"""A merged checkpoint's weight files, written one after the other: never more than a part of it is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open
from safetensors.torch import save_file

from router_backend.checkpoints.adapter import Lora, fit
from router_backend.checkpoints.description import INDEX, Folder, weight_files
from router_backend.errors import CandidateError, explained

# As safetensors names them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK = 1 << 19  # elements of a tensor that are computed at once


@contextmanager
def opened(folder: Path) -> Iterator[dict[str, Any]]:
    """The tensors of a folder of safetensors by their names, as the library's slices: not read yet.

    Raises:
        CandidateError: a file is broken.
    """
    with ExitStack() as files:
        slices: dict[str, Any] = {}
        with explained(f"{folder} holds a broken weight file"):
            for name in weight_files(Folder(folder)):
                file = files.enter_context(safe_open(folder / name, "pt"))
                slices |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no dict
        files.callback(slices.clear)
        yield slices


def write(
    base: Path,
    out: Path,
    layers: Mapping[str, Lora],
    *,
    dtype: torch.dtype | None,
    memory: int,
    note: Callable[[str], object],
) -> None:
    """Writes base and adapter as one into the folder `out`.

    Weights are added in fp64 and rounded once. Tensors that hold no floating-point numbers stay as they are.

    Args:
        dtype: of the result; None: each tensor's own.
        memory: bytes that may be in use for it. A shard takes half of them, unless one tensor alone is larger.
        note: is told what is written.

    Raises:
        CandidateError: base and adapter do not fit together, or a number does not fit into the dtype.
    """
    with opened(base) as weights:
        deltas = fit(layers, {name: each.get_shape() for name, each in weights.items()})
        kinds = {name: each.get_dtype() for name, each in weights.items()}
        wanted = {name: dtype if kind in DTYPES else None for name, kind in kinds.items()}
        stored = {name: wanted[name] or DTYPES.get(kind, torch.float64) for name, kind in kinds.items()}
        sizes = {name: prod(weights[name].get_shape()) * each.itemsize for name, each in stored.items()}
        split = split_state_dict_into_shards_factory(
            sizes, get_storage_size=int, filename_pattern="model{suffix}.safetensors", max_shard_size=memory // 2
        )
        for file, part in split.filename_to_tensors.items():
            note(f"{file}: {len(part)} tensors, {sum(sizes[name] for name in part) / 1e6:,.0f} MB")
            tensors = {name: _merged(name, weights[name], deltas.get(name), wanted[name]) for name in part}
            save_file(tensors, out / file, metadata={"format": "pt"})
            del tensors
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _merged(name: str, weight: Any, lora: Lora | None, dtype: torch.dtype | None) -> torch.Tensor:  # noqa: ANN401 - a slice
    result: torch.Tensor
    if lora is None:
        whole = weight[...]
        result = whole.to(dtype) if dtype and whole.is_floating_point() else whole
    else:
        if (kind := weight.get_dtype()) not in DTYPES:
            raise CandidateError(f"{name} is quantised ({kind}): merge into the base as it was before")
        high, wide = weight.get_shape()
        result = torch.empty((high, wide), dtype=dtype or DTYPES[kind])
        step = max(1, _BLOCK // wide)
        for start in range(0, high, step):
            end = min(start + step, high)
            result[start:end] = torch.from_numpy(lora.rows(start, end)).add_(weight[start:end])
    if dtype is torch.float16 and not result.isfinite().all():
        raise CandidateError(f"{name} holds numbers that fp16 cannot: choose bf16")
    return result.contiguous()
