"""What commands are given: the base that an adapter is trained on or merged into, and the place for what they make."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_backend.checkpoints import embedded, hub
from router_backend.checkpoints.description import check_loaded, gguf_file, tokenizer_folder
from router_backend.checkpoints.ladder import Candidate, parse_candidate
from router_backend.settings import Settings, check_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def named(option: str, name: str, settings: Settings) -> Candidate:
    """What a name means. Raises SettingsError, with the option, where it is a name that only looks like one."""
    check_name(option, name)
    return parse_candidate(name, settings.model_owner)


def files(base: Candidate, settings: Settings) -> Path:
    """Its folder of safetensors, or its GGUF file, fetched where it is on a hub.

    Raises:
        CandidateError: it cannot be had, or is neither.
    """
    if base.kind == "embedded":
        return embedded.base()
    if base.kind == "gguf":
        gguf_file(Path(base.name))
        return Path(base.name)
    return hub.fetch(base, settings)


def load_model(place: Path, **how: Any) -> Any:  # noqa: ANN401 - what transformers makes of it
    """The model of a folder or a GGUF, in fp32 unless `dtype` says another; a GGUF as a whole, dequantised.

    Raises CandidateError where the library has made up some of the weights, and whatever else it raises.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    if place.is_file():
        how |= {"gguf_file": place.name, "quantization_config": GgufConfig(dequantize=True)}
    else:
        how |= {"use_safetensors": True}
    how |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": True}
    how.setdefault("dtype", torch.float32)
    folder = place.parent if place.is_file() else place
    model, report = AutoModelForCausalLM.from_pretrained(folder, **how)
    check_loaded(report)
    return model.eval()


def load_tokenizer(place: Path) -> PreTrainedTokenizerBase:
    """That of a folder, which may be in a folder above, or of a GGUF. Raises whatever the library raises."""
    from transformers import AutoTokenizer

    if place.is_file():
        return AutoTokenizer.from_pretrained(place.parent, gguf_file=place.name)
    return AutoTokenizer.from_pretrained(tokenizer_folder(place))


def writable(folder: Path) -> Path:
    """The folder, made where it is missing. Raises OSError where no file can be made in it: before the work."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder
