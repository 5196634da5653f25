"""What the engines make of given answers, against a direct computation with transformers on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from router_backend.checkpoints.embedded import ADAPTER, base
from router_backend.checkpoints.gguf_merge import merge
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.decisions.decide import Decider
from router_backend.engines.llamacpp import load
from router_backend.engines.transformers.model import DecodedModel
from router_backend.errors import ContextOverflow
from router_backend.plan.prompt import router_prompt, with_budget
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, Odds, Question, SamplingParams
from tests.engines.test_transformers import load_exact, network, never
from tests.fakes import tiny

pytestmark = pytest.mark.torch
TOOLS = ("/general-search", "/math", "/code")
PREFIX = '{"route_plan": ["'
QUERIES = ("Prove that 2 + 2 = 4.", "Plot a sine in Python.", "Who wrote the first compiler, and when?")


def direct(model: Any, prompt: list[int], answers: list[list[int]]) -> tuple[float, ...]:  # noqa: ANN401
    """One pass without a cache for each answer: the sum of its tokens' logarithms."""
    logs = []
    for ids in answers:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
        logs.append(float(torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None]).sum()))
    return tuple(logs)


@pytest.fixture(scope="module", params=["llama31", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecodedModel:
    return load_exact(tiny.save(request.param, tmp_path_factory.mktemp(request.param)), context_length=2048)


def test_answers_are_weighed_as_by_the_model_itself(model: DecodedModel) -> None:
    asked = GenerateRequest("w", router_prompt("Prove it."), prefix=PREFIX)
    answers = [f"{tool}(" for tool in TOOLS] + ["/"]
    tokens = model._tokens
    prompt = [*tokens.wrap(asked.prompt), *tokens.encode(PREFIX)]
    spelt = [list(tokens.encode(answer)) for answer in answers]
    assert max(map(len, spelt)) > 1
    for _ in range(2):  # from nothing, and from the cache
        chunk = model.weigh(asked, answers, never)
        assert chunk.odds[0].logprobs == pytest.approx(direct(network(model), prompt, spelt), abs=1e-3)
        assert chunk.usage.completion_tokens == sum(map(len, spelt))
        assert chunk.timings.forward_passes <= len(answers) + len(prompt) // 512
    assert chunk.usage.cached_tokens == len(prompt) - 1


def test_weighing_leaves_what_is_written_as_it_is(model: DecodedModel) -> None:
    asked = GenerateRequest("w", "Say hello.", SamplingParams(12, temperature=0))
    before = [chunk.text for chunk in model.generate(asked, never)]
    model.weigh(asked, ["yes", "no"], never)
    assert [chunk.text for chunk in model.generate(asked, never)] == before


def test_weighing_is_cancelled_and_keeps_to_the_context(model: DecodedModel) -> None:
    asked = GenerateRequest("w", "Say hello.")
    assert model.weigh(asked, ["yes"], lambda: True).finish_reason == "cancelled"
    with pytest.raises(ContextOverflow):
        model.weigh(asked, ["yes" * 5000], never)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_llamacpp_agrees_with_transformers_within_a_hundredth(tmp_path: Path) -> None:
    """On the embedded router in sixteen bits. (In eight, llama.cpp rounds what it multiplies: docs/openai.md.)"""
    path = tmp_path / "router.gguf"
    merge(base(), ADAPTER, path, kind="F16")
    plain = GgufConfig(dequantize=True)
    network = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, quantization_config=plain, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    model = load(Rung(Candidate(str(path), "gguf"), "gguf"), load_settings(slots=1), path)
    question = Question(("",), TOOLS, plan_budget=600)
    try:
        for query in QUERIES:
            (chunk,) = Decider(model).write(GenerateRequest("w", query, questions=(question,)), never)
            turn = [{"role": "user", "content": with_budget(router_prompt(query), 600)}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            prompt = [token for piece in (text, PREFIX) for token in tokenizer.encode(piece, add_special_tokens=False)]
            spelt = [tokenizer.encode(f"{tool}(", add_special_tokens=False) for tool in TOOLS]
            theirs = Odds(TOOLS, direct(network, prompt, spelt))
            assert chunk.odds[0].probabilities == pytest.approx(theirs.probabilities, abs=0.01)
    finally:
        model.close()
