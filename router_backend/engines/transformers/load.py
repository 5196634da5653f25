"""The transformers engine: merged checkpoints in safetensors, in every precision of the ladder.

The library loads the weights and computes the logits; the decoding is ours (`router_backend.engines.transformers`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from router_backend.checkpoints import footprint, machine
from router_backend.checkpoints.description import check_loaded
from router_backend.decisions.calibration import temperature_of
from router_backend.engines.conversation import instructions
from router_backend.engines.transformers import drafter
from router_backend.engines.transformers.model import DecodedModel, is_out_of_memory, release_memory
from router_backend.engines.transformers.reading import read
from router_backend.engines.transformers.rehearsal import rehearse
from router_backend.engines.transformers.runner import TorchRunner
from router_backend.errors import CandidateError, LoadError, RungError, words_of
from router_backend.plan.prompt import BUDGET_KEY
from router_backend.types import ModelInfo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from router_backend.checkpoints.ladder import Rung
    from router_backend.settings import Settings

T = TypeVar("T")
# It says at every multiplication that it casts.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def load(rung: Rung, settings: Settings, path: Path, **parts: Any) -> DecodedModel:  # noqa: ANN401 - DecodedModel's
    """Loads a complete folder. `parts` switch off what `DecodedModel` does to save passes, by its names.

    Raises:
        CandidateError: it is broken.
        RungError: it does not load in this precision. Nothing of it stays in memory.
        SettingsError: the drafter file is wrong.
    """
    on_cpu = "cpu" in (rung.strategy, settings.model_device) or not torch.cuda.is_available()
    device = "cpu" if on_cpu else "cuda"
    if settings.model_device == "cuda" and device == "cpu":
        raise RungError("MODEL_DEVICE=cuda, and torch sees no accelerator here")
    if not sys.stderr.isatty():
        disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    remembered = list(drafter.read(settings.drafter)) if settings.drafter else []
    return explained(lambda: _load(path, device, rung, settings, {"remembered": remembered, **parts}))


def _load(folder: Path, device: str, rung: Rung, settings: Settings, parts: dict[str, Any]) -> DecodedModel:
    wanted, trusted = settings.prompt_format, settings.trust_remote_code
    rehearse(folder, wanted, trusted=trusted, patience=settings.watchdog_timeout)
    config, tokens = read(folder, wanted, trusted=trusted)
    model = _weights(folder, config, trust_remote_code=trusted, **precision(rung.strategy, device))
    longest = getattr(config.get_text_config(), "max_position_embeddings", settings.context_length)
    context = min(settings.context_length, longest)
    # It decodes one request at a time, and keeps the prefixes of as many as there are slots.
    runner = TorchRunner(
        model, kept_tokens=context * settings.slots, branches=settings.slots, common=instructions(tokens.wrap)
    )
    drafts = 0 if settings.repeatable else settings.draft_tokens
    told: dict[str, Any] = {
        "draft_tokens": drafts,
        "prefix_cache": not settings.repeatable,
        # Without a GPU at start there is nothing to measure, and with one passes are what counts.
        "pace": runner.pace(1 + drafts) if drafts and not settings.spaces_zero_gpu else None,
        **parts,
    }
    return DecodedModel(
        ModelInfo(
            rung.candidate.name,
            rung.strategy,
            "transformers",
            context,
            budget_line=bool(getattr(config, BUDGET_KEY, False)),
            temperature=temperature_of(folder),
            warnings=tuple(tokens.warnings),
        ),
        tokens,
        runner,
        **told,
    )


def _weights(folder: Path, config: PreTrainedConfig, **told: Any) -> PreTrainedModel:  # noqa: ANN401 - the library's
    """The model. Raises CandidateError where the files lack some of it: the library would make up the rest."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **told,
    )
    check_loaded(report)
    return model.eval()


def precision(strategy: str, device: str) -> dict[str, Any]:
    """What `from_pretrained` is told for a rung. `native` is left to the checkpoint's own configuration."""
    best = torch.bfloat16 if device == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
    if device == "cpu":
        best = getattr(torch, footprint.cpu_dtype(machine.inspect())[0])
    told: dict[str, Any] = {"dtype": _DTYPES.get(strategy, best)}
    if strategy in ("8bit", "4bit"):
        told["quantization_config"] = bitsandbytes(strategy, best)
    elif strategy == "native":
        told["dtype"] = "auto"
    several = device == "cuda" and torch.cuda.device_count() > 1
    told["device_map"] = "auto" if several else {"": 0 if device == "cuda" else "cpu"}
    return told


def bitsandbytes(strategy: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How a checkpoint is quantised for the rung `8bit` or `4bit`, here and where a copy of it is written."""
    if strategy == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def explained(load: Callable[[], T]) -> T:
    """Calls `load` and turns the libraries' errors into the ladder's. Holds on to nothing of a load that failed."""
    try:
        return load()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        failure = _failure(error)
    # Only here is the failed load's traceback gone, and with it the tensors in its frames.
    release_memory()
    raise failure


def _failure(error: BaseException) -> LoadError:
    if isinstance(error, LoadError):
        return type(error)(error.message)
    if is_out_of_memory(error):
        return RungError("out of memory while loading")
    if isinstance(error, ImportError):
        return RungError(f"not installed here: {words_of(error)}")
    if isinstance(error, OSError | SafetensorError):
        return CandidateError(f"broken checkpoint: {words_of(error)}")
    return RungError(words_of(error))
