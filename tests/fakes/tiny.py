"""Tiny checkpoints of the architectures that routers are merged from.

The config, model and tokenizer classes are the real ones, and so are special tokens, chat templates, sliding windows
and rope scaling; weights are random and vocabularies small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)

from router_backend.plan.prompt import router_prompt

NAMES = ("gemma3", "gemma3-sees", "llama31", "qwen3")
WINDOW = 16  # tokens that Gemma 3's sliding layers see

_WORDS = 280  # of a vocabulary, beside bytes and special tokens
_CORPUS = (
    router_prompt("Prove that the sum of two odd numbers is even, then write a function that checks it."),
    '{"route_plan": ["/general-search(query=\\"parity of a sum\\", mode=web)", "/math(prove it)", "/code(check it)"], ',
    '"route_rationale": "Search first, then prove, then code.", "expected_artifacts": ["proof", "function"], ',
    '"thinking_outline": ["1. Define odd numbers.", "2. Add them.", "3. Factor out two."], "handoff_plan": ',
    '"/general-search -> /math -> /code -> router QA", "todo_list": ["- [ ] /math: prove it", ',
    '"- [ ] router QA: read it"], ',
    '"difficulty": "introductory", "tags": ["parity", "proof"], "acceptance_criteria": ["The proof is whole."], ',
    '"metrics": {"primary": ["correctness"], "secondary": ["clarity"]}}',
)

_GEMMA_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' }}
    {{- message['content'] | trim -}}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}"""

_LLAMA_TEMPLATE = """\
{{- bos_token }}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

_QWEN_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content.split('</think>')[-1] }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

_LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def save(name: str, folder: Path) -> Path:
    """A checkpoint as people bring them: config, safetensors, tokenizer, template, generation_config."""
    model(name).save_pretrained(folder)
    tokenizer(name).save_pretrained(folder)
    return folder


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return {"gemma3": _gemma, "gemma3-sees": _gemma, "llama31": _llama, "qwen3": _qwen}[name]()


def model(name: str) -> PreTrainedModel:
    """float32 with weights so large that every token of the past matters."""
    torch.manual_seed(7)
    made = _MODELS[name](len(tokenizer(name)))
    generator = torch.Generator().manual_seed(7)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            spread = 1.5 / math.sqrt(parameter.shape[-1])
            parameter.data.normal_(0, spread, generator=generator)
    made.generation_config = GenerationConfig(eos_token_id=made.config.get_text_config().eos_token_id)
    return made.eval()


# Tokenizers


def _gemma() -> PreTrainedTokenizerFast:
    """Spaces are ▁, unknown characters bytes; line breaks are tokens of their own that are not special."""
    raw = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    vocabulary, merges = _train(raw, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_BYTES])
    made = GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, chat_template=_GEMMA_TEMPLATE)
    _add(made, ["\n", "\n\n", "\n\n\n"], special=False)
    _add(made, ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"])
    return made


def _llama() -> PreTrainedTokenizerFast:
    raw = _byte_level(_LLAMA_SPLIT)
    vocabulary, merges = _train(raw, [], alphabet=pre_tokenizers.ByteLevel.alphabet())
    raw.model = BPE(vocab=vocabulary, merges=merges, ignore_merges=True)
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"]
    raw.add_special_tokens([*specials, "<|eot_id|>", "<|python_tag|>"])
    begin = ("<|begin_of_text|>", raw.token_to_id("<|begin_of_text|>"))
    raw.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=begin[0], eos_token="<|eot_id|>", chat_template=_LLAMA_TEMPLATE
    )


def _qwen() -> PreTrainedTokenizerFast:
    raw = _byte_level(r"\p{N}|[^\s\p{N}]+|\s+")
    vocabulary, merges = _train(raw, [], alphabet=pre_tokenizers.ByteLevel.alphabet())
    made = Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token="<|im_end|>", chat_template=_QWEN_TEMPLATE)
    _add(made, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    _add(made, ["<think>", "</think>"], special=False)
    return made


def _byte_level(split: str) -> Tokenizer:
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    return raw


def _train(
    raw: Tokenizer, first: list[str], alphabet: Iterable[str] = ()
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, learnt from a prompt and a plan."""
    letters = list(alphabet)
    size = len(first) + len(letters) + _WORDS
    trainer = BpeTrainer(vocab_size=size, special_tokens=first, initial_alphabet=letters, show_progress=False)
    raw.train_from_iterator(_CORPUS, trainer)
    learnt = json.loads(raw.to_str())["model"]
    return learnt["vocab"], [(left, right) for left, right in learnt["merges"]]


def _add(made: PreTrainedTokenizerFast, tokens: list[str], *, special: bool = True) -> None:
    added = [AddedToken(token, special=special, normalized=False) for token in tokens]
    made.add_tokens(added, special_tokens=special)


# Models


def _gemma_text(vocabulary: int) -> Gemma3TextConfig:
    """Five sliding layers to a full one, as all of them; the linear rope scaling of the larger ones."""
    return Gemma3TextConfig(
        vocab_size=math.ceil((vocabulary + 1) / 64) * 64,  # wider than the tokenizer, as the real one
        **_shape(num_hidden_layers=7),
        sliding_window=WINDOW,
        query_pre_attn_scalar=32,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        },
    )


def _gemma_sees(vocabulary: int) -> PreTrainedModel:
    """As the 4B to 27B come: with eyes, which nothing is shown to."""
    eyes = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    image = vocabulary - 1
    config = Gemma3Config(
        text_config=_gemma_text(vocabulary),
        vision_config=eyes,
        mm_tokens_per_image=4,
        image_token_index=image,
        boi_token_index=image - 2,
        eoi_token_index=image - 1,
    )
    return Gemma3ForConditionalGeneration(config)


def _llama_model(vocabulary: int) -> PreTrainedModel:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    made = tokenizer("llama31")
    ends = made.convert_tokens_to_ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    config = LlamaConfig(
        vocab_size=vocabulary,
        **_shape(),
        rope_parameters=rope,
        bos_token_id=made.bos_token_id,
        eos_token_id=ends,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def _qwen_model(vocabulary: int) -> PreTrainedModel:
    ends = tokenizer("qwen3").convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    config = Qwen3Config(vocab_size=vocabulary + 7, **_shape(), eos_token_id=ends, tie_word_embeddings=False)
    return Qwen3ForCausalLM(config)


def _shape(num_hidden_layers: int = 2) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 8192,
    }


_MODELS = {
    "gemma3": lambda vocabulary: Gemma3ForCausalLM(_gemma_text(vocabulary)),
    "gemma3-sees": _gemma_sees,
    "llama31": _llama_model,
    "qwen3": _qwen_model,
}
