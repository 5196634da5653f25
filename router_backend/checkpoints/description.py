"""Checkpoint: what is known of one without its weights, out of its config and the headers of its safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

from router_backend.errors import CandidateError

INDEX = "model.safetensors.index.json"
BESIDE_WEIGHTS = (".json", ".jinja", ".txt", ".model")  # config, tokenizer, chat template
_SINGLE = "model.safetensors"
_FIRST_READ = 1 << 17  # most headers are smaller
_LONGEST_HEADER = 100_000_000  # the format's own limit
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_POINTER = b"version https://git-lfs"
_LONGEST_POINTER = 1024
_FULL = {"BF16", "F16", "F32", "F64"}
# Methods whose weights are stored packed, and the ends of the names that packed tensors have.
_STORED_PACKED = {"awq", "gptq", "compressed-tensors", "bitsandbytes", "mxfp4", "fp8", "eetq", "hqq", "quanto"}
_PACKED = (".qweight", ".weight_packed", ".SCB", ".absmax", ".W_q", "_blocks")
_ADAPTER = (
    "it is a LoRA adapter, not a whole checkpoint: merge it with the model that it was trained on first "
    "(router-backend merge BASE ADAPTER OUT)"
)
_VOCABULARIES = ("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model")


class Source(Protocol):
    """Where a checkpoint's files are: a folder, or a repository on a hub."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Name → bytes. Those at the top, at least, are there."""
        ...

    def read(self, name: str, start: int, count: int) -> bytes:
        """At most `count` bytes from `start` on. Raises CandidateError."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What foresight needs.

    Attributes:
        config: as in config.json.
        stored_bytes: of the weight files.
        linear: parameters in linear layers inside the blocks, which bitsandbytes quantises.
        rows: output rows of those layers together.
        matrices: how many those layers are.
        other: all other parameters: embeddings, head, norms, biases.
        quantized: the method, where the checkpoint comes quantised already.
    """

    config: Mapping[str, Any]
    stored_bytes: int
    linear: int = 0
    rows: int = 0
    matrices: int = 0
    other: int = 0
    quantized: str | None = None

    @property
    def text(self) -> Mapping[str, Any]:
        """The language model's part of the config, which models that also see keep in a section of its own."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, Mapping) else self.config


class Folder:
    """A checkpoint on this machine."""

    def __init__(self, path: Path, *, nested: bool = False) -> None:
        patterns = ("**/*",) if nested else ("*", "*/*")
        files = (entry for pattern in patterns for entry in path.glob(pattern) if entry.is_file())
        self.path = path
        self.sizes = {entry.relative_to(path).as_posix(): entry.stat().st_size for entry in files}

    def read(self, name: str, start: int, count: int) -> bytes:
        with (self.path / name).open("rb") as file:
            file.seek(start)
            return file.read(count)


def describe(source: Source, *, trust_remote_code: bool = False) -> Checkpoint:
    """Reads config and headers; no weights.

    Raises:
        CandidateError: no config, code of its own, no safetensors, a broken or missing file.
    """
    config = read_config(source, trust_remote_code=trust_remote_code)
    names = weight_files(source)
    for name, size in source.sizes.items():
        if is_tokenizer(name) and size < _LONGEST_POINTER:
            _no_pointer(name, source.read(name, 0, len(_POINTER)))
    with ThreadPoolExecutor(8) as pool:
        tensors = {name: each for part in pool.map(lambda name: _tensors(source, name), names) for name, each in part}
    _check_method(config, tensors, names[0])
    bits = _bits(_section(config))
    shapes = dict(_unpacked(name, dtype, shape, bits) for name, (dtype, shape) in tensors.items())
    return count(config, shapes, sum(source.sizes[name] for name in names))


def read_config(source: Source, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """config.json. Raises CandidateError where there is none, or it asks for code of its own that is not trusted."""
    if "config.json" not in source.sizes:
        raise CandidateError(_no_config(source.sizes))
    config = _read_json(source, "config.json")
    if "auto_map" in config and not trust_remote_code:
        raise CandidateError(
            "it brings code of its own (auto_map in config.json), which is not run: "
            "read that code, and set TRUST_REMOTE_CODE=1 if you trust it"
        )
    return config


def count(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], stored_bytes: int) -> Checkpoint:
    """A checkpoint out of the names and shapes of its tensors."""
    tied = config.get("tie_word_embeddings") and any("embed_tokens" in name for name in shapes)
    held = {name: shape for name, shape in shapes.items() if not (tied and name.endswith("lm_head.weight"))}
    linear = {name: shape for name, shape in held.items() if _is_linear(name, shape)}
    return Checkpoint(
        config=config,
        stored_bytes=stored_bytes,
        linear=sum(prod(shape) for shape in linear.values()),
        rows=sum(shape[0] for shape in linear.values()),
        matrices=len(linear),
        other=sum(prod(shape) for name, shape in held.items() if name not in linear),
        quantized=_method(config),
    )


def gguf(source: Source, names: Iterable[str]) -> Checkpoint:
    """A GGUF checkpoint of these files: of them only the size is known. Raises CandidateError for other files."""
    size = 0
    for name in names:
        size += source.sizes[name]
        _is_gguf(name, source.read(name, 0, len(_POINTER)))
    return Checkpoint(config={}, stored_bytes=size, quantized="gguf")


def gguf_file(path: Path) -> Checkpoint:
    """One GGUF file on this machine. Raises CandidateError where it is another kind of file."""
    with path.open("rb") as file:
        _is_gguf(path.name, file.read(len(_POINTER)))
    return Checkpoint(config={}, stored_bytes=path.stat().st_size, quantized="gguf")


def is_tokenizer(name: str) -> bool:
    """Whether a file of this name, which has no folder, belongs to a tokenizer."""
    return name.startswith("tokenizer") or name in _VOCABULARIES


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a checkpoint is: beside the weights, or in a folder above them.

    That is the next one, and in what was fetched of a repository any of them.
    """
    depth = next((depth for depth, place in enumerate(folder.parents, 1) if place.parent.name == "snapshots"), 1)
    for place in (folder, *folder.parents[:depth]):
        if any(is_tokenizer(entry.name) for entry in place.iterdir()):
            return place
    return folder


def check_loaded(report: Mapping[str, Any]) -> None:
    """Raises CandidateError where the library's own report of a load says that it has made up some of the weights."""
    wrong = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if wrong:
        raise CandidateError(
            f"broken checkpoint: {len(wrong)} of the tensors that its config asks for are missing or of another "
            f"shape ({wrong[0]})"
        )


def weight_files(source: Source) -> tuple[str, ...]:
    """The safetensors files that transformers would load. Raises CandidateError where there are none."""
    sizes = source.sizes
    if _SINGLE in sizes:
        return (_SINGLE,)
    if INDEX not in sizes:
        raise CandidateError(_no_weights(sizes))
    weight_map = _read_json(source, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CandidateError(f"{INDEX} is broken: it names no files")
    names = tuple(sorted(set(map(str, weight_map.values()))))
    if missing := [name for name in names if name not in sizes]:
        raise CandidateError(
            f"it is incomplete: {len(missing)} of {len(names)} weight files are missing ({missing[0]})"
        )
    return names


def _is_linear(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is the weight of a linear layer in a block, by the names that transformers gives them."""
    in_a_block = re.search(r"\.(layers|blocks|h)\.\d+\.", f".{name}")
    return bool(in_a_block) and len(shape) == 2 and name.endswith(".weight") and "embed" not in name


def _section(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    sections = config.get("quantization_config"), config.get("compression_config")
    return next((each for each in sections if isinstance(each, Mapping)), None)


def _bits(section: Mapping[str, Any] | None) -> int:
    """Of a packed weight: of several kinds the fewest, so that no size is underestimated."""
    groups = (section or {}).get("config_groups")
    kinds = [group.get("weights") for group in groups.values()] if isinstance(groups, Mapping) else [section]
    found = [kind.get("num_bits", kind.get("bits")) for kind in kinds if isinstance(kind, Mapping)]
    return min((bits for bits in found if isinstance(bits, int) and bits > 0), default=4)


def _unpacked(name: str, dtype: str, shape: tuple[int, ...], bits: int) -> tuple[str, tuple[int, ...]]:
    """A packed weight by the name, and about the shape, that it has unpacked."""
    for end in (".qweight", ".weight_packed"):
        if name.endswith(end) and shape:
            return f"{name.removesuffix(end)}.weight", (*shape[:-1], shape[-1] * (8 if dtype == "U8" else 32) // bits)
    return name, shape


def _method(config: Mapping[str, Any]) -> str | None:
    section = _section(config)
    return None if section is None else str(section.get("quant_method") or "bitsandbytes")


def _no_pointer(name: str, head: bytes) -> None:
    """Raises CandidateError where a file begins as what git keeps of it in place of its content."""
    if head.startswith(_POINTER):
        raise CandidateError(
            f"{name} is a git-lfs pointer, not the file itself: run `git lfs pull` where it was cloned, "
            "or let the hub's own client download it"
        )


def _is_gguf(name: str, head: bytes) -> None:
    _no_pointer(name, head)
    if not head.startswith(b"GGUF"):
        raise CandidateError(f"{name} is not a GGUF file: it does not begin as one")


def _check_method(config: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]], file: str) -> None:
    """Raises CandidateError where config.json and the weights do not agree on whether they are quantised."""
    section = _section(config)
    method = _method(config)
    packed = sorted(name for name in tensors if name.endswith(_PACKED))
    dtypes = sorted({dtype for dtype, _ in tensors.values()})
    if section is None and packed:
        raise CandidateError(
            f"{file} holds quantised weights ({packed[0]}), and config.json does not say how (it has no "
            "quantization_config): fetch the config.json that belongs to them"
        )
    stored_full = section is None or section.get("format") == "dense" or method not in _STORED_PACKED
    if stored_full or packed or not set(dtypes) <= _FULL:
        return
    raise CandidateError(
        f"config.json says that the weights are quantised by {method} (quantization_config), and {file} holds full "
        f"ones ({', '.join(dtypes)}): take quantization_config out of config.json, or fetch the quantised weights"
    )


def _tensors(source: Source, name: str) -> list[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Names, dtypes and shapes in one safetensors file: eight bytes of length, a JSON header, the data.

    As the documentation of safetensors has the format.
    """
    size = source.sizes[name]
    head = source.read(name, 0, min(size, _FIRST_READ))
    length = int.from_bytes(head[:8], "little")
    _no_pointer(name, head)
    if len(head) < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise CandidateError(f"{name} is no safetensors file, or cut short")
    head = head[8:] + source.read(name, len(head), max(0, 8 + length - len(head)))
    try:
        tensors = {key: value for key, value in json.loads(head[:length]).items() if key != "__metadata__"}
        end = max((value["data_offsets"][1] for value in tensors.values()), default=0)
        found = [(key, (str(value["dtype"]), tuple(value["shape"]))) for key, value in tensors.items()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise CandidateError(f"{name} is no safetensors file: its header is broken") from None
    if size < 8 + length + end:
        raise CandidateError(f"{name} is cut short: {size} of {8 + length + end} bytes. Fetch it again")
    return found


def _read_json(source: Source, name: str) -> dict[str, Any]:
    text = source.read(name, 0, source.sizes[name])
    _no_pointer(name, text)
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CandidateError(f"{name} is broken: it holds no JSON object")
    return found


def _no_config(names: Mapping[str, int]) -> str:
    if "adapter_config.json" in names:
        return _ADAPTER
    if ggufs := sorted(name for name in names if name.endswith(".gguf")):
        more = f" and {len(ggufs) - 8} more" if len(ggufs) > 8 else ""
        return (
            f"it holds GGUF files: name one of them, as in repo:{ggufs[0]} or folder/{ggufs[0]}. "
            f"It has {', '.join(ggufs[:8])}{more}"
        )
    return f"it has no config.json, so it is no checkpoint for transformers{_folders(names)}"


def _no_weights(names: Mapping[str, int]) -> str:
    if "adapter_config.json" in names:
        return _ADAPTER
    if pickles := [name for name in names if name.endswith(_PICKLES) and "/" not in name]:
        return (
            f"its weights are pickle files only ({pickles[0]}), which can run code and are not loaded: "
            "convert them to safetensors"
        )
    return f"it has no weights: neither {_SINGLE} nor {INDEX} is there{_folders(names)}"


def _folders(names: Mapping[str, int]) -> str:
    """The folders inside that have weights, as the end of a sentence."""
    found = sorted({name.rpartition("/")[0] for name in names if name.endswith((f"/{_SINGLE}", f"/{INDEX}"))})
    return f"; folders of it have weights: add /{found[0]} to the name" if found else ""
