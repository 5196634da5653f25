"""A GGUF out of a small checkpoint folder, as llama.cpp's own converter lays it out, and a folder out of a GGUF."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from router_backend.checkpoints.embedded import base
from router_backend.checkpoints.gguf_merge import Reader

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}


def as_folder(folder: Path) -> None:
    """Writes the embedded model's base as people bring checkpoints: safetensors and a tokenizer."""
    packed, plain = base(), GgufConfig(dequantize=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", cache(Reader))  # transformers reads it three times, and slowly
        model: Any = AutoModelForCausalLM.from_pretrained(
            packed.parent, gguf_file=packed.name, quantization_config=plain, dtype="bfloat16"
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name).save_pretrained(folder)


def shallow(folder: Path, out: Path, layers: int = 6) -> None:
    """Writes the first layers of a checkpoint, with its tokenizer: real words and shapes, at a fraction of the work."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)


def write(folder: Path, path: Path, kind: str = "F32", *, tokenizer: bool = True) -> Path:
    """The folder's weights in one kind, norms in fp32, with its byte-level BPE tokenizer and no rope scaling."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    config = model.config.get_text_config()
    arch = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer:
        _add_tokenizer(writer, folder, config.vocab_size)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), config.num_hidden_layers
    )
    for source, weight in model.named_parameters():
        name, data = names.get_name(source, try_suffixes=(".weight", ".bias")), weight.detach().numpy()
        stored = GGMLQuantizationType.F32 if data.ndim == 1 else GGMLQuantizationType[kind]
        if data.ndim == 1 and arch == "gemma3":
            data = data + 1  # llama.cpp multiplies by what is stored
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(source.split(".")[-2])
        if heads and arch == "llama":
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(name, quantize(np.ascontiguousarray(data), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, folder: Path, width: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens, types = [f"[PAD{index}]" for index in range(width)], [TokenType.UNUSED] * width
    for token, index in tokenizer.get_vocab().items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for index in tokenizer.added_tokens_decoder:
        types[index] = TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    writer.add_token_merges([" ".join(each) for each in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.chat_template)
