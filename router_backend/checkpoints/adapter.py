"""Adapter: a LoRA adapter in PEFT's format, read for merging. numpy alone: no torch on a user's machine.

PEFT can put far more into an adapter than products of two matrices. What this module computes as PEFT does, and what
has no effect on a merge, is listed here; everything else is refused by its name, and so is what a later PEFT may add.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import deserialize, safe_open

from router_backend.errors import CandidateError, explained
from router_backend.plan.prompt import BUDGET_KEY

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# What this module computes with.
_COMPUTED = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})
# Where the adapter came from, which modules it was put on (its tensors say that), and settings of what is off anyway.
_WITHOUT_EFFECT = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
        *("eva_config", "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size"),
        *("inference_mode", "runtime_config"),
    }
)
# The starts that leave the base as it is. The others (pissa, olora, corda, loftq, lora_ga, …) change it first.
_STARTS = frozenset({True, False, "gaussian", "eva", "orthogonal", "mica"})
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_ELSEWHERE = "merge it with PEFT's own merge_and_unload, if that can, and serve the result"

Matrix = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Lora:
    """One layer's product.

    Attributes:
        lower: A, (rank, in).
        upper: B, (out, rank).
        scale: what the product is multiplied by.
    """

    lower: Matrix
    upper: Matrix
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.upper.shape[0], self.lower.shape[1]

    def rows(self, start: int, end: int) -> npt.NDArray[np.float64]:
        """What is added to these rows of the weight, in fp64: (end - start, in)."""
        product: npt.NDArray[np.float64] = self.upper[start:end].astype(np.float64) @ self.lower.astype(np.float64)
        product *= self.scale
        return product


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that can be merged.

    Attributes:
        folder: where it is.
        layers: by the path of the module that each belongs to.
        knows_budgets: whether it was trained with the line of `plan.prompt.with_budget`.
    """

    folder: Path
    layers: dict[str, Lora]
    knows_budgets: bool


def read(folder: Path) -> Adapter:
    """The adapter in a folder.

    Raises:
        CandidateError: it is none, it is damaged, or merging it takes more than adding products.
    """
    if not (folder / ADAPTER).is_file() or not (folder / ADAPTER_CONFIG).is_file():
        raise CandidateError(_no_adapter(folder))
    with explained(f"{folder} cannot be read as an adapter"):
        config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
        raw = dict(deserialize((folder / ADAPTER).read_bytes()))  # type: ignore[no-untyped-call]
        with safe_open(folder / ADAPTER, "numpy") as opened:
            knows_budgets = BUDGET_KEY in (opened.metadata() or {})
    if not isinstance(config, dict):
        raise CandidateError(f"{folder / ADAPTER_CONFIG} holds no JSON object")
    with explained(f"{folder / ADAPTER_CONFIG} holds a wrong value"):
        _refuse(config)
        tensors = {key: _numbers(key, each) for key, each in raw.items()}
        return Adapter(folder, dict(_layers(config, tensors)), knows_budgets)


def _no_adapter(folder: Path) -> str:
    if not folder.exists():
        return (
            f"{folder} does not exist: name the folder of an adapter. One that is on a hub is fetched first, "
            f"with 'hf download {folder} --local-dir FOLDER'"
        )
    if not folder.is_dir():
        return f"{folder} is a file: name the folder of an adapter. The base comes first, then the adapter"
    if (folder / "config.json").is_file():
        return f"{folder} is a checkpoint, not an adapter: the base comes first, then the adapter"
    if not (folder / ADAPTER_CONFIG).is_file():
        return f"{folder} is not an adapter in PEFT's format: it has no {ADAPTER_CONFIG}"
    pickled = ", and adapter_model.bin can run code: save it again with PEFT" if any(folder.glob("*.bin")) else ""
    return f"{folder} is not an adapter that can be read: it has no {ADAPTER}{pickled}"


def _refuse(config: Mapping[str, Any]) -> None:
    """Raises CandidateError where the adapter is more than products beside weights that stay as they were."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CandidateError(f"only LoRA adapters can be merged, not peft_type={kind!r}: {_ELSEWHERE}")
    start = config.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _STARTS:
        raise CandidateError(
            f"the adapter cannot be merged: it belongs to a base that init_lora_weights={start!r} changed before the "
            f"training. Save it again with path_initial_model_for_weight_conversion, or {_ELSEWHERE}"
        )
    known = _COMPUTED | _WITHOUT_EFFECT | {"init_lora_weights"}
    bias = {"bias"} if config.get("bias") == "none" else set()
    if more := sorted(name for name, value in config.items() if value and name not in known | bias):
        said = ", ".join(f"{name}={config[name]!r}"[:80] for name in more)
        raise CandidateError(f"the adapter cannot be merged: it was made with {said}. Instead {_ELSEWHERE}")


def _numbers(key: str, stored: Mapping[str, Any]) -> Matrix:
    """A tensor out of its bytes; bf16, which numpy does not have, as fp32."""
    if stored["dtype"] not in _DTYPES:
        raise CandidateError(f"the adapter's {key} is {stored['dtype']}: it has to be one of {', '.join(_DTYPES)}")
    found: Matrix = np.frombuffer(stored["data"], _DTYPES[stored["dtype"]]).reshape(stored["shape"])
    if stored["dtype"] == "BF16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    if not np.isfinite(found).all():
        raise CandidateError(f"the adapter is broken: its {key} holds numbers that are not finite")
    return found


def _layers(config: Mapping[str, Any], tensors: Mapping[str, Matrix]) -> Iterator[tuple[str, Lora]]:
    halves = (".lora_A.weight", ".lora_B.weight")
    if others := sorted(key for key in tensors if not key.endswith(halves)):
        raise CandidateError(
            f"the adapter cannot be merged: {len(others)} of its tensors are not LoRA's two matrices of a linear layer "
            f"({others[0]}). Instead {_ELSEWHERE}"
        )
    if not tensors:
        raise CandidateError("the adapter holds no LoRA weights")
    for stem in sorted({key.removesuffix(half) for key in tensors for half in halves if key.endswith(half)}):
        module = stem.removeprefix(_PREFIX)
        lower, upper = (tensors.get(stem + half) for half in halves)
        if lower is None or upper is None or lower.ndim != 2 or upper.ndim != 2 or upper.shape[1] != lower.shape[0]:
            raise CandidateError(f"the adapter is broken: {module} has no two matrices that fit together")
        rank = int(_of(config, "rank_pattern", module, config.get("r", 8)))
        if rank != lower.shape[0]:
            raise CandidateError(
                f"the adapter is broken: {module} has rank {lower.shape[0]}, and {rank} in {ADAPTER_CONFIG}"
            )
        alpha = float(_of(config, "alpha_pattern", module, config.get("lora_alpha", 8)))
        if not math.isfinite(alpha):
            raise ValueError(f"lora_alpha={alpha}")
        yield module, Lora(lower, upper, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of(config: Mapping[str, Any], patterns: str, module: str, default: Any) -> Any:  # noqa: ANN401
    """A module's own value, as PEFT finds it: the first pattern that its path ends with."""
    named = (config.get(patterns) or {}).items()
    return next((value for key, value in named if re.match(rf"(.*\.)?({key})$", module)), default)


def fit(layers: Mapping[str, Lora], shapes: Mapping[str, Sequence[int]]) -> dict[str, Lora]:
    """The layers by the name of the checkpoint's tensor that each belongs to.

    Names in files and paths of modules differ in how the language model is wrapped, so `model` and `language_model` are
    left out of the comparison.

    Args:
        shapes: of the checkpoint's tensors, by their names.

    Raises:
        CandidateError: a layer fits no tensor, or two fit the same.
    """
    there = {_bare(name): name for name in shapes if name.endswith(".weight")}
    found: dict[str, Lora] = {}
    for module, lora in layers.items():
        name = there.get(_bare(f"{module}.weight"))
        if name is None or tuple(shapes[name]) != lora.shape:
            has = f"that is {tuple(shapes[name])} in the base" if name else "that the base does not have"
            raise CandidateError(f"the adapter is for another base: it holds {module} of {lora.shape}, {has}")
        if name in found:
            raise CandidateError(f"the adapter is broken: it holds {module} twice")
        found[name] = lora
    return found


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("model", "language_model"))
