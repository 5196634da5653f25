"""`merge`: an adapter that was really trained, on a small checkpoint; what comes out is compared, and served."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from router_backend import cli
from router_backend.checkpoints.description import Folder, describe
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines import llamacpp
from router_backend.engines.base import LocalModel
from router_backend.engines.transformers import load as engine
from router_backend.errors import CandidateError, InvalidRequest
from router_backend.plan.prompt import BUDGET_KEY, router_prompt
from router_backend.plan.rules import validate
from router_backend.plan.write import PlanWriter
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams
from router_tools.merge import MergeOptions, adapter, gguf_file, merge, shards, verify
from router_tools.train import TrainOptions
from tests.checkpoints.test_gguf_merge import load as load_gguf
from tests.fakes import tiny
from tests.fakes.spaces_hub import TOKEN, fake_spaces_hub
from tests.tools import test_train as test_training
from tests.tools.test_train_rows import TOOLS

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]
IDS = torch.arange(3, 60)[None]


tokenizer_folder, data = test_training.base, test_training.data  # fixtures


@pytest.fixture(scope="module")
def base(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in bf16; every width is one that all quantisations can take."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    shutil.copytree(tokenizer_folder, folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder, intermediate_size=128, dtype=torch.float32)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter after three steps."""
    out = tmp_path_factory.mktemp("trained")
    recipe = {"rank": 4, "rate": 3e-2, "warmup": 1, "validation": 2, "every": 9, "sample_tokens": 1, "threads": 1}
    assert test_training.quietly(TrainOptions(data, out, base=str(base), steps=3, **recipe)) == 0  # type: ignore[arg-type]
    return out / "adapter"


@pytest.fixture(scope="module")
def made(base: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that one merge can make."""
    out = tmp_path_factory.mktemp("made") / "merged"
    said: list[str] = []
    everything = MergeOptions(str(base), trained, out, copies=("8bit", "4bit"), gguf="Q8_0")
    assert merge(everything, load_settings(), said.append) == 0, said
    return out


@torch.no_grad()
def logits(folder: Path, peft: Path | None = None) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if peft:
        model = PeftModel.from_pretrained(model, str(peft))
    found: torch.Tensor = model.eval()(input_ids=IDS).logits[0]
    return found


def quiet(options: MergeOptions) -> int:
    return merge(options, load_settings(), lambda _: None)


# What it computes


def test_it_computes_what_peft_computes_with_base_and_adapter(base: Path, trained: Path, made: Path) -> None:
    together = logits(base, trained)
    assert (together - logits(base)).abs().max() > 0.1
    torch.testing.assert_close(logits(made), together, rtol=1e-4, atol=1e-4)
    assert names(made) == names(base) | {"README.md", "merged-Q8_0.gguf"}
    kept = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    assert all((made / name).read_bytes() == (base / name).read_bytes() for name in kept)
    assert json.loads((made / "config.json").read_text())[BUDGET_KEY] is True


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
def test_the_dtype_is_as_asked_and_costs_no_more_than_rounding(
    base: Path,
    trained: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    assert quiet(MergeOptions(str(base), trained, tmp_path / "out", dtype=kind)) == 0
    stored = {str(each.dtype) for each in load_file(tmp_path / "out/model.safetensors").values()}
    wanted = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[kind]
    assert stored == {f"torch.{wanted}"}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == wanted


@pytest.mark.parametrize(
    "recipe", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 40}, "rank_pattern": {"v_proj": 2}}]
)
def test_adapters_as_peft_itself_writes_them(base: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    for name, value in recipe.items():
        setattr(config, name, value)
    get_peft_model(model, config).save_pretrained(str(tmp_path / "adapter"))
    assert quiet(MergeOptions(str(base), tmp_path / "adapter", tmp_path / "out", dtype="fp32")) == 0
    torch.testing.assert_close(logits(tmp_path / "out"), logits(base, tmp_path / "adapter"), rtol=1e-3, atol=1e-3)


def test_a_model_that_sees_gets_the_adapter_of_its_language_model(tmp_path: Path) -> None:
    folder = tiny.save("gemma3-sees", tmp_path / "base")
    text = [name for name in shards.Weights(folder).shapes if "language_model" in name and "q_proj.weight" in name]
    wide = shards.Weights(folder).shapes[text[0]]
    module = f"model.layers.0.{text[0].split('layers.0.')[1]}".removesuffix(".weight")
    lora = {module: adapter.Lora(torch.ones(2, wide[1]), torch.ones(wide[0], 2), 1.0)}
    assert adapter.fit(lora, shards.Weights(folder).shapes).keys() == {text[0]}


def test_a_merge_stays_within_its_memory(tmp_path: Path) -> None:
    """A process of its own, which looks at the memory that it takes beside the mapped files."""
    code = """
import sys, threading, torch
from pathlib import Path
from safetensors.torch import save_file
from router_tools.merge import adapter, shards
torch.set_num_threads(1)
base, out = Path("base"), Path("out")
base.mkdir(); out.mkdir()
names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(6)]
save_file({f"{name}.weight": torch.zeros(2048, 2048) for name in names}, base / "model.safetensors")
torch.ones(64, 4) @ torch.ones(4, 64)  # what a first product sets up is not ours
held = lambda: int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))) * 1024
before, most, done = held(), [0], threading.Event()
def look():
    while not done.wait(0.002):
        most[0] = max(most[0], held())
looking = threading.Thread(target=look)
looking.start()
layers = {name: adapter.Lora(torch.ones(4, 2048), torch.ones(2048, 4), 0.5) for name in names}
shards.write(base, out, layers, dtype=None, memory=40_000_000, note=lambda line: None)
done.set(); looking.join()
print(most[0] - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Of 101 MB: one shard of 17 MB, a block in work, and what the allocator has not given back yet.
    assert 10_000_000 < int(done.stdout) < 80_000_000
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 6
    assert all(torch.all(each == 2) for each in load_file(files[0]).values())


def test_a_checkpoint_in_several_files_is_whole(base: Path, trained: Path, made: Path, tmp_path: Path) -> None:
    """Also where the comparison finds no room for it in memory, and leaves it in its files."""
    assert quiet(MergeOptions(str(base), trained, tmp_path / "out", memory=400_000)) == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) >= 2
    assert describe(Folder(tmp_path / "out")).linear == describe(Folder(made)).linear
    torch.testing.assert_close(logits(tmp_path / "out"), logits(made))


# It is served


def serve(place: Path) -> LocalModel:
    settings = load_settings(model_device="cpu", threads=1, slots=1, context_length=2048)
    if place.suffix == ".gguf":
        return llamacpp.load(Rung(Candidate(str(place), "gguf"), "gguf"), settings)
    quantised = describe(Folder(place)).quantized
    return engine.load(Rung(Candidate(str(place), "folder"), "native" if quantised else "cpu"), settings)


@pytest.mark.parametrize("which", ["merged", "merged-4bit", "merged-8bit", "merged/merged-Q8_0.gguf"])
def test_every_output_is_served_and_answers_with_a_valid_plan(made: Path, which: str) -> None:
    model = serve(made.parent / which)
    try:
        assert model.info.budget_line
        writer = PlanWriter(model, TOOLS)
        sampling = SamplingParams(writer.smallest_budget + 40, 0)
        request = GenerateRequest("merge", router_prompt("Prove it and test it in code."), sampling, "plan")
        text = "".join(chunk.text for chunk in writer.write(request, lambda: False))
    finally:
        model.close()
    plan, findings = validate(json.loads(text), TOOLS)
    assert plan is not None and findings == []


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_small_checkpoint_too(small_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """SmolLM2 and two steps of training: the same logits as PEFT's, and each output writes a valid plan."""
    recipe = {"rank": 4, "rate": 3e-3, "warmup": 1, "validation": 1, "every": 9, "sample_tokens": 1, "threads": 1}
    options = TrainOptions(data, tmp_path, base=str(small_checkpoint), steps=2, batch=1, accumulate=1, **recipe)  # type: ignore[arg-type]
    assert test_training.quietly(options) == 0
    out = tmp_path / "merged"
    assert quiet(MergeOptions(str(small_checkpoint), tmp_path / "adapter", out, copies=("4bit",), gguf="Q8_0")) == 0
    together, merged = logits(small_checkpoint, tmp_path / "adapter"), logits(out)
    assert (together - logits(small_checkpoint)).abs().max() > 0.1
    assert (merged - together).std() < 0.02 * together.std(), "the merged weights are bf16"
    for which in ("merged", "merged-4bit", "merged/merged-Q8_0.gguf"):
        test_every_output_is_served_and_answers_with_a_valid_plan(out, which)


def test_the_copies_say_how_they_are_quantised(made: Path) -> None:
    for precision in ("4bit", "8bit"):
        folder = made.with_name(f"merged-{precision}")
        config = json.loads((folder / "config.json").read_text())
        assert config["quantization_config"][f"load_in_{precision}"] is True
        card = (folder / "README.md").read_text()
        assert f"| quantised | {precision}, bitsandbytes |" in card
        assert "| the copy, beside what was merged | logits differ by" in card


def test_a_copy_that_does_not_load_again_is_an_error(tokenizer_folder: Path, trained: Path, tmp_path: Path) -> None:
    """bitsandbytes writes 4 bits of a width of 96 that it cannot read."""
    weights = load_file(trained / adapter.ADAPTER)
    narrow = broken(trained, tmp_path / "adapter")
    save_file({key: value for key, value in weights.items() if ".self_attn." in key}, narrow / adapter.ADAPTER)
    with pytest.raises(CandidateError, match="does not load again"):
        quiet(MergeOptions(str(tokenizer_folder), narrow, tmp_path / "out", copies=("4bit",)))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_gguf_holds_the_weights_and_the_tokenizer_of_the_folder(made: Path, tmp_path: Path) -> None:
    """Transformers has its own code for the names and the order of the rows, llama.cpp its own tokenizer."""
    gguf_file.write(made, tmp_path / "model.gguf", "F32")
    torch.testing.assert_close(logits_of_gguf(tmp_path / "model.gguf"), logits(made), rtol=1e-3, atol=1e-3)
    text = 'Prove that 12 and 345 are even;\n  then check it\'s so: {"plan": [/math(…)]} <|im_end|>'
    one, other = serve(tmp_path / "model.gguf"), serve(made)
    assert one.count_tokens(text) == other.count_tokens(text)
    one.close()


def test_a_gguf_of_llama_31_has_its_rope_scaling(tmp_path: Path) -> None:
    """What llama.cpp makes of 200 tokens; without the scaling its logarithms are off by 5."""
    folder = tiny.save("llama31", tmp_path / "folder")
    gguf_file.write(folder, tmp_path / "model.gguf", "F32")
    ids = (torch.arange(200) * 7 % 500).tolist()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    served = serve(tmp_path / "model.gguf")
    assert isinstance(served, llamacpp.LlamaCppModel)
    asked = {"prompt": ids, "n_predict": 1, "n_probs": 40, "temperature": 0}
    (said,) = served._http.post("/completion", json=asked).json()["completion_probabilities"]
    assert len(said["top_logprobs"]) == 40
    for each in said["top_logprobs"]:
        assert each["logprob"] == pytest.approx(float(wanted[each["id"]]), abs=0.05)
    assert served.count_tokens("It's 12345 and\n\n more") == serve(folder).count_tokens("It's 12345 and\n\n more")
    served.close()


def logits_of_gguf(path: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_gguf(path).eval()(input_ids=IDS).logits[0]
    return found


def test_a_gguf_of_what_llama_cpp_would_misread_is_refused(made: Path, tmp_path: Path) -> None:
    for name, change in {
        "architecture": {"model_type": "gemma3"},
        "rope": {"rope_parameters": {"rope_type": "yarn"}},
        "kind": {},
    }.items():
        folder = tmp_path / name
        shutil.copytree(made, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises((CandidateError, InvalidRequest), match=r"convert_hf_to_gguf|rope scaling|no kind of GGUF"):
            gguf_file.write(folder, tmp_path / "x.gguf", "Q8_0" if change else "Q3_K")
    with pytest.raises(CandidateError, match="split text"):
        gguf_file._split({"type": "Whitespace"})


# Out of a GGUF


def test_a_gguf_base_becomes_a_file_or_a_folder(base: Path, trained: Path, made: Path, tmp_path: Path) -> None:
    gguf_file.write(base, tmp_path / "base.gguf", "F32")
    assert quiet(MergeOptions(str(tmp_path / "base.gguf"), trained, tmp_path / "out.gguf", gguf="F32")) == 0
    assert quiet(MergeOptions(str(tmp_path / "base.gguf"), trained, tmp_path / "out", dtype="fp32", gguf="F16")) == 0
    assert (tmp_path / "out/out-F16.gguf").is_file()
    torch.testing.assert_close(logits(tmp_path / "out"), logits(made), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits_of_gguf(tmp_path / "out.gguf"), logits(made), rtol=1e-3, atol=1e-3)


# What goes wrong


def broken(trained: Path, folder: Path, **config: object) -> Path:
    shutil.copytree(trained, folder)
    place = folder / adapter.ADAPTER_CONFIG
    place.write_text(json.dumps(json.loads(place.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("dora", "only plain LoRA"),
        ("other kind", "only plain LoRA"),
        ("no weights", "cannot be read as an adapter"),
        ("half a layer", "no two matrices"),
        ("more", "no LoRA weights"),
        ("none", "holds no LoRA weights"),
        ("another base", "for another base"),
        ("no such layer", "that the base does not have"),
    ],
)
def test_an_adapter_that_does_not_fit_leaves_nothing(
    base: Path,
    trained: Path,
    tmp_path: Path,
    damage: str,
    words: str,
) -> None:
    changes: dict[str, dict[str, Any]] = {"dora": {"use_dora": True}, "other kind": {"peft_type": "IA3"}}
    given = changes.get(damage, {})
    folder = broken(trained, tmp_path / "adapter", **given)
    weights = load_file(folder / adapter.ADAPTER)
    key = next(key for key in sorted(weights) if key.endswith("q_proj.lora_A.weight"))
    if damage == "no weights":
        (folder / adapter.ADAPTER).unlink()
    elif damage == "half a layer":
        weights.pop(key)
        weights[key.replace("q_proj", "x_proj")] = torch.ones(4, 64)
    elif damage == "more":
        weights["base_model.model.lm_head.weight"] = torch.ones(1)
    elif damage == "none":
        weights = {}
    elif damage == "another base":
        weights[key] = torch.ones(4, 32)
    elif damage == "no such layer":
        for letter in "AB":
            part = key.replace("lora_A", f"lora_{letter}")
            weights[part.replace("layers.0", "layers.9")] = weights.pop(part)
    if damage not in ("no weights", *changes):
        save_file(weights, folder / adapter.ADAPTER)
    with pytest.raises(CandidateError, match=words):
        quiet(MergeOptions(str(base), folder, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int3"}, "choose from bf16"),
        ({"copies": ("2bit",)}, "choose from 8bit"),
        ({"out": "."}, "is there already"),
        ({"out": "x.gguf"}, "out of a GGUF base"),
        ({"base": "no/such"}, "HF_HUB_OFFLINE"),
        ({"base": "4bit"}, "is quantised"),
    ],
)
def test_what_cannot_be_made_is_refused(
    base: Path,
    trained: Path,
    made: Path,
    tmp_path: Path,
    change: dict[str, Any],
    words: str,
) -> None:
    given = MergeOptions(str(base), trained, tmp_path / "out")
    (tmp_path / "there").touch()
    if "out" in change:
        change = {"out": tmp_path / change["out"]}
    if change.get("base") == "4bit":
        change = {"base": str(made.with_name("merged-4bit"))}
    with pytest.raises((InvalidRequest, CandidateError), match=words):
        quiet(replace(given, **change))


def test_numbers_too_large_for_fp16_are_refused(base: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    save_file(weights, tmp_path / "base/model.safetensors", {"format": "pt"})
    with pytest.raises(CandidateError, match="choose bf16"):
        quiet(MergeOptions(str(tmp_path / "base"), trained, tmp_path / "out", dtype="fp16"))


def test_a_result_that_differs_is_said_and_not_pushed(
    base: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = adapter.Lora.rows
    monkeypatch.setattr(adapter.Lora, "rows", lambda self, start, end: 2 * real(self, start, end))
    said: list[str] = []
    options = MergeOptions(str(base), trained, tmp_path / "out", push="acme/merged")
    assert merge(options, load_settings(), said.append) == 1
    assert any("more than rounding explains" in line for line in said)
    assert not any("pushed" in line for line in said)


# Pushed


@pytest.fixture
def settings_of_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with fake_spaces_hub() as hub:
        yield hub, load_settings(hf_endpoint=hub.url, hf_hub_offline=False, hf_token=TOKEN)
    huggingface_hub.close_session()


def test_it_is_pushed_with_its_copies(base: Path, trained: Path, tmp_path: Path, settings_of_hub: Any) -> None:  # noqa: ANN401
    hub, settings = settings_of_hub
    said: list[str] = []
    options = MergeOptions(
        str(base), trained, tmp_path / "out", copies=("4bit",), check=False, push="acme/merged", private=True
    )
    assert merge(options, settings, said.append) == 0
    assert hub.repos["acme/merged"].private
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= hub.repos["acme/merged"].files.keys()
    card = hub.repos["acme/merged-4bit"].files["README.md"].decode()
    assert "MODEL_REPO=acme/merged-4bit router-backend serve" in card
    assert str(tmp_path) not in card
    assert not any(TOKEN in line for line in said)


def test_the_command_merges_and_says_what_is_wrong(base: Path, trained: Path, tmp_path: Path) -> None:
    given = ["merge", str(base), str(trained), str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, [*given, "--dtype", "bf16"])
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    assert "logits differ by" in done.stdout
    refused = CliRunner().invoke(cli.app, given)
    assert refused.exit_code == 2
    assert "is there already" in refused.stderr


def test_agreement_is_of_the_same_and_of_another() -> None:
    one = torch.randn(5, 9)
    assert verify.agreement(one, one) == verify.Agreement(0.0, 1.0)
    assert verify.agreement(-one, one).same_choice == 0


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
