"""Base GGUF + LoRA adapter = the GGUF that is served. numpy alone: no torch on a user's machine.

The result is the same to the byte wherever it is made: the adapter's numbers are multiplied and added in fp64, where
their sums are exact to far below what the quantiser can see, and everything else is element by element.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import secrets
import time
from collections.abc import Iterator
from glob import escape
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

from router_backend.checkpoints.adapter import Adapter, read
from router_backend.checkpoints.footprint import disk_shortfall
from router_backend.errors import CandidateError, InvalidRequest, explained
from router_backend.plan.prompt import BUDGET_KEY

# What this module can write, with llama.cpp's number for a file of that kind.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
# Those whose linear layers llama.cpp keeps as they are, but for llama's query and key rows.
ARCHITECTURES = {
    name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name in ("llama", "qwen2", "qwen3", "gemma3")
}

_ABANDONED = 3600.0  # seconds after which nobody writes a merged file any more
Array = npt.NDArray[np.float32]


class Reader(GGUFReader):  # type: ignore[misc] # it is untyped
    """gguf's reader over a plain array: it takes 800,000 slices of a file, and one of a memmap takes thrice as long."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value.view(np.ndarray) if isinstance(value, np.memmap) else value)


def merge(base: Path, adapter: Path, out: Path, *, kind: str = "Q8_0", expect: str | None = None) -> str:
    """Writes the merged, quantised checkpoint and returns its SHA-256.

    The file appears whole or not at all. Embeddings, which are the output head too, never get less than 8 bits.

    Args:
        base: a GGUF file of one of the `ARCHITECTURES`.
        adapter: a folder with a LoRA adapter in PEFT's format.
        out: the GGUF file to write.
        kind: one of `FILE_TYPES`.
        expect: the SHA-256 that the file must have.

    Raises:
        InvalidRequest: the kind is not one of them.
        CandidateError: base and adapter do not fit together, one of them is damaged, or the hash is another.
        OSError: there is no room for it, or no place.
    """
    check_kind(kind)
    read_adapter = read(adapter)
    with explained(f"{base.name} cannot be read as a GGUF base"):
        reader = Reader(base)
        deltas = _deltas(read_adapter, reader)
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    needed = sum(int(tensor.n_elements) for tensor in reader.tensors) * size // block
    out.parent.mkdir(parents=True, exist_ok=True)
    if short := disk_shortfall(needed, out.parent):
        raise OSError(errno.ENOSPC, short, str(out.parent))
    _tidy(out)
    # Two processes may start at once, and have one pid where each is in a container.
    new = out.with_name(f"{out.name}.{secrets.token_hex(8)}.new")
    try:
        _write(reader, deltas, new, kind, read_adapter.knows_budgets)
        digest = hashlib.sha256(new.read_bytes()).hexdigest()
        if expect is not None and digest != expect:
            raise CandidateError(f"the merged checkpoint has the hash {digest[:12]}…, it should have {expect[:12]}…")
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    return digest


def _tidy(out: Path) -> None:
    """Removes what a merge left that was killed long ago."""
    for left in out.parent.glob(f"{escape(out.name)}.*.new"):
        with contextlib.suppress(OSError):  # another process may do the same
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()


def check_kind(kind: str) -> None:
    """Raises InvalidRequest where a GGUF of that kind cannot be written here."""
    if kind not in FILE_TYPES:
        raise InvalidRequest(f"a GGUF of the kind {kind} cannot be written: choose from {', '.join(FILE_TYPES)}")


def _deltas(adapter: Adapter, reader: Reader) -> dict[str, Array]:
    """What the adapter adds to each tensor, by the tensor's name in the GGUF."""
    if (files := _number(reader, "split.count", 1)) > 1:
        raise CandidateError(
            f"the base is one of {files} files: join them first, with llama.cpp's llama-gguf-split --merge FIRST OUT"
        )
    names = tensor_names(reader)
    heads: dict[str, int] = {}
    if _architecture(reader) == "llama":
        heads["q_proj"] = _number(reader, "llama.attention.head_count")
        heads["k_proj"] = _number(reader, "llama.attention.head_count_kv", heads["q_proj"])
    shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    deltas: dict[str, Array] = {}
    for module, lora in adapter.layers.items():
        name = f"{names.get_name(module.replace('.language_model.', '.'))}.weight"
        if shapes.get(name) != lora.shape or name in deltas:
            has = f"{name} is {shapes[name]}" if name in shapes else f"there is no {name}"
            raise CandidateError(f"the adapter is for another base: it holds {module} of {lora.shape}, and {has}")
        delta, own = lora.rows(0, lora.shape[0]), module.rpartition(".")[2]
        deltas[name] = (_as_stored(delta, heads[own]) if own in heads else delta).astype(np.float32)
    return deltas


def tensor_names(reader: Reader) -> gguf.TensorNameMap:
    """From the names that transformers gives. Raises CandidateError where the architecture is not one of ours."""
    arch = _architecture(reader)
    return gguf.get_tensor_name_map(ARCHITECTURES[arch], _number(reader, f"{arch}.block_count"))


def _architecture(reader: Reader) -> str:
    arch = str(reader.fields["general.architecture"].contents())
    if arch not in ARCHITECTURES:
        raise CandidateError(
            f"a GGUF of the architecture {arch} cannot be merged, only {', '.join(ARCHITECTURES)}: merge into the "
            "checkpoint in safetensors, and convert what comes of it with llama.cpp's convert_hf_to_gguf.py"
        )
    return arch


def _as_stored(rows: npt.NDArray[np.float64], heads: int) -> npt.NDArray[np.float64]:
    """Query and key rows in llama.cpp's order: the two halves of each head, which rotate together, interleaved."""
    stored: npt.NDArray[np.float64] = rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return stored


def _write(reader: Reader, deltas: dict[str, Array], path: Path, kind: str, knows_budgets: bool) -> None:
    writer = GGUFWriter(path, _architecture(reader))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type", BUDGET_KEY):
            continue
        item = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], item)
    writer.add_file_type(FILE_TYPES[kind])
    if knows_budgets:
        writer.add_bool(BUDGET_KEY, True)
    for name, data, stored in _tensors(reader, deltas, GGMLQuantizationType[kind]):
        writer.add_tensor(name, quantize(data, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(
    reader: Reader, deltas: dict[str, Array], kind: GGMLQuantizationType
) -> Iterator[tuple[str, Array, GGMLQuantizationType]]:
    for tensor in reader.tensors:
        try:
            data = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        except NotImplementedError:
            name = tensor.tensor_type.name
            raise CandidateError(
                f"{tensor.name} is {name}, which cannot be read: take the base in another kind"
            ) from None
        if tensor.name in deltas:
            data += deltas[tensor.name]
        if data.ndim == 1:
            yield tensor.name, data, GGMLQuantizationType.F32
        elif data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            yield tensor.name, data, GGMLQuantizationType.F16
        elif tensor.name in ("token_embd.weight", "output.weight") and kind.name.startswith(("Q4", "Q5")):
            yield tensor.name, data, GGMLQuantizationType.Q8_0
        else:
            yield tensor.name, data, kind


def _number(reader: Reader, name: str, default: int | None = None) -> int:
    value = reader.fields[name].contents() if name in reader.fields or default is None else default
    if not isinstance(value, int):
        raise CandidateError(f"the base's {name} is not a number")
    return value
