"""`merge`: an adapter that was really trained, on a small checkpoint; what comes out is compared, and served."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from router_backend import cli
from router_backend.checkpoints import adapter, gguf_merge
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
from router_tools.base import load_model
from router_tools.merge import MergeOptions, merge, quantized, shards, verify
from router_tools.train import TrainOptions
from tests.fakes import gguf_base, tiny
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
    """Random weights; every width is one that all quantisations can take."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    shutil.copytree(tokenizer_folder, folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(folder, intermediate_size=128, dtype=torch.float32)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base_gguf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_base.write(base, tmp_path_factory.mktemp("gguf") / "base.gguf")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on all linear layers, after three steps; it says that it knows budgets."""
    out = tmp_path_factory.mktemp("trained") / "adapter"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-2)
        for _ in range(3):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        model.save_pretrained(str(out))
    save_file(load_file(out / adapter.ADAPTER), out / adapter.ADAPTER, {BUDGET_KEY: "true"})
    return out


@pytest.fixture(scope="module")
def made(base: Path, base_gguf: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that merges can make; the GGUF lies beside the folder."""
    out = tmp_path_factory.mktemp("made") / "merged"
    said: list[str] = []
    everything = MergeOptions(str(base), trained, out, copies=("8bit", "4bit"))
    assert merge(everything, load_settings(), said.append) == 0, said
    assert quiet(MergeOptions(str(base_gguf), trained, out.with_name("merged.gguf"))) == 0
    return out


@torch.no_grad()
def logits(folder: Path, peft: Path | None = None) -> torch.Tensor:
    model: Any = with_peft(folder, peft) if peft else load_model(folder)
    found: torch.Tensor = model(input_ids=IDS).logits[0]
    return found


def with_peft(folder: Path, peft: Path) -> Any:  # noqa: ANN401
    """Base and adapter as PEFT loads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_model(folder), str(peft)).eval()


def quiet(options: MergeOptions) -> int:
    return merge(options, load_settings(), lambda _: None)


# What it computes


def test_it_computes_what_peft_computes_with_base_and_adapter(base: Path, trained: Path, made: Path) -> None:
    together = logits(base, trained)
    assert (together - logits(base)).abs().max() > 0.1
    torch.testing.assert_close(logits(made), together, rtol=1e-4, atol=1e-4)
    assert names(made) == names(base) | {"README.md"}
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


def test_a_model_that_sees_gets_the_adapter_of_its_language_model(tmp_path: Path) -> None:
    folder = tiny.save("gemma3-sees", tmp_path / "base")
    with shards.opened(folder) as weights:
        shapes = {name: each.get_shape() for name, each in weights.items()}
    text = [name for name in shapes if "language_model" in name and "q_proj.weight" in name]
    wide = shapes[text[0]]
    module = f"model.layers.0.{text[0].split('layers.0.')[1]}".removesuffix(".weight")
    lora = {module: adapter.Lora(np.ones((2, wide[1])), np.ones((wide[0], 2)), 1.0)}
    assert adapter.fit(lora, shapes).keys() == {text[0]}


def test_a_merge_stays_within_its_memory(tmp_path: Path) -> None:
    """A process of its own, which looks at the memory that it takes beside the mapped files."""
    code = """
import sys, threading, numpy as np, torch
from pathlib import Path
from safetensors.torch import save_file
from router_backend.checkpoints import adapter, gguf_merge
from router_tools.merge import shards
torch.set_num_threads(1)
base, out = Path("base"), Path("out")
base.mkdir(); out.mkdir()
names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(12)]
save_file({f"{name}.weight": torch.zeros(2048, 2048) for name in names}, base / "model.safetensors")
np.ones((2048, 4)) @ np.ones((4, 2048))  # what a first product sets up is not ours
held = lambda: int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))) * 1024
before, most, done = held(), [0], threading.Event()
def look():
    while not done.wait(0.002):
        most[0] = max(most[0], held())
looking = threading.Thread(target=look)
looking.start()
layers = {name: adapter.Lora(np.ones((4, 2048), np.float32), np.ones((2048, 4), np.float32), 0.5) for name in names}
shards.write(base, out, layers, dtype=None, memory=40_000_000, note=lambda line: None)
done.set(); looking.join()
print(most[0] - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # Of 201 MB: one shard of 17 MB, a block in work, and what the allocator has not given back yet.
    assert 10_000_000 < int(done.stdout) < 140_000_000
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 12
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
        return llamacpp.load(Rung(Candidate(str(place), "gguf"), "gguf"), settings, place)
    quantised = describe(Folder(place)).quantized
    return engine.load(Rung(Candidate(str(place), "folder"), "native" if quantised else "cpu"), settings, place)


@pytest.mark.parametrize("which", ["merged", "merged-4bit", "merged-8bit", "merged.gguf"])
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
def test_the_small_checkpoint_too(shallow_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """SmolLM2's first layers and a step of `train`: the same logits as PEFT's, and each output writes a valid plan."""
    options = TrainOptions(
        data, tmp_path, base=str(shallow_checkpoint), steps=1, batch=1, accumulate=1, rank=4, rate=3e-3, validation=1,
        every=9, threads=1,
    )  # fmt: skip
    assert test_training.quietly(options) == 0
    out = tmp_path / "merged"
    assert quiet(MergeOptions(str(shallow_checkpoint), tmp_path / "adapter", out, copies=("4bit",))) == 0
    together, merged = logits(shallow_checkpoint, tmp_path / "adapter"), logits(out)
    assert (together - logits(shallow_checkpoint)).abs().max() > 0.1
    assert (merged - together).std() < 0.02 * together.std(), "the merged weights are bf16"
    for which in ("merged", "merged-4bit"):
        test_every_output_is_served_and_answers_with_a_valid_plan(out, which)


def test_the_copies_say_how_they_are_quantised(made: Path) -> None:
    for precision in ("4bit", "8bit"):
        folder = made.with_name(f"merged-{precision}")
        config = json.loads((folder / "config.json").read_text())
        assert config["quantization_config"][f"load_in_{precision}"] is True
        card = (folder / "README.md").read_text()
        assert f"| quantised | {precision}, bitsandbytes |" in card
        assert "| the copy, beside what was merged | logits differ by" in card


def test_a_copy_that_does_not_load_again_is_an_error(
    base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = quantized.write

    def cut_short(folder: Path, out: Path, precision: str, **how: Any) -> Any:  # noqa: ANN401
        made = real(folder, out, precision, **how)
        weights = load_file(out / "model.safetensors")
        save_file({key: value for key, value in weights.items() if "quant_state" not in key}, out / "model.safetensors")
        return made

    monkeypatch.setattr(quantized, "write", cut_short)
    with pytest.raises(CandidateError, match="does not load again"):
        quiet(MergeOptions(str(base), trained, tmp_path / "out", copies=("4bit",)))
    assert list(tmp_path.iterdir()) == []


# Out of a GGUF


def test_a_gguf_base_becomes_a_file_or_a_folder(base_gguf: Path, trained: Path, made: Path, tmp_path: Path) -> None:
    assert quiet(MergeOptions(str(base_gguf), trained, tmp_path / "out.gguf", gguf="F32")) == 0
    assert quiet(MergeOptions(str(base_gguf), trained, tmp_path / "out", dtype="fp32", gguf="F16")) == 0
    assert (tmp_path / "out/out-F16.gguf").is_file()
    torch.testing.assert_close(logits(tmp_path / "out"), logits(made), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits(tmp_path / "out.gguf"), logits(made), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", list(gguf_merge.FILE_TYPES))
def test_a_gguf_of_every_kind_is_held_to_its_own_rounding(
    base_gguf: Path, trained: Path, tmp_path: Path, kind: str
) -> None:
    said: list[str] = []
    options = MergeOptions(str(base_gguf), trained, tmp_path / "out.gguf", gguf=kind)
    assert merge(options, load_settings(), said.append) == 0, said
    assert any(line.startswith("out.gguf, beside base and adapter rounded alike: logits differ by 0.") for line in said)


def test_llama_cpp_computes_what_peft_does(base: Path, base_gguf: Path, trained: Path, tmp_path: Path) -> None:
    """The engine that serves it: what it thinks of the next token after 57 others."""
    assert quiet(MergeOptions(str(base_gguf), trained, tmp_path / "out.gguf", gguf="F32")) == 0
    wanted = logits(base, trained)[-1].log_softmax(-1)
    served = serve(tmp_path / "out.gguf")
    assert isinstance(served, llamacpp.LlamaCppModel)
    try:
        asked = {"prompt": IDS[0].tolist(), "n_predict": 1, "n_probs": 40, "temperature": 0}
        (said,) = served._child.ask("completion", asked)["completion_probabilities"]
    finally:
        served.close()
    assert len(said["top_logprobs"]) == 40
    for each in said["top_logprobs"]:
        assert each["logprob"] == pytest.approx(float(wanted[each["id"]]), abs=0.05)


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_other_families_keep_their_rows_as_they_are(tmp_path: Path, name: str) -> None:
    """Transformers has its own code for names and rows of a GGUF."""
    folder = tiny.save(name, tmp_path / "folder")
    if name == "qwen3":  # transformers takes the real ones' width of a head for granted
        config = Qwen3Config.from_pretrained(folder, head_dim=128)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    base = gguf_base.write(folder, tmp_path / "base.gguf", tokenizer=False)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        model: Any = get_peft_model(load_model(base), lora)
        model.save_pretrained(str(tmp_path / "adapter"))
    gguf_merge.merge(base, tmp_path / "adapter", tmp_path / "out.gguf", kind="F32")
    with torch.no_grad():
        together = model.eval()(input_ids=IDS).logits[0]
    torch.testing.assert_close(logits(tmp_path / "out.gguf"), together, rtol=1e-3, atol=1e-3)
    assert (logits(base) - together).abs().max() > 0.1


# What goes wrong


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no weights", "it has no adapter_model.safetensors"),
        ("pickled weights", "adapter_model.bin can run code: save it again with PEFT"),
        ("cut weights", "cannot be read as an adapter: SafetensorError"),
        ("broken config", "cannot be read as an adapter: JSONDecodeError"),
        ("a list", "holds no JSON object"),
        ("another rank", "has rank 4, and 8 in adapter_config.json"),
        ("a wrong value", "holds a wrong value"),
        ("a wrong pattern", "holds a wrong value"),
        ("not a number", "numbers that are not finite"),
        ("half a layer", "no two matrices"),
        ("more", "1 of its tensors are not LoRA's two matrices"),
        ("none", "holds no LoRA weights"),
        ("twice", "twice"),
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
    folder = shutil.copytree(trained, tmp_path / "adapter")
    place, config = folder / adapter.ADAPTER_CONFIG, json.loads((folder / adapter.ADAPTER_CONFIG).read_text("utf-8"))
    weights = load_file(folder / adapter.ADAPTER)
    key = next(key for key in sorted(weights) if key.endswith("q_proj.lora_A.weight"))
    configs = {
        "broken config": '{"peft_type": "LO',
        "a list": "[]",
        "another rank": json.dumps(config | {"rank_pattern": {"q_proj": 8}}),
        "a wrong value": json.dumps(config | {"lora_alpha": "many"}),
        "a wrong pattern": json.dumps(config | {"alpha_pattern": {"(": 4}}),
    }
    if damage in configs:
        place.write_text(configs[damage], "utf-8")
    elif damage == "half a layer":
        weights.pop(key)
        weights[key.replace("q_proj", "x_proj")] = torch.ones(4, 64)
    elif damage == "more":
        weights["base_model.model.lm_head.weight"] = torch.ones(1)
    elif damage == "none":
        weights = {}
    elif damage == "not a number":
        weights[key][1, 2] = torch.nan
    elif damage == "another base":
        weights[key] = torch.ones(4, 32)
    elif damage in ("no such layer", "twice"):
        for letter in "AB":
            part = key.replace("lora_A", f"lora_{letter}")
            if damage == "twice":
                weights[part.replace("model.layers", "language_model.layers")] = weights[part].clone()
            else:
                weights[part.replace("layers.0", "layers.9")] = weights.pop(part)
    save_file(weights, folder / adapter.ADAPTER)
    if damage == "cut weights":
        (folder / adapter.ADAPTER).write_bytes((folder / adapter.ADAPTER).read_bytes()[:5000])
    elif damage.endswith("weights"):
        (folder / adapter.ADAPTER).unlink()
        if damage == "pickled weights":
            (folder / "adapter_model.bin").touch()
    with pytest.raises(CandidateError, match=words):
        quiet(MergeOptions(str(base), folder, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "int3"}, "choose from bf16"),
        ({"copies": ("2bit",)}, "choose from 8bit"),
        ({"out": "."}, "is there already"),
        ({"out": "x.gguf"}, r"out of a GGUF base only.*convert_hf_to_gguf\.py FOLDER --outtype bf16.*base\.gguf"),
        ({"gguf": "Q8_0"}, r"out of a GGUF base only.*convert_hf_to_gguf\.py FOLDER --outtype bf16.*base\.gguf"),
        ({"gguf": "q8_0"}, "of the kind q8_0 cannot be written: choose from F32, F16, .*Q8_0"),
        ({"gguf": "Q4_K_M"}, "of the kind Q4_K_M cannot be written: choose from"),
        ({"out": "x.gguf", "base": "gguf", "copies": ("4bit",)}, "no --dtype, --copy or --push"),
        ({"base": "no/such"}, "HF_HUB_OFFLINE"),
        ({"base": "4bit"}, "is quantised"),
        ({"base": "adapter"}, "it is a LoRA adapter"),
        ({"adapter": "base"}, "is a checkpoint, not an adapter: the base comes first, then the adapter"),
        ({"adapter": "gguf"}, "is a file: name the folder of an adapter. The base comes first"),
        ({"adapter": "."}, r"is not an adapter in PEFT's format: it has no adapter_config\.json"),
        ({"adapter": "owner/name"}, "owner/name does not exist.*hf download owner/name --local-dir FOLDER"),
    ],
)
def test_what_cannot_be_made_is_refused(
    base: Path,
    base_gguf: Path,
    trained: Path,
    made: Path,
    tmp_path: Path,
    change: dict[str, Any],
    words: str,
) -> None:
    given = MergeOptions(str(base), trained, tmp_path / "out")
    (tmp_path / "there").touch()
    places = {"base": base, "gguf": base_gguf, "adapter": trained, "4bit": made.with_name("merged-4bit"), ".": tmp_path}
    if "out" in change:
        change = change | {"out": tmp_path / change["out"]}
    if "base" in change:
        change = change | {"base": str(places.get(change["base"], change["base"]))}
    if "adapter" in change:
        change = change | {"adapter": places.get(change["adapter"], Path(change["adapter"]))}
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


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("fault", ["twice as much", "no update", "rows in another order"])
def test_a_gguf_that_differs_is_an_exit_code(
    base_gguf: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fault: str
) -> None:
    real, said = adapter.Lora.rows, list[str]()
    if fault == "rows in another order":
        monkeypatch.setattr(gguf_merge, "_as_stored", lambda rows, heads: rows)
    else:
        times = 2 if fault == "twice as much" else 0
        monkeypatch.setattr(adapter.Lora, "rows", lambda self, start, end: times * real(self, start, end))
    options = MergeOptions(str(base_gguf), trained, tmp_path / "out.gguf", gguf=kind)
    assert merge(options, load_settings(), said.append) == 1, said
    assert said[-1] == "that is more than rounding explains (1.0%)"
    assert merge(replace(options, out=tmp_path / "out", gguf=kind), load_settings(), said.append) == 1


def test_a_copy_that_holds_something_else_is_an_exit_code(
    base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = quantized.write, list[str]()

    def other(folder: Path, out: Path, precision: str, **how: Any) -> Any:  # noqa: ANN401
        real(folder, out, precision, **how)
        return load_model(base)

    monkeypatch.setattr(quantized, "write", other)
    options = MergeOptions(str(base), trained, tmp_path / "out", copies=("4bit",))
    assert merge(options, load_settings(), said.append) == 1, said


@pytest.mark.parametrize("out", ["out", "out.gguf"])
def test_a_disk_without_room_is_one_line(base_gguf: Path, trained: Path, tmp_path: Path, out: str) -> None:
    """A process that may write no file of more than 50 kB."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    code += "from router_backend.cli import app; sys.argv[0] = 'router-backend'; app()"
    given = ["merge", str(base_gguf), str(trained), str(tmp_path / out)]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"router-backend: the merge into {tmp_path / out} failed: " in done.stderr
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"num_key_value_heads": None},
        {"num_key_value_heads": None, "num_attention_heads": 2},
        {"num_key_value_heads": 1},
    ],
)
@pytest.mark.parametrize("gguf", [{"gguf": "Q8_0"}, {"out": "x.gguf"}])
def test_fault_a_no_gguf_is_made_here_of_a_folder_whatever_its_config_says(
    base: Path, trained: Path, tmp_path: Path, config: dict[str, Any], gguf: dict[str, str]
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    said = json.loads((folder / "config.json").read_text("utf-8")) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}), "utf-8")
    change: dict[str, Any] = {"out": tmp_path / gguf["out"]} if "out" in gguf else gguf
    with pytest.raises(InvalidRequest, match="out of a GGUF base only"):
        quiet(replace(MergeOptions(str(folder), trained, tmp_path / "out"), **change))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    if "rope_scaling" in config:  # into a folder it is merged, and goes along
        assert quiet(MergeOptions(str(folder), trained, tmp_path / "out", check=False)) == 0
        assert json.loads((tmp_path / "out/config.json").read_text("utf-8"))["rope_scaling"] == config["rope_scaling"]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("tokenizer.json", {"model": {"type": "Other"}}, "has no tokenizer that works: Exception: "),
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "PanicException"),
        ("config.json", {"num_key_value_heads": 0}, "ZeroDivisionError"),
        ("config.json", {"num_key_value_heads": 3}, "missing or of another shape"),
        ("config.json", {"rope_scaling": {"type": "other", "factor": 2.0}}, "KeyError: 'other'"),
        ("config.json", {"rope_scaling": "linear"}, "does not read the base's config.json"),
        ("config.json", {"vocab_size": 701}, "missing or of another shape"),
        ("config.json", {"num_hidden_layers": 3}, r"missing or of another shape \(model\.layers\.2\."),
        ("config.json", {"quantization_config": {}}, "take quantization_config out of config.json"),
        ("config.json", {"quantization_config": "awq"}, "does not read the base's config.json"),
    ],
)
def test_fault_g_a_base_that_a_library_does_not_take_is_one_line(
    base: Path, trained: Path, tmp_path: Path, file: str, change: dict[str, Any], words: str
) -> None:
    path = Path(shutil.copytree(base, tmp_path / "base")) / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(CandidateError, match=words):
        quiet(MergeOptions(str(path.parent), trained, tmp_path / "out"))
    assert [each.name for each in tmp_path.iterdir()] == ["base"]


def test_fault_j_the_tokenizer_in_the_folder_above_goes_along(base: Path, trained: Path, tmp_path: Path) -> None:
    inside = test_training.tokenizer_above(base, tmp_path)
    assert quiet(MergeOptions(str(inside), trained, tmp_path / "out")) == 0
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("rows", [300, 500, 600])
def test_fault_a_a_token_without_a_row_is_one_line(base: Path, trained: Path, tmp_path: Path, rows: int) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.resize_token_embeddings(rows)
    model.save_pretrained(folder)
    done = CliRunner().invoke(cli.app, ["merge", str(folder), str(trained), str(tmp_path / "out")])
    assert done.exit_code == 2 and f"and the embeddings only {rows} rows" in done.stderr
    assert not (tmp_path / "out").exists()
