"""A merged checkpoint's weight files, written one after the other: never more than a part of it is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from router_backend.checkpoints.adapter import Lora, fit
from router_backend.checkpoints.description import INDEX, Folder, weight_files
from router_backend.errors import CandidateError

# As safetensors names them.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCK = 1 << 19  # elements of a tensor that are computed at once


class Weights(ExitStack):
    """The tensors of a folder of safetensors, opened and not read. Use it as a context.

    Attributes:
        shapes: in the order of the files.
        kinds: safetensors' name of each one's dtype.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._slices: dict[str, Any] = {}
        try:
            for file in weight_files(Folder(folder)):
                opened = self.enter_context(safe_open(folder / file, "pt"))
                self._slices |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no dict
        except SafetensorError as error:
            self.close()
            raise CandidateError(f"{folder} holds a broken weight file: {error}") from None
        self.callback(self._slices.clear)
        self.shapes = {name: tuple(each.get_shape()) for name, each in self._slices.items()}
        self.kinds = {name: str(each.get_dtype()) for name, each in self._slices.items()}

    def whole(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._slices[name][...]
        return found

    def rows(self, name: str, start: int, end: int) -> torch.Tensor:
        found: torch.Tensor = self._slices[name][start:end]
        return found


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
    with Weights(base) as weights:
        deltas = fit(layers, weights.shapes)
        kinds = {name: dtype if dtype and kind in DTYPES else None for name, kind in weights.kinds.items()}
        stored = {name: kinds[name] or DTYPES.get(weights.kinds[name], torch.float64) for name in kinds}
        sizes = {name: prod(weights.shapes[name]) * each.itemsize for name, each in stored.items()}
        split = split_state_dict_into_shards_factory(
            sizes, get_storage_size=int, filename_pattern="model{suffix}.safetensors", max_shard_size=memory // 2
        )
        for file, part in split.filename_to_tensors.items():
            note(f"{file}: {len(part)} tensors, {sum(sizes[name] for name in part) / 1e6:,.0f} MB")
            tensors = {name: _merged(weights, name, deltas.get(name), kinds[name]) for name in part}
            save_file(tensors, out / file, metadata={"format": "pt"})
            del tensors
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _merged(weights: Weights, name: str, lora: Lora | None, dtype: torch.dtype | None) -> torch.Tensor:
    if lora is None:
        whole = weights.whole(name)
        result = whole.to(dtype) if dtype and whole.is_floating_point() else whole
    else:
        if weights.kinds[name] not in DTYPES:
            raise CandidateError(f"{name} is quantised ({weights.kinds[name]}): merge into the base as it was before")
        high, wide = weights.shapes[name]
        result = torch.empty((high, wide), dtype=dtype or DTYPES[weights.kinds[name]])
        step = max(1, _BLOCK // wide)
        for start in range(0, high, step):
            end = min(start + step, high)
            result[start:end] = torch.from_numpy(lora.rows(start, end)).add_(weights.rows(name, start, end))
    if dtype is torch.float16 and not result.isfinite().all():
        raise CandidateError(f"{name} holds numbers that fp16 cannot: choose bf16")
    return result.contiguous()
