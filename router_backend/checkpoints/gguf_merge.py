"""Base GGUF + LoRA adapter = the GGUF that is served. numpy alone: no torch on a user's machine.

The result is the same to the byte wherever it is made: the adapter's fp16 numbers are multiplied and added in fp64,
where their sums are exact to far below what the quantiser can see, and everything else is element by element.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from router_backend.errors import CandidateError
from router_backend.plan.prompt import BUDGET_KEY

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What this module can write, with llama.cpp's number for a file of that kind.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}

Array = npt.NDArray[np.float32]


def merge(base: Path, adapter: Path, out: Path, *, kind: str = "Q8_0", expect: str | None = None) -> str:
    """Writes the merged, quantised checkpoint and returns its SHA-256.

    The file appears whole or not at all. Embeddings, which are the output head too, never get less than 8 bits.

    Args:
        base: a GGUF file of the llama architecture.
        adapter: a folder with a LoRA adapter in PEFT's format.
        out: the GGUF file to write.
        kind: one of `FILE_TYPES`.
        expect: the SHA-256 that the file must have.

    Raises:
        CandidateError: base and adapter do not fit together, one of them is damaged, or the hash is another.
    """
    try:
        reader = GGUFReader(base)
        deltas = _deltas(adapter, reader)
        with safe_open(adapter / ADAPTER, "numpy") as opened:
            knows_budgets = BUDGET_KEY in (opened.metadata() or {})
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CandidateError(f"{base.name} and {adapter.name} cannot be merged: {type(error).__name__}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f"{out.name}.{os.getpid()}.new")  # two processes may start at once
    try:
        _write(reader, deltas, new, kind, knows_budgets)
        digest = hashlib.sha256(new.read_bytes()).hexdigest()
        if expect is not None and digest != expect:
            raise CandidateError(f"the merged checkpoint has the hash {digest[:12]}…, it should have {expect[:12]}…")
        new.replace(out)
    finally:
        new.unlink(missing_ok=True)
    return digest


def _deltas(adapter: Path, reader: GGUFReader) -> dict[str, Array]:
    """What the adapter adds to each tensor, by the tensor's name in the GGUF."""
    arch = _value(reader, "general.architecture")
    if arch != "llama":
        raise CandidateError(f"only the llama architecture can be merged, not {arch}")
    config = json.loads((adapter / ADAPTER_CONFIG).read_text("utf-8"))
    heads = {"q_proj": _number(reader, "llama.attention.head_count")}
    heads["k_proj"] = _number(reader, "llama.attention.head_count_kv")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, _number(reader, "llama.block_count"))
    shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    weights, deltas = load_file(adapter / ADAPTER), {}
    for key in sorted(key for key in weights if key.endswith(".lora_A.weight")):
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        name = f"{names.get_name(module)}.weight"
        upper = weights[key.replace("lora_A", "lora_B")].astype(np.float64)
        delta = upper @ weights[key].astype(np.float64) * (config["lora_alpha"] / config["r"])
        if shapes.get(name) != delta.shape:
            raise CandidateError(f"the adapter's {module} fits no tensor of {shapes.get(name, 'the base')}")
        own = module.rpartition(".")[2]
        deltas[name] = (_as_stored(delta, heads[own]) if own in heads else delta).astype(np.float32)
    if not deltas:
        raise CandidateError("the adapter holds no LoRA weights")
    return deltas


def _as_stored(rows: npt.NDArray[np.float64], heads: int) -> npt.NDArray[np.float64]:
    """Query and key rows in llama.cpp's order: the two halves of each head, which rotate together, interleaved."""
    stored: npt.NDArray[np.float64] = rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return stored


def _write(reader: GGUFReader, deltas: dict[str, Array], path: Path, kind: str, knows_budgets: bool) -> None:
    writer = GGUFWriter(path, "llama")
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
    reader: GGUFReader, deltas: dict[str, Array], kind: GGMLQuantizationType
) -> Iterator[tuple[str, Array, GGMLQuantizationType]]:
    for tensor in reader.tensors:
        data = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in deltas:
            data += deltas[tensor.name]
        if data.ndim == 1:
            yield tensor.name, data, GGMLQuantizationType.F32
        elif tensor.name == "token_embd.weight" and kind.name.startswith(("Q4", "Q5")):
            yield tensor.name, data, GGMLQuantizationType.Q8_0
        else:
            yield tensor.name, data, kind


def _value(reader: GGUFReader, name: str) -> object:
    return reader.fields[name].contents()


def _number(reader: GGUFReader, name: str) -> int:
    value = _value(reader, name)
    if not isinstance(value, int):
        raise CandidateError(f"the base's {name} is no number")
    return value
