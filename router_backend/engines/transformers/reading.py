"""Reads all of a checkpoint's folder but the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from router_backend.checkpoints.description import tokenizer_folder
from router_backend.engines.transformers.tokens import Tokens
from router_backend.errors import explained

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read(folder: Path, prompt_format: str, *, trusted: bool) -> tuple[PreTrainedConfig, Tokens]:
    """The configuration and the tokenizer; `trusted`: code of the checkpoint is run.

    Raises CandidateError: what is wrong here is wrong in every precision.
    """
    with explained("its config, tokenizer or chat template cannot be used"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(folder), trust_remote_code=trusted)
        width = config.get_text_config().vocab_size
        return config, Tokens(tokenizer, _end_tokens(folder, config), vocabulary=width, prompt_format=prompt_format)


def _end_tokens(folder: Path, config: PreTrainedConfig) -> set[int]:
    """Those that the configurations name."""
    named = [config.get_text_config().eos_token_id]
    if (folder / "generation_config.json").is_file():
        named.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    return {token for ids in named if ids is not None for token in ([ids] if isinstance(ids, int) else ids)}
