"""The transformers engine with a real checkpoint: forward passes, plans a minute, and whether drafts change anything.

    python benchmarks/decoding.py live  DATA.jsonl --checkpoint FOLDER    passes per token, part by part, cold and warm
    python benchmarks/decoding.py speed DATA.jsonl --checkpoint FOLDER    plans a minute beside the library's generate()
    python benchmarks/decoding.py same  DATA.jsonl --checkpoint FOLDER    temperature 0: all parts on against all off
    python benchmarks/decoding.py rungs DATA.jsonl --checkpoint FOLDER    every precision: seconds, memory, speed

Prompts are spread evenly over the file; plans have `--budget` tokens and temperature 0.2 where nothing else is said.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessor, StoppingCriteria

from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.conversation import shared
from router_backend.engines.transformers import load as engine
from router_backend.engines.transformers.guide import Guide, Guides
from router_backend.engines.transformers.load import precision
from router_backend.engines.transformers.model import DecodedModel
from router_backend.engines.transformers.runner import cache_argument
from router_backend.engines.transformers.tokens import Tokens
from router_backend.errors import InvalidRequest
from router_backend.jsonl import read_values
from router_backend.plan.rules import validate
from router_backend.plan.write import PlanWriter
from router_backend.settings import Settings, load_settings
from router_backend.types import Chunk, GenerateRequest, ModelInfo, SamplingParams, Timings, Usage

OFF: dict[str, Any] = {"draft_tokens": 0, "forcing": False, "prefix_cache": False}
PARTS: dict[str, dict[str, Any]] = {
    "all, cold": {},
    "without history": {"history_bits": 0},
    "without drafts": {"draft_tokens": 0},
    "all off": OFF,
}


def never() -> bool:
    return False


@dataclass
class Sums:
    plans: int = 0
    tokens: int = 0
    seconds: float = 0.0
    timings: Timings = field(default_factory=Timings)
    clipped: int = 0

    def row(self, name: str) -> str:
        tokens, timings = max(1, self.tokens), self.timings
        return (
            f"{name} | {self.plans} | {self.tokens / max(1, self.plans):.0f} | {timings.forward_passes / tokens:.3f} | "
            f"{timings.drafted / tokens:.2f} | {timings.accepted / tokens:.2f} | {timings.forced / tokens:.2f} | "
            f"{60 * self.plans / max(1e-9, self.seconds):.2f} | {self.tokens / max(1e-9, self.seconds):.1f}"
        )


HEADER = "parts | plans | tokens | passes/token | drafted/token | accepted/token | forced/token | plans/min | tokens/s"


def ask(prompt: str, index: int, options: argparse.Namespace, temperature: float = 0.2) -> GenerateRequest:
    sampling = SamplingParams(max_new_tokens=options.budget, temperature=temperature, seed=index)
    return GenerateRequest(f"plan-{index}", prompt, sampling, "plan")


def write(writer: PlanWriter, request: GenerateRequest, tools: Sequence[str], sums: Sums | None = None) -> str:
    began = time.monotonic()
    chunks = list(writer.write(request, never))
    text, last = "".join(chunk.text for chunk in chunks), chunks[-1]
    assert last.budget is not None and not validate(json.loads(text), tools)[1]
    if sums is not None:
        sums.plans += 1
        sums.seconds += time.monotonic() - began
        sums.tokens += last.budget.used
        sums.timings += last.timings
    return text


def load(options: argparse.Namespace, strategy: str, **parts: Any) -> tuple[DecodedModel, Settings]:  # noqa: ANN401
    settings = load_settings(model_device="cpu" if options.cpu else "auto")
    path = Path(options.checkpoint)
    return engine.load(Rung(Candidate(str(path), "folder"), strategy), settings, path, **parts), settings


def live(options: argparse.Namespace, prompts: list[str]) -> None:
    """The last `--rows` prompts are measured; the others, in `all, warm`, are answered before and make the history."""
    measured, before = prompts[-options.rows :], prompts[: -options.rows]
    print(HEADER)
    if before:
        model, settings = load(options, options.strategy)
        writer = PlanWriter(model, settings.tools)
        past = Sums()
        for index, prompt in enumerate(before):
            text = write(writer, ask(prompt, index, options), settings.tools, past)
            if options.keep:
                with options.keep.open("a", encoding="utf-8") as kept:
                    kept.write(text + "\n")
            if (index + 1) % 10 == 0:
                print(past.row(f"all, plans {index - 8} to {index + 1}"), flush=True)
                past = Sums()
        sums = Sums()
        for index, prompt in enumerate(measured):
            write(writer, ask(prompt, 1000 + index, options), settings.tools, sums)
        print(sums.row(f"all, after {len(before)} plans"), flush=True)
    for name, parts in PARTS.items():
        sums = Sums()
        for index, prompt in enumerate(measured):
            # Cold: a model that has answered nothing yet, for each plan.
            model, settings = load(options, options.strategy, **parts)
            write(PlanWriter(model, settings.tools), ask(prompt, 1000 + index, options), settings.tools, sums)
        print(sums.row(name), flush=True)
    library(options, measured)


def library(options: argparse.Namespace, prompts: list[str]) -> None:
    """The library's own generate(), unconstrained, alone and with its prompt lookup."""
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    device = "cpu" if options.cpu else "cuda"
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, **precision(options.strategy, device))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.register_forward_hook(count)
    for name, more in (("generate()", {}), ("generate(prompt_lookup_num_tokens=10)", {"prompt_lookup_num_tokens": 10})):
        calls, tokens, began = 0, 0, time.monotonic()
        for index, prompt in enumerate(prompts):
            torch.manual_seed(index)
            turns = [{"role": "user", "content": prompt}]
            inputs = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(model.device)
            out = model.generate(
                **inputs, max_new_tokens=options.budget, do_sample=True, temperature=0.2, top_p=0.9, top_k=0, **more
            )
            tokens += out.shape[1] - inputs["input_ids"].shape[1]
        seconds = time.monotonic() - began
        print(
            f"{name}, unconstrained | {len(prompts)} | {tokens / len(prompts):.0f} | {calls / tokens:.3f} | "
            f"- | - | - | {60 * len(prompts) / seconds:.2f} | {tokens / seconds:.1f}",
            flush=True,
        )


class _Masked(LogitsProcessor):  # type: ignore[misc] # the library is not typed for us
    """A grammar as a logits processor, the usual way to constrain the library's generate()."""

    def __init__(self, guide: Guide, prompt: int) -> None:
        self._guide, self._seen = guide, prompt

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        new = input_ids[0, self._seen :].tolist()
        if new:
            self._guide.advance(new)
            self._seen += len(new)
        allowed = torch.from_numpy(self._guide.allowed()).to(scores.device)
        return scores.masked_fill(~allowed, -torch.inf)  # type: ignore[return-value]


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """The library's own stop strings refuse some of ours."""

    def __init__(self, tokens: Tokens, prompt: int, stop: tuple[str, ...]) -> None:
        self._tokens, self._prompt, self._stop = tokens, prompt, stop

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.Tensor:
        text = self._tokens.bytes_of(input_ids[0, self._prompt :].tolist()).decode(errors="replace")
        return torch.tensor([any(word in text for word in self._stop)], device=input_ids.device)


class LibraryModel:
    """The same stages and the same grammars on the library's generate(), its cache kept between the stages."""

    def __init__(self, options: argparse.Namespace) -> None:
        tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
        device = "cpu" if options.cpu else "cuda"
        self._model = AutoModelForCausalLM.from_pretrained(
            options.checkpoint, **precision(options.strategy, device)
        ).eval()
        self._tokens = Tokens(tokenizer, [], vocabulary=self._model.config.vocab_size)
        self._guides = Guides(self._tokens.grammar)
        self._cache, self._ids = DynamicCache(), []  # type: tuple[DynamicCache, list[int]]
        self.info = ModelInfo("library", options.strategy, "library", 4096, weighs=False)

    def count_tokens(self, text: str) -> int:
        return self._tokens.count(text)

    def prompt_tokens(self, request: GenerateRequest) -> int:
        return len(self._tokens.wrap(request.prompt))

    def weigh(
        self, request: GenerateRequest, answers: Sequence[str], cancelled: Callable[[], bool], slot: int = 0
    ) -> Chunk:
        raise InvalidRequest("the library's generate() weighs nothing")

    def remember(self, text: str, owner: str = "") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], slot: int = 0) -> Iterator[Chunk]:
        prompt = [*self._tokens.wrap(request.prompt), *self._tokens.encode(request.prefix)]
        keep = min(shared(self._ids, prompt), len(prompt) - 1)
        if keep < len(self._ids):
            self._cache.crop(keep - len(self._ids))
        assert request.grammar is not None
        sampling = request.sampling
        torch.manual_seed(sampling.seed)
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            drawn = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        out = self._model.generate(
            torch.tensor([prompt], device=self._model.device),
            **{cache_argument(self._model): self._cache},
            max_new_tokens=sampling.max_new_tokens,
            logits_processor=[_Masked(self._guides.begin(request.grammar), len(prompt))],
            eos_token_id=sorted(self._tokens.ends),
            stopping_criteria=[_Stop(self._tokens, len(prompt), sampling.stop)],
            **drawn,
        )[0].tolist()
        self._ids = out[: self._cache.get_seq_length()]
        said = [token for token in out[len(prompt) :] if token not in self._tokens.ends]
        text = self._tokens.bytes_of(said).decode(errors="replace")
        places = [text.find(stop) for stop in sampling.stop if stop in text]
        ended = bool(places) or len(said) < sampling.max_new_tokens
        yield Chunk(
            text[: min(places)] if places else text,
            "stop" if ended else "length",
            Usage(len(prompt), len(said), keep),
            Timings(forward_passes=len(out) - len(prompt)),
        )


def speed(options: argparse.Namespace, prompts: list[str]) -> None:
    """Interleaved: a plan of each in turn, after ours has answered `--warm` of the other prompts."""
    measured, before = prompts[-options.rows :], prompts[: -options.rows]
    model, settings = load(options, options.strategy)
    ours, theirs = PlanWriter(model, settings.tools), PlanWriter(LibraryModel(options), settings.tools)
    for index, prompt in enumerate(before):
        write(ours, ask(prompt, index, options), settings.tools)
    write(theirs, ask(before[0], 0, options), settings.tools)
    sums = {"ours, warm": Sums(), "library's generate() with the same grammars": Sums()}
    print(HEADER)
    for index, prompt in enumerate(measured):
        for name, writer in zip(sums, (ours, theirs), strict=True):
            write(writer, ask(prompt, 1000 + index, options), settings.tools, sums[name])
            print(sums[name].row(name), flush=True)
    mine, library = sums.values()
    plans = mine.plans / mine.seconds / (library.plans / library.seconds)
    tokens = mine.tokens / mine.seconds / (library.tokens / library.seconds)
    print(f"{plans:.2f} times the plans a minute, {tokens:.2f} times the tokens a second")


def same(options: argparse.Namespace, prompts: list[str]) -> None:
    """In float32, where a batch of positions gives the same logits as one position, but for the last bits."""
    every, settings = load(options, "cpu")
    plain, _ = load(options, "cpu", **OFF)
    for model in (every, plain):
        model._runner._model.float()  # type: ignore[attr-defined]
    equal = tokens = 0
    passes = [0, 0]
    for index, prompt in enumerate(prompts):
        texts = []
        for number, model in enumerate((every, plain)):
            sums = Sums()
            request = ask(prompt, index, options, temperature=0)
            texts.append(write(PlanWriter(model, settings.tools), request, settings.tools, sums))
            passes[number] += sums.timings.forward_passes
        ids = [every._tokens.encode(text) for text in texts]
        tokens += len(ids[1])
        equal += ids[0] == ids[1]
        if ids[0] != ids[1]:
            place = shared(ids[0], ids[1])
            print(f"prompt {index} differs from token {place} on: {texts[0][-80:]!r}")
    print(f"{equal} of {len(prompts)} plans are equal, {tokens} tokens; passes {passes[0]} against {passes[1]}")


def rungs(options: argparse.Namespace, prompts: list[str]) -> None:
    print("rung | load s | MiB of tensors | plan tokens/s | passes/token | ms a pass of one token")
    for strategy in options.strategies.split(","):
        began = time.monotonic()
        model, settings = load(options, strategy)
        seconds = time.monotonic() - began
        weights = model._runner._model  # type: ignore[attr-defined]
        size = sum(each.numel() * each.element_size() for each in (*weights.parameters(), *weights.buffers()))
        writer = PlanWriter(model, settings.tools)
        sums = Sums()
        for index, prompt in enumerate(prompts[: options.rows]):
            write(writer, ask(prompt, index, options), settings.tools, sums)
        passed = time.monotonic()
        text = replace(ask(prompts[0], 0, options), output="text")
        text = replace(text, sampling=replace(text.sampling, max_new_tokens=24))
        *_, last = model.generate(text, never)
        passed = time.monotonic() - passed
        print(
            f"{strategy} | {seconds:.1f} | {size / 2**20:.0f} | {sums.tokens / sums.seconds:.1f} | "
            f"{sums.timings.forward_passes / sums.tokens:.3f} | "
            f"{1000 * last.timings.decode_seconds / max(1, last.timings.forward_passes - 1):.0f}",
            flush=True,
        )
        del model, writer, weights
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["live", "speed", "same", "rungs"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint in safetensors")
    parser.add_argument("--strategy", default="bf16")
    parser.add_argument("--strategies", default="8bit,4bit,bf16,fp16,cpu", help="for rungs")
    parser.add_argument("--rows", type=int, default=10, help="plans that are measured")
    parser.add_argument("--warm", type=int, default=50, help="plans before them, which make the history")
    parser.add_argument("--keep", type=Path, help="live: the plans before, as a drafter file (DRAFTER=… for speed)")
    parser.add_argument("--budget", type=int, default=600)
    parser.add_argument(
        "--offset", type=int, default=0, help="begin so many prompts later, to keep off a DRAFTER's own"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", dest="cpu", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prompts = [row["prompt"] for _, row in read_values(options.data)]
    wanted = options.rows + (options.warm if options.what in ("live", "speed") else 0)
    chosen = [prompts[(index * len(prompts) // wanted + options.offset) % len(prompts)] for index in range(wanted)]
    {"live": live, "speed": speed, "same": same, "rungs": rungs}[options.what](options, chosen)


if __name__ == "__main__":
    main()
