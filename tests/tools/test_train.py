"""Training on a model of two small layers: it learns, it resumes as if it had never stopped, it says what it did."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from router_backend import cli
from router_backend.checkpoints.adapter import ADAPTER
from router_backend.checkpoints.embedded import ADAPTER as ADAPTER_OF_THE_DEFAULT
from router_backend.checkpoints.gguf_merge import merge
from router_backend.errors import CandidateError, InvalidRequest
from router_backend.plan.prompt import BUDGET_KEY
from router_backend.settings import load_settings
from router_tools.train import TrainOptions, train
from router_tools.train.examples import CONTRACT, Batches, Example, Examples, collate
from router_tools.train.model import load_base, with_adapter
from router_tools.train.options import learning_rate
from tests.fakes import gguf_base
from tests.tools.test_train_rows import TOOLS, reference_plan, row

to_text = partial(json.dumps, ensure_ascii=False)

pytestmark = pytest.mark.torch
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: random weights, a tokenizer trained on the rows."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [text for seed in range(8) for text in (row(seed).prompt, row(seed).completion)], trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=700,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": row(seed).prompt, "completion": to_text(reference_plan(seed))} for seed in range(16)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "p", "completion": "{}"}])), "utf-8")
    return path


@pytest.fixture
def options(base: Path, data: Path, tmp_path: Path) -> Callable[..., TrainOptions]:
    def make(**changes: Any) -> TrainOptions:  # noqa: ANN401
        given: dict[str, Any] = {
            "data": data,
            "out": tmp_path / "out",
            "base": str(base),
            "rank": 4,
            "rate": 3e-2,
            "warmup": 2,
            "validation": 2,
            "every": 3,
            "sample_tokens": 5,
            "threads": 1,
        }
        return TrainOptions(**{**given, **changes})

    return make


def quietly(options: TrainOptions) -> int:
    return train(options, Console(file=io.StringIO()))


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text("utf-8").splitlines())
    return [each for each in lines if each["event"] == name]


# A run


def test_a_run_learns_and_leaves_everything_behind(options: Callable[..., TrainOptions]) -> None:
    given = options(steps=6)
    assert quietly(given) == 0
    (start,) = events(given.out, "start")
    assert start["rows"] == 14
    assert start["refused"] == {"schema: route_plan": 1}
    seen = events(given.out, "validation")
    assert [each["step"] for each in seen] == [0, 3, 6, 6]
    assert seen[-1]["reference"] < seen[0]["reference"] - 0.2
    assert seen[-1]["budget_600"] < seen[0]["budget_600"] - 0.2
    assert [each["step"] for each in events(given.out, "step")] == [1, 2, 3, 4, 5, 6]
    assert isinstance(events(given.out, "sample")[0]["text"], str)
    with safe_open(given.out / "adapter" / ADAPTER, "np") as file:
        assert file.metadata() == {BUDGET_KEY: "true"}
    assert (given.out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert set(load_file(given.out / "adapter" / ADAPTER)) == {
        f"base_model.model.model.layers.{layer}.{part}.lora_{letter}.weight"
        for layer in range(2)
        for part in (*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{n}_proj" for n in ("gate", "up", "down")))
        for letter in "AB"
    }


def test_a_resumed_run_gives_the_same_losses_and_the_same_adapter(
    options: Callable[..., TrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = options(steps=5)
    quietly(whole)
    broken = options(steps=5, out=whole.out.with_name("broken"))
    with monkeypatch.context() as patch:
        interrupt_in_step(3, patch)
        quietly(broken)
    assert len(events(broken.out, "step")) == 3
    quietly(options(steps=5, out=broken.out, resume=True))
    outs = (whole.out, broken.out)
    losses = [[(each["step"], each["loss"], each["rate"]) for each in events(out, "step")] for out in outs]
    assert losses[0] == losses[1]
    adapters = [(out / "adapter" / ADAPTER).read_bytes() for out in outs]
    assert adapters[0] == adapters[1]


def test_the_loss_of_a_run_for_a_gguf_is_that_of_the_merged_gguf(
    options: Callable[..., TrainOptions], base: Path, tmp_path: Path
) -> None:
    loud = Path(shutil.copytree(base, tmp_path / "loud"))
    weights = load_file(loud / "model.safetensors")  # random small weights say next to nothing, rounded or not
    save_file({name: each * 4 for name, each in weights.items()}, loud / "model.safetensors", {"format": "pt"})
    plain = gguf_base.write(loud, tmp_path / "plain.gguf")

    def merged(run: TrainOptions) -> float:
        """The loss of what is merged, as a run that begins with it sees it."""
        packed = run.out / "merged.gguf"
        merge(plain, run.out / "adapter", packed, kind="Q4_0")
        seen = options(base=str(packed), out=run.out / "seen", steps=1)
        quietly(seen)
        return float(events(seen.out, "validation")[0]["budget_600"])

    def said(run: TrainOptions, turn: int = -1) -> float:
        return float(events(run.out, "validation")[turn]["budget_600"])

    unaware = options(base=str(plain), out=tmp_path / "unaware", steps=6)
    aware = options(
        base=str(plain), out=tmp_path / "aware", steps=6, adapter=unaware.out / "adapter", gguf="Q4_0", rank=9
    )
    quietly(unaware)
    quietly(aware)
    lost = merged(unaware)
    assert said(unaware) < lost - 0.04, "it knew nothing of four bits"
    assert said(aware, 0) == pytest.approx(lost, abs=0.01)
    assert said(aware) == pytest.approx(merged(aware), abs=0.01) and said(aware) < lost - 1
    again = options(base=str(plain), out=aware.out, steps=7, adapter=unaware.out / "adapter", gguf="Q4_0", rank=9)
    quietly(replace(again, resume=True))
    assert [each["step"] for each in events(aware.out, "step")] == list(range(1, 8))


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_run_between_two_steps(
    options: Callable[..., TrainOptions], monkeypatch: pytest.MonkeyPatch, interrupt: signal.Signals
) -> None:
    given = options(steps=50, every=100, glance=1)
    interrupt_in_step(2, monkeypatch, interrupt)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert quietly(given) == 130
    assert [each["step"] for each in events(given.out, "step")] == [1, 2]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def interrupt_in_step(step: int, monkeypatch: pytest.MonkeyPatch, interrupt: int = signal.SIGTERM) -> None:
    """What a terminal's Ctrl-C does, in the middle of a step."""

    def rate(done: int, share: float, options: TrainOptions) -> float:
        if done == step:
            os.kill(os.getpid(), interrupt)
        return learning_rate(done, share, options)

    monkeypatch.setattr("router_tools.train.trainer.learning_rate", rate)


def test_minutes_end_a_run(options: Callable[..., TrainOptions]) -> None:
    given = options(max_minutes=0.001)
    assert quietly(given) == 0
    (step,) = events(given.out, "step")
    assert events(given.out, "validation")[-1]["step"] == step["step"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "a run needs an end"),
        ({"steps": 1, "resume": True}, "holds no checkpoint"),
        ({"steps": 1, "data": Path("none")}, "none: No such file"),
        ({"steps": 1, "gguf": "Q3_K"}, "kind Q3_K cannot be written: choose from F32, "),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    options: Callable[..., TrainOptions], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        quietly(options(**changes))


@pytest.mark.parametrize("spoilt", ["adapter_model.safetensors", "adapter_config.json", ""])
def test_an_adapter_that_cannot_be_read_is_told_before_the_base_is_loaded(
    options: Callable[..., TrainOptions], tmp_path: Path, spoilt: str
) -> None:
    if spoilt:
        shutil.copytree(ADAPTER_OF_THE_DEFAULT, tmp_path / "adapter")
        (tmp_path / "adapter" / spoilt).write_bytes(b"{}")
    with pytest.raises(CandidateError, match="adapter"):
        quietly(options(steps=1, base=str(tmp_path / "no base"), adapter=tmp_path / "adapter"))


def test_an_adapter_of_another_base(options: Callable[..., TrainOptions]) -> None:
    with pytest.raises(CandidateError, match="does not go on this base: "):
        quietly(options(steps=1, adapter=ADAPTER_OF_THE_DEFAULT))


def test_a_checkpoint_of_another_recipe_is_not_resumed(options: Callable[..., TrainOptions]) -> None:
    given = options(steps=1)
    quietly(given)
    with pytest.raises(InvalidRequest, match="another rate, seed"):
        quietly(options(steps=2, resume=True, rate=0.5, seed=3))


def test_a_base_that_does_not_load_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CandidateError, match=r"model\.gguf does not load as a base"):
        load_base(str(tmp_path / "model.gguf"), load_settings())


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("tokenizer.json", {"model": {"type": "Other"}}, "does not load as a base to train on: Exception: "),
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "PanicException"),
        ("tokenizer.json", [], "does not load as a base to train on: TypeError"),
        ("config.json", {"num_key_value_heads": 0}, "ZeroDivisionError"),
        ("config.json", {"num_key_value_heads": 1.5}, "num_key_value_heads"),
        ("config.json", {"num_hidden_layers": 3}, r"missing or of another shape \(model\.layers\.2\."),
        ("config.json", {"vocab_size": 701}, "missing or of another shape"),
        ("chat_template.jinja", "{{ raise_exception('no') }}", "does not work: TemplateError: no"),
        ("tokenizer_config.json", {"eos_token": None}, "names no token that ends an answer"),
    ],
)
def test_a_base_that_a_library_does_not_take_is_one_sentence_too(
    base: Path,
    tmp_path: Path,
    file: str,
    change: object,
    words: str,
) -> None:
    """The libraries raise errors of all kinds, panic, and make up weights that are not there."""
    path = Path(shutil.copytree(base, tmp_path / "base")) / file
    content = json.loads(path.read_text("utf-8")) | change if isinstance(change, dict) else change
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    with pytest.raises(CandidateError, match=words):
        load_base(str(path.parent), load_settings())


@pytest.mark.parametrize("changes", [{"rate": 1e30, "steps": 6}, {"steps": 6}])
def test_a_loss_that_is_no_number_ends_the_run(
    options: Callable[..., TrainOptions], base: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    broken = Path(shutil.copytree(base, tmp_path / "broken"))
    if "rate" not in changes:
        weights = load_file(broken / "model.safetensors")
        weights["model.norm.weight"][0] = float("nan")
        save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CandidateError, match=r"loss is nan after \d steps: .* --rate"):
        quietly(options(base=str(broken), **changes))


def test_a_base_whose_tokenizer_is_in_the_folder_above(base: Path, tmp_path: Path) -> None:
    inside = tokenizer_above(base, tmp_path)
    assert load_base(str(inside), load_settings())[1]("x").input_ids


def tokenizer_above(base: Path, folder: Path) -> Path:
    """A copy of the base in a folder of this one, which has the tokenizer."""
    inside = Path(shutil.copytree(base, folder / "default"))
    for path in [*inside.glob("tokenizer*"), *inside.glob("chat_template*")]:
        path.rename(folder / path.name)
    return inside


def test_the_command_trains_and_says_what_is_wrong(base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused = CliRunner().invoke(cli.app, ["train", str(data), str(out), "--base", str(base)])
    assert refused.exit_code == 1
    assert "a run needs an end" in refused.stderr
    given = ["--base", str(base), "--steps", "1", "--validation", "2", "--rank", "2"]
    assert CliRunner().invoke(cli.app, ["train", str(data), str(out), *given]).exit_code == 0
    assert (out / "adapter" / ADAPTER).is_file()


# What it learns from


def test_an_epoch_has_each_row_once_and_is_the_same_for_the_same_seed(base: Path) -> None:
    examples = Examples(load_base(str(base), load_settings())[1], TOOLS, 4096)
    rows = [row(seed) for seed in range(12)]

    def epoch(seed: int, number: int) -> list[list[Example]]:
        return list(Batches(examples, rows, size=3, seed=seed).epoch(number))

    made = epoch(0, 0)
    assert [len(batch) for batch in made] == [3, 3, 3, 3]
    prompts = {bytes(str(example.ids[:40]), "ascii") for batch in made for example in batch}
    assert prompts == {bytes(str(example.ids[:40]), "ascii") for batch in epoch(0, 1) for example in batch}
    assert epoch(0, 0) == made
    assert epoch(0, 1) != made
    assert epoch(1, 0) != made


def test_the_loss_counts_the_completion_and_its_end_alone(base: Path) -> None:
    tokenizer = load_base(str(base), load_settings())[1]
    examples = Examples(tokenizer, TOOLS, 4096)
    example = examples.budgeted(row(0), CONTRACT)
    assert example is not None
    assert tokenizer.decode(example.ids[: example.start]) == (
        f"<|im_start|>user\n{row(0).prompt}\nToken budget: 600\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(example.ids[example.start :]).startswith('{"route_plan": ["/')
    assert tokenizer.decode(example.ids[-1:]) == "<|im_end|>"
    assert Examples(tokenizer, TOOLS, 500).reference(row(0)) is None


# What it computes


def test_the_loss_of_a_step_is_the_mean_over_its_completion_tokens(base: Path) -> None:
    """Passes of different lengths weigh as many tokens as they have, and prompts weigh nothing."""
    model = with_adapter(load_base(str(base), load_settings())[0], 4, half=False).eval()
    batch = [Example(tuple(range(3, 60)), 20), Example(tuple(range(90, 120)), 10)]
    tokens = sum(each.completion_tokens for each in batch)
    own = model(**collate(batch), num_items_in_batch=tokens).loss
    logs = [model(input_ids=torch.tensor([each.ids])).logits[0].log_softmax(-1) for each in batch]
    total = sum(
        -rows[each.start - 1 : -1].gather(1, torch.tensor(each.ids[each.start :])[:, None]).sum()
        for rows, each in zip(logs, batch, strict=True)
    )
    torch.testing.assert_close(own, total / tokens)


def test_the_rate_warms_up_and_falls() -> None:
    options = TrainOptions(Path(), Path(), rate=1.0, warmup=4)
    assert learning_rate(0, 0.0, options) == pytest.approx(0.25)
    assert learning_rate(4, 0.0, options) == pytest.approx(1.0)
    assert learning_rate(9, 0.5, options) == pytest.approx(0.525)
    assert learning_rate(99, 1.0, options) == pytest.approx(0.05)
