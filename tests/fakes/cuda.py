"""A CUDA for a torch that is built without: what `spaces` asks of it, with the tensors left on the CPU.

It proves that a model is placed, packed on the disk, read back in a worker and run there; nothing about real memory,
kernels or speed. Install it before `spaces` and anything with torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def install() -> None:
    torch.set_num_threads(1)
    vars(torch.version)["cuda"] = "12.8"
    vars(torch._C)["_cuda_init"] = _nothing
    vars(torch._C)["_cuda_getCurrentRawStream"] = _nothing
    vars(torch.cuda)["_is_in_bad_fork"] = _no
    import bitsandbytes  # noqa: F401 - it looks for a GPU once, and must not find the one that `spaces` pretends
    import spaces.zero.torch

    spaces.zero.torch.init = _nothing
    spaces.zero.torch.move = _read_back


def _nothing(*ignored: object) -> int:
    return 0


def _no() -> bool:
    return False


def _read_back(callback: Callable[[int], Any] | None = None) -> None:
    """As `spaces` moves the packs to the GPU, but into memory."""
    from spaces.zero.torch import patching

    for fake, original in patching.cuda_aliases.items():
        if original is not None:
            fake.data = original
    for pack in patching.tensor_packs:
        with open(pack.path(), "rb", buffering=0) as file:  # noqa: PTH123
            for tensor, size, whole in [each for batch in pack.batches for each in batch] + pack.big_tensors:
                storage = torch.frombuffer(bytearray(file.read(whole)), dtype=torch.uint8)[:size]
                found = torch.empty(0, dtype=tensor.dtype).set_(
                    storage.untyped_storage(), 0, tensor.shape, tensor.stride()
                )
                for fake in pack.fakes[tensor]:
                    fake.data = found
