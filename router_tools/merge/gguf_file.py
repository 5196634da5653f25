"""A GGUF file out of a checkpoint folder, for the llama.cpp engine: Llama-like models with a byte-level BPE tokenizer.

Names, metadata and the order of the query and key rows are those of llama.cpp's own converter (convert_hf_to_gguf.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quant_shape_to_byte_shape, quantize
from transformers import AutoTokenizer

from router_backend.checkpoints.gguf_merge import FILE_TYPES
from router_backend.errors import CandidateError, InvalidRequest
from router_backend.plan.prompt import BUDGET_KEY
from router_tools.merge.shards import Weights

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names of the ways to split text before BPE, by the tokenizer's own pattern.
_SPLITS = {rf"{_LETTERS}\p{{N}}{{1,3}}{_REST}": "llama-bpe", rf"{_LETTERS}\p{{N}}{_REST}": "qwen2"}

Array = npt.NDArray[Any]


def write(folder: Path, out: Path, kind: str) -> None:
    """Writes the GGUF; one tensor at a time is in memory.

    Args:
        kind: one of `merge.FILE_TYPES`. Norms stay fp32, and embeddings never get less than 8 bits.

    Raises:
        CandidateError: another architecture or kind of tokenizer, which this cannot write.
    """
    if kind not in FILE_TYPES:
        raise InvalidRequest(f"{kind} is no kind of GGUF that can be written: choose from {', '.join(FILE_TYPES)}")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if config.get("model_type") != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise CandidateError(
            f"GGUF is written for Llama-like checkpoints only, not for {config.get('model_type')}: "
            "llama.cpp's convert_hf_to_gguf.py knows more"
        )
    writer = GGUFWriter(out, "llama")
    _add_shape(writer, config)
    writer.add_file_type(FILE_TYPES[kind])
    if config.get(BUDGET_KEY):
        writer.add_bool(BUDGET_KEY, True)
    _add_tokenizer(writer, folder, config["vocab_size"])
    with Weights(folder) as weights:
        stored = dict(_stored(weights, config, GGMLQuantizationType[kind]))
        for name, (source, quant) in stored.items():
            shape = weights.shapes[source]
            size = math.prod(quant_shape_to_byte_shape(shape, quant))
            whole = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(quant)
            if whole:
                writer.add_tensor_info(name, shape, np.dtype(whole), size)
            else:
                writer.add_tensor_info(name, quant_shape_to_byte_shape(shape, quant), np.dtype(np.uint8), size, quant)
        factors = _rope_factors(config)
        if factors is not None:
            writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for source, quant in stored.values():
            writer.write_tensor_data(quantize(_as_stored(weights, source, config), quant))
        if factors is not None:
            writer.write_tensor_data(factors)
    writer.close()


def _add_shape(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    wide = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(Path(config.get("_name_or_path") or "router").name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(wide)
    writer.add_value_length(wide)
    writer.add_rope_dimension_count(wide)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if rope.get("rope_type", "default") not in ("default", "llama3"):
        raise CandidateError(f"GGUF cannot be written with rope scaling of the type {rope['rope_type']}")
    return {"rope_theta": config.get("rope_theta", 10_000.0), **rope}


def _rope_factors(config: Mapping[str, Any]) -> npt.NDArray[np.float32] | None:
    """What llama.cpp divides each frequency by: Llama 3.1's scaling, which GGUF keeps as a tensor."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    wide = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    waves = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, wide, 2, dtype=np.float64) / wide)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((rope["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    factors: npt.NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def _stored(
    weights: Weights, config: Mapping[str, Any], kind: GGMLQuantizationType
) -> Iterator[tuple[str, tuple[str, GGMLQuantizationType]]]:
    """Name in the GGUF → name in the folder, and how it is kept."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for source, shape in weights.shapes.items():
        name = names.get_name(source, try_suffixes=(".weight",))
        if name is None:
            raise CandidateError(f"GGUF cannot be written: llama.cpp's Llama has no {source}")
        if len(shape) == 1:
            yield name, (source, GGMLQuantizationType.F32)
        elif shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            yield name, (source, GGMLQuantizationType.F16)
        elif name in ("token_embd.weight", "output.weight") and kind.name.startswith(("Q4", "Q5")):
            yield name, (source, GGMLQuantizationType.Q8_0)
        else:
            yield name, (source, kind)


def _as_stored(weights: Weights, source: str, config: Mapping[str, Any]) -> Array:
    """In fp32; of query and key rows the two halves of each head, which rotate together, interleaved."""
    data: Array = weights.whole(source).float().numpy()
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads")}
    own = heads.get(source.split(".")[-2])
    if own is None:
        return data
    rows: Array = data.reshape(own, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
    return rows


def _add_tokenizer(writer: GGUFWriter, folder: Path, width: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    written = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    if written["model"].get("type") != "BPE" or written["model"].get("byte_fallback") or written.get("normalizer"):
        raise CandidateError("GGUF is written for byte-level BPE tokenizers only: convert_hf_to_gguf.py knows more")
    tokens, types = [f"[PAD{index}]" for index in range(width)], [TokenType.UNUSED] * width
    for token, index in tokenizer.get_vocab().items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for index, added in tokenizer.added_tokens_decoder.items():
        types[index] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(written.get("pre_tokenizer") or {}))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = written["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    first = tokenizer("a").input_ids[:1]
    writer.add_add_bos_token(first == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _split(described: Mapping[str, Any]) -> str:
    """llama.cpp's name of what the tokenizer does before BPE. Raises CandidateError where it has none here."""
    steps = described.get("pretokenizers", [described])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        name = _SPLITS.get(steps[0]["pattern"].get("Regex"))
        if name:
            return name
    raise CandidateError("GGUF cannot be written: this way to split text is not known by a name of llama.cpp's")
