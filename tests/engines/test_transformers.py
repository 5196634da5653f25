from __future__ import annotations

import gc
import json
import pickle
import shutil
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from router_backend.checkpoints import hub
from router_backend.checkpoints.ladder import Candidate, Loaded, Rung
from router_backend.engines.transformers import load as engine
from router_backend.engines.transformers.drafts import Pace
from router_backend.engines.transformers.model import DecodedModel
from router_backend.engines.transformers.runner import TorchRunner
from router_backend.errors import (
    CandidateError,
    ContextOverflow,
    InvalidRequest,
    LoadError,
    OutOfMemory,
    RungError,
    SettingsError,
)
from router_backend.plan.prompt import router_prompt
from router_backend.plan.rules import validate
from router_backend.plan.write import PlanWriter
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.types import Chunk, GenerateRequest, SamplingParams
from router_backend.writing import grammar
from tests.fakes import tiny

pytestmark = pytest.mark.torch
RUNGS = ("8bit", "4bit", "bf16", "fp16", "cpu")
TOOLS = ("/general-search", "/math", "/code")


def never() -> bool:
    return False


def load(
    folder: Path, strategy: str = "cpu", parts: dict[str, object] | None = None, **settings: object
) -> DecodedModel:
    """With drafts whatever they cost: a busy machine may measure that none is worth its time."""
    chosen: dict[str, object] = {"model_device": "cpu", "threads": 1, "slots": 2, **settings}
    candidate, told = Candidate(str(folder), "folder"), load_settings(**chosen)
    return engine.load(Rung(candidate, strategy), told, hub.fetch(candidate, told), **{"pace": None, **(parts or {})})


def load_exact(folder: Path, parts: dict[str, object] | None = None, **settings: object) -> DecodedModel:
    """In float32, whatever this processor is fast at: the same tokens however they are computed together."""
    model = load(folder, "cpu", parts, **settings)
    network(model).float()
    return model


def request(prompt: str = "Say hello.", tokens: int = 12, id: str = "test", **fields: object) -> GenerateRequest:
    asked = GenerateRequest(id, prompt, SamplingParams(tokens, temperature=0))
    return replace(asked, **fields)  # type: ignore[arg-type]


def run(model: DecodedModel, asked: GenerateRequest) -> tuple[str, Chunk]:
    chunks = list(model.generate(asked, never))
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    return "".join(chunk.text for chunk in chunks), chunks[-1]


def write(model: DecodedModel, query: str, extra: int, *, seed: int = 1, id: str = "plan") -> tuple[str, Chunk]:
    """A whole plan at temperature 0.2 in a budget of `extra` tokens above the smallest; checked."""
    writer = PlanWriter(model, TOOLS)
    sampling = SamplingParams(writer.smallest_budget + extra, 0.2, 0.9, seed)
    chunks = list(writer.write(GenerateRequest(id, router_prompt(query), sampling, "plan"), never))
    text, last = "".join(chunk.text for chunk in chunks), chunks[-1]
    plan, findings = validate(json.loads(text), TOOLS)
    assert plan is not None and findings == []
    assert last.budget is not None
    assert model.count_tokens(text) == last.budget.used == last.usage.completion_tokens <= sampling.max_new_tokens
    assert last.timings.accepted <= last.timings.drafted
    return text, last


def network(model: DecodedModel) -> Any:  # noqa: ANN401 - a module of torch, of no one class
    return model._runner._model  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny.save(name, tmp_path_factory.mktemp(name)) for name in tiny.NAMES}


@pytest.fixture(scope="module")
def llama(folders: dict[str, Path]) -> DecodedModel:
    return load_exact(folders["llama31"], context_length=2048)


@pytest.fixture
def passes(llama: DecodedModel) -> Iterator[list[int]]:
    """The tokens of each forward pass."""
    sizes: list[int] = []
    hook = network(llama).register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield sizes
    hook.remove()


# Every rung, every architecture


@pytest.mark.real
@pytest.mark.parametrize("strategy", RUNGS)
def test_real_checkpoint_writes_whole_plans_in_every_rung(
    small_checkpoint: Path, shallow_checkpoint: Path, strategy: str
) -> None:
    model = load(small_checkpoint, strategy)
    assert (model.info.strategy, model.info.engine, model.info.model) == (
        strategy,
        "transformers",
        str(small_checkpoint),
    )
    assert (model.info.context_length, model.info.slots) == (4096, 1)
    layer = network(model).model.layers[0].mlp.up_proj
    dtypes = {"8bit": torch.int8, "4bit": torch.uint8, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert strategy == "cpu" or layer.weight.dtype == dtypes[strategy]
    assert next(network(model).parameters()).device.type == "cpu"
    assert run(model, request("Where is Paris?", 1, prefix="The capital of France is"))[0].strip() == "Paris"
    _, last = write(load(shallow_checkpoint, strategy), "Prove that 2 is prime.", 8)
    assert last.timings.forward_passes < last.usage.completion_tokens


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, strategy) for name in tiny.NAMES for strategy in ("4bit", "bf16")),
        ("gemma3-sees", "8bit"),
        ("llama31", "fp16"),
        ("qwen3", "cpu"),
    ],
)
def test_every_architecture_writes_whole_plans(folders: dict[str, Path], name: str, strategy: str) -> None:
    model = load(folders[name], strategy)
    text, last = write(model, "Add two numbers.", 8)
    assert last.timings.forced > 0 and last.timings.drafted > 0
    assert "<think>" not in text


def test_quantised_checkpoint_is_loaded_as_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint that bitsandbytes quantised and saved: no rung quantises it again."""
    told = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    source = folders["llama31"]
    made = AutoModelForCausalLM.from_pretrained(source, quantization_config=told, device_map={"": "cpu"})
    made.save_pretrained(tmp_path / "nf4")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "nf4")
    model = load(tmp_path / "nf4", "native")
    assert model.info.strategy == "native"
    assert network(model).model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        torch.testing.assert_close(network(model)(ids).logits, made(ids).logits)
    write(model, "Add two numbers.", 30)


def test_qwen_plans_have_no_place_for_thoughts(folders: dict[str, Path]) -> None:
    model = load(folders["qwen3"])
    made = tiny.tokenizer("qwen3")
    prompt = made.decode(model._tokens.wrap("hello"))
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert model.prompt_tokens(request("hello")) == len(model._tokens.wrap("hello"))


def test_context_is_the_shorter_of_the_settings_and_the_checkpoints(folders: dict[str, Path], tmp_path: Path) -> None:
    short = altered(folders["llama31"], tmp_path, max_position_embeddings=512)
    assert load(short).info.context_length == 512
    assert load(short, context_length=256).info.context_length == 256
    assert load(folders["gemma3-sees"], context_length=9000).info.context_length == 8192, "of its text part"


# Answers


def test_seed_repeats_and_another_differs(llama: DecodedModel) -> None:
    def said(seed: int) -> str:
        return run(llama, request(sampling=SamplingParams(20, 1.0, 1.0, seed)))[0]

    assert said(7) == said(7)
    assert len({said(seed) for seed in range(4)}) > 1


def test_plan_is_repeatable_whatever_is_cached_or_remembered(folders: dict[str, Path]) -> None:
    model = load_exact(folders["qwen3"])
    first, cold = write(model, "Add two numbers.", 20, seed=3)
    write(model, "Draw a triangle.", 20, seed=4)
    second, warm = write(model, "Add two numbers.", 20, seed=3)
    assert first == second
    assert warm.timings.forward_passes < cold.timings.forward_passes, "it remembers what it wrote"


def test_stop_text_ends_and_is_not_part(llama: DecodedModel) -> None:
    whole, end = run(llama, request(tokens=40))
    word = whole[12:15]
    text, last = run(llama, request(sampling=SamplingParams(40, 0, stop=("never said", word))))
    assert text == whole.partition(word)[0] and last.finish_reason == "stop"
    assert last.usage.completion_tokens < end.usage.completion_tokens
    unmet, last = run(llama, request(sampling=SamplingParams(40, 0, stop=(whole[-2:] + "~",))))
    assert (unmet, last.finish_reason) == (whole, end.finish_reason), (
        "what might have become a stop text is sent at the end"
    )


def test_end_token_ends_the_answer(llama: DecodedModel) -> None:
    """Whatever comes, after an end token nothing does: its bias is turned up until it comes."""
    end = tiny.tokenizer("llama31").convert_tokens_to_ids("<|eom_id|>")
    assert end in llama._tokens.ends, "as the configuration names it; the template knows another"

    def bias(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor([end]), 100.0)

    hook = network(llama).lm_head.register_forward_hook(bias)
    try:
        text, last = run(llama, request("end", 9))
    finally:
        hook.remove()
        llama._runner.forget()
    assert (text, last.usage.completion_tokens, last.finish_reason) == ("", 0, "stop")


def test_prefix_is_gone_on_from(llama: DecodedModel) -> None:
    _, last = run(llama, request(tokens=1, prefix="- [ ] "))
    assert last.usage.prompt_tokens == llama.prompt_tokens(request()) + llama.count_tokens("- [ ] ")


def test_grammar_is_kept_and_a_wrong_one_refused(llama: DecodedModel) -> None:
    text, last = run(llama, request(grammar=grammar.choice(["/math(", "/code("]), tokens=20))
    assert text in ("/math(", "/code(") and last.finish_reason == "stop"
    with pytest.raises(InvalidRequest, match="does not compile"):
        llama.generate(request(grammar="start: NOWHERE"), never)


def test_characters_are_never_cut_in_the_stream(llama: DecodedModel) -> None:
    """An emoji is four tokens here; chunks hold whole characters."""
    rules = 'start: "😀é" /[a-c]{2}/ "证明"'
    chunks = [chunk.text for chunk in llama.generate(request(grammar=rules, tokens=40), never)]
    assert "".join(chunks).startswith("😀é") and "".join(chunks).endswith("证明")
    assert "�" not in "".join(chunks) and len([chunk for chunk in chunks if chunk]) >= 6
    cut, _ = run(llama, request(grammar='start: "😀"', tokens=2))
    assert cut == "�", "what the limit cuts is shown as cut"


def test_row_09_context_overflow_names_both_counts(llama: DecodedModel) -> None:
    with pytest.raises(ContextOverflow, match=r"prompt has \d{4} tokens .* may have 12: .* context of 2048"):
        llama.generate(request("word " * 3000), never)
    with pytest.raises(ContextOverflow, match="may have 5000"):
        llama.generate(request("x", 5000), never)
    prompt = llama.prompt_tokens(request())
    llama.generate(request(tokens=2048 - prompt), never)
    with pytest.raises(ContextOverflow):
        llama.generate(request(tokens=2049 - prompt), never)


def test_prompt_of_nothing_is_refused_where_nothing_is_wrapped_around_it(folders: dict[str, Path]) -> None:
    with pytest.raises(InvalidRequest, match="no tokens at all"):
        load(folders["qwen3"], prompt_format="raw").generate(request(""), never)


# Cancel


def ran(passes: list[int], count: int) -> bool:
    return len(passes) >= count


@pytest.mark.parametrize("prompt", ["Tell a story.", "prefill this. " * 130], ids=["decoding", "prefill"])
def test_row_18_cancel_is_seen_within_a_pass(llama: DecodedModel, passes: list[int], prompt: str) -> None:
    llama._runner.forget()
    for after in (1, 2):
        passes.clear()
        chunks = list(llama.generate(request(prompt, 200), partial(ran, passes, after)))
        assert chunks[-1].finish_reason == "cancelled"
        assert len(passes) == chunks[-1].timings.forward_passes == after
    text, _ = run(llama, request())
    llama._runner.forget()
    assert run(llama, request())[0] == text, "the next answer is not touched by it"


def test_closed_answer_runs_no_further(llama: DecodedModel, passes: list[int]) -> None:
    chunks = llama.generate(request("Tell a long story.", 200), never)
    next(chunks)
    before = len(passes)
    chunks.close()  # type: ignore[attr-defined]
    assert before == len(passes) and run(llama, request())[0]


# What it costs


def test_timings_tell_what_was_done(llama: DecodedModel, passes: list[int]) -> None:
    llama._runner.forget()
    _, last = write(llama, "Add two numbers.", 20)
    timings = last.timings
    assert timings.forward_passes == len(passes)
    assert timings.forced > 0 and timings.drafted > 0 and timings.prefill_seconds > 0 and timings.decode_seconds > 0
    assert sum(passes) >= last.usage.prompt_tokens + timings.drafted
    _, last = run(llama, request("Another.", 20))
    assert last.timings.forward_passes + last.timings.accepted == 20 == last.usage.completion_tokens


def test_head_of_the_prompt_is_cached_from_one_request_to_the_next(llama: DecodedModel, passes: list[int]) -> None:
    llama._runner.forget()
    _, first = run(llama, request(router_prompt("Add two numbers."), 4))
    prefill = passes[0]
    assert first.usage.cached_tokens == 0 and prefill >= first.usage.prompt_tokens
    passes.clear()
    _, second = run(llama, request(router_prompt("Draw a triangle."), 4))
    assert second.usage.cached_tokens > 0.8 * second.usage.prompt_tokens
    assert passes[0] < 0.4 * prefill
    _, again = run(llama, request(router_prompt("Draw a triangle."), 4))
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1, "all but the token whose logits are wanted"


def test_each_part_can_be_switched_off(folders: dict[str, Path]) -> None:
    def cost(**parts: object) -> Chunk:
        return write(load_exact(folders["llama31"], parts), "Add two numbers.", 8)[1]

    everything = cost()
    assert cost(forcing=False).timings.forced == 0 < everything.timings.forced
    parts: tuple[dict[str, object], ...] = ({"draft_tokens": 0}, {"lookup": False, "history_bits": 0})
    for off in parts:
        none = cost(**off).timings
        assert none.drafted == none.accepted == 0
        assert none.forward_passes > everything.timings.forward_passes


@pytest.mark.parametrize(("pace", "drafts"), [(Pace(), True), (Pace(slope=9.0), False)])
def test_drafts_are_what_the_measured_pace_makes_worth(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, pace: Pace, drafts: bool
) -> None:
    monkeypatch.setattr(TorchRunner, "pace", lambda self, most: pace)
    candidate, told = Candidate(str(folders["llama31"]), "folder"), load_settings(model_device="cpu", threads=1)
    model = engine.load(Rung(candidate, "cpu"), told, folders["llama31"])
    assert (write(model, "Add two numbers.", 8)[1].timings.drafted > 0) is drafts


def test_repeatable_answers_use_neither_drafts_nor_the_prefix_cache(folders: dict[str, Path]) -> None:
    model = load_exact(folders["llama31"], repeatable=True)
    first, cold = write(model, "Add two numbers.", 8, id="one")
    again, warm = write(model, "Add two numbers.", 8, id="two")
    assert first == again and warm.usage.cached_tokens == 0
    for last in (cold, warm):
        assert last.timings.drafted == 0 < last.timings.forced
    assert warm.timings.forward_passes == cold.timings.forward_passes


@pytest.mark.parametrize("kept", [True, False])
def test_prefix_cache_can_be_switched_off_between_requests(folders: dict[str, Path], kept: bool) -> None:
    """Inside a plan, whose many calls are one request, it stays."""
    model, sizes = load_exact(folders["llama31"], {"prefix_cache": kept}), list[int]()
    network(model).register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    _, first = write(model, "Add two numbers.", 8, id="one")
    _, second = write(model, "Add two numbers.", 8, id="two")
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == (second.usage.prompt_tokens if kept else 0)
    prompts = [size for size in sizes if size >= first.usage.prompt_tokens]
    assert len(prompts) == (1 if kept else 2)


def test_history_begins_with_the_drafter_file(folders: dict[str, Path], tmp_path: Path) -> None:
    text, cold = write(load_exact(folders["llama31"], {"lookup": False}), "Add two numbers.", 8)
    (tmp_path / "drafter.jsonl").write_text(text + "\n", encoding="utf-8")
    told = load_exact(folders["llama31"], {"lookup": False}, drafter="drafter.jsonl")
    again, warm = write(told, "Add two numbers.", 8)
    assert again == text
    assert cold.timings.forward_passes > 2 * warm.timings.forward_passes
    with pytest.raises(SettingsError, match=r"DRAFTER='nowhere\.jsonl' is wrong"):
        load(folders["llama31"], drafter="nowhere.jsonl")


# Out of memory


class Passing:
    """Makes the first passes to come fail, inside the second layer, with what `trouble` raises."""

    def __init__(self, model: DecodedModel, trouble: Callable[[], object]) -> None:
        self.held: weakref.ref[torch.Tensor] | None = None
        self._trouble = trouble
        self._hook = network(model).model.layers[1].register_forward_pre_hook(self._fail)

    def _fail(self, module: object, args: tuple[torch.Tensor]) -> None:
        self._hook.remove()
        activations = args[0].clone()
        self.held = weakref.ref(activations)
        self._trouble()


def out_of_memory_on_a_card() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def out_of_memory_on_the_cpu() -> None:
    torch.empty(1 << 50)  # the allocator refuses, really


def broken() -> None:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize("trouble", [out_of_memory_on_a_card, out_of_memory_on_the_cpu])
def test_row_21_out_of_memory_drops_one_request_and_frees_its_memory(
    llama: DecodedModel, trouble: Callable[[], None]
) -> None:
    expected, _ = run(llama, request())
    run(llama, request("Something else that is cached.", 3))
    failing = Passing(llama, trouble)
    with pytest.raises(OutOfMemory) as caught:
        list(llama.generate(request("This does not fit.", 30), never))
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "out_of_memory", 2)
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    assert failing.held is not None and failing.held() is None, "though the error is still there"
    assert llama._runner.cached(llama._tokens.wrap("Something else that is cached.")) == 0
    assert run(llama, request())[0] == expected


def test_row_21_pass_that_breaks_leaves_nothing_half_done(llama: DecodedModel) -> None:
    """Some layers have seen the pass's tokens and some have not: such a cache must not be gone on with."""
    expected, _ = run(llama, request(tokens=30))
    for _ in range(2):
        Passing(llama, broken)
        with pytest.raises(RuntimeError, match="mat1"):
            list(llama.generate(request(tokens=31, prefix="x"), never))
        assert run(llama, request(tokens=30))[0] == expected


# Loads that fail


def altered(source: Path, folder: Path, **config: object) -> Path:
    """A copy of a checkpoint with another config."""
    copy = Path(shutil.copytree(source, folder / "copy", dirs_exist_ok=True))
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return copy


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", None, "cannot be used"),
        ("tokenizer.json", b'{"version": ', "cannot be used: JSONDecodeError"),
        ("model.safetensors", None, "safetensors"),
        ("model.safetensors", 1000, "cut short"),
        ("model.safetensors", -100, "cut short"),
        ("config.json", None, "no config.json"),
        ("config.json", b'{"model_type": ', "config.json is broken"),
        ("generation_config.json", b"{", "generation_config.json' is not a valid JSON file"),
    ],
)
def test_row_20_broken_checkpoint_is_the_candidates_fault(
    folders: dict[str, Path], tmp_path: Path, file: str, content: bytes | int | None, words: str
) -> None:
    path = altered(folders["llama31"], tmp_path) / file
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:content] if isinstance(content, int) else content)
    with pytest.raises(CandidateError) as caught:
        load(path.parent)
    assert words in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gemma99"}, "model type `gemma99` but Transformers does not recognize"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int"),
        ({"hidden_size": 96}, "tensors that its config asks for are missing or of another shape"),
        ({"num_hidden_layers": 3}, r"missing or of another shape (model.layers.2."),
        ({"auto_map": {"AutoModel": "code.Model"}}, "TRUST_REMOTE_CODE"),
    ],
)
def test_row_20_config_that_does_not_fit_is_the_candidates_fault(
    folders: dict[str, Path], tmp_path: Path, config: dict[str, object], words: str
) -> None:
    """A layer that the weights lack above all: the library would make it up, and serve noise."""
    with pytest.raises(CandidateError) as caught:
        load(altered(folders["llama31"], tmp_path, **config))
    assert words in caught.value.message


def test_tokenizer_that_the_library_makes_up_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Gemma's class makes five tokens of nothing where tokenizer.json is missing."""
    folder = altered(folders["gemma3"], tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(CandidateError, match="tokenizer cannot write plain text"):
        load(folder)


def test_fault_a_a_token_without_a_row_in_the_embeddings_is_text(folders: dict[str, Path], tmp_path: Path) -> None:
    """It would be an IndexError in the prompt or in forced text, and on a GPU the end of its context."""
    folder = altered(folders["llama31"], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    width = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    tokenizer.add_tokens([f"zq{index}x" for index in range(width - len(tokenizer) + 2)])
    tokenizer.save_pretrained(folder)
    word = tokenizer.decode([len(tokenizer) - 1])
    assert len(tokenizer) == width + 2
    model = load(folder)
    assert word in model.info.warnings[0]
    text, last = run(model, request(f"Say {word}.", 40, grammar=f'start: "{word}"'))
    assert (text, last.finish_reason) == (word, "stop") and last.usage.completion_tokens > 1


def test_accelerator_that_is_not_there_is_the_rungs_fault(folders: dict[str, Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RungError, match="no accelerator"):
        load(folders["llama31"], "bf16", model_device="cuda")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried…"), RungError, "out of memory while loading"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: …"), RungError, "out of memory while loading"),
        (MemoryError(), RungError, "out of memory while loading"),
        (ImportError("no package named autoawq\nat all"), RungError, "not installed here: ImportError: no package"),
        (ValueError("not supported\non this card"), RungError, "ValueError: not supported on this card"),
        (OSError("input/output error"), CandidateError, "broken checkpoint: OSError: input/output error"),
        (CandidateError("gated"), CandidateError, "gated"),
    ],
)
def test_row_20_libraries_errors_become_the_ladders(error: Exception, kind: type[LoadError], words: str) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def fail() -> None:
        weights = torch.ones(4)
        held.append(weakref.ref(weights))
        raise error

    error.__traceback__ = None
    with pytest.raises(LoadError) as caught:
        engine.explained(fail)
    assert type(caught.value) is kind and words in caught.value.message and "\n" not in caught.value.message
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "fail" not in frames
    error.__traceback__ = None  # which the parameter of this test, not the engine, holds on to
    assert held[0]() is None


@pytest.mark.parametrize("trouble", [out_of_memory_on_a_card, out_of_memory_on_the_cpu])
def test_row_20_no_memory_in_one_precision_leads_to_the_next(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], None]
) -> None:
    """It runs out in the middle of a real load; what is loaded instead answers."""
    real = AutoModelForCausalLM.from_pretrained

    def short(*args: object, **kwargs: object) -> object:
        loaded = real(*args, **kwargs)
        if "quantization_config" in kwargs:
            trouble()
        return loaded

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", short)
    loaded = climb(str(folders["llama31"]))
    assert [(each.strategy, each.outcome, each.reason) for each in loaded.attempts] == [
        ("4bit", "failed", "out of memory while loading"),
        ("bf16", "loaded", "ok"),
    ]
    assert run(loaded.model, request())[0]


def test_row_20_a_broken_checkpoint_leads_to_the_next(folders: dict[str, Path], tmp_path: Path) -> None:
    """The layer that it lacks is found out after a real load, so no other precision is tried."""
    broken = str(altered(folders["llama31"], tmp_path, num_hidden_layers=3))
    loaded = climb(broken, str(folders["llama31"]))
    assert [(each.candidate, each.strategy, each.outcome) for each in loaded.attempts] == [
        (broken, "4bit", "failed"),
        (str(folders["llama31"]), "4bit", "loaded"),
    ]
    assert "missing or of another shape" in loaded.attempts[0].reason
    assert run(loaded.model, request())[0]


def climb(*names: str) -> Loaded[DecodedModel]:
    """The ladder as the server walks it, with this engine."""
    settings = load_settings(
        model_fallbacks=",".join(names), model_load_strategies="4bit,bf16", model_device="cpu", threads=1, slots=2
    )
    loader = Loader(settings)
    return loader.first(lambda rung: cast("DecodedModel", loader.model(rung)), lambda attempt: None)


def test_row_20_failed_load_leaves_no_memory_behind(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are there when it fails, and gone when the ladder hears of it."""
    models: list[weakref.ref[torch.nn.Module]] = []
    real = AutoModelForCausalLM.from_pretrained

    def watched(*args: object, **kwargs: object) -> object:
        model, report = real(*args, **kwargs)
        models.append(weakref.ref(model))
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    gc.disable()
    try:
        with pytest.raises(CandidateError, match="missing or of another shape") as caught:
            load(altered(folders["llama31"], tmp_path, num_hidden_layers=3))
        assert len(models) == 1 and models[0]() is None
        assert caught.value.__context__ is None and caught.value.__cause__ is None
    finally:
        gc.enable()
    model = load(folders["llama31"])
    assert models[1]() is network(model)
    model.close()
    del model
    gc.collect()
    assert models[1]() is None, "nor does one that is given up"


# What must not be run


class Bomb:
    """Touches a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self._file,)


def test_row_26_pickled_weights_are_never_opened(folders: dict[str, Path], tmp_path: Path) -> None:
    folder, ran = altered(folders["llama31"], tmp_path), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(ran)))
    with pytest.raises(CandidateError, match="pickle files only"):
        load(folder)
    assert not ran.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert ran.exists(), "it was a live one"


def test_row_26_code_of_a_checkpoint_runs_only_where_it_is_trusted(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    classes = {"AutoConfig": "code_of_its_own.Config", "AutoModelForCausalLM": "code_of_its_own.Model"}
    folder, ran = altered(folders["llama31"], tmp_path, auto_map=classes), tmp_path / "ran"
    (folder / "code_of_its_own.py").write_text(
        f"from transformers import LlamaConfig, LlamaForCausalLM\nopen({str(ran)!r}, 'w').close()\n"
        "class Config(LlamaConfig): pass\nclass Model(LlamaForCausalLM): config_class = Config\n"
    )
    with pytest.raises(CandidateError, match="set TRUST_REMOTE_CODE=1 if you trust it"):
        load(folder)
    assert not ran.exists()
    assert run(load(folder, trust_remote_code=True), request())[0]
    assert ran.exists()
