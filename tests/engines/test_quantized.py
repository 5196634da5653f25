"""Checkpoints that come quantised: what they need, before anything is fetched, and one that is really loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from safetensors.torch import save_file

from router_backend.checkpoints import machine
from router_backend.checkpoints.ladder import Candidate, Rung
from router_backend.engines.transformers.load import load
from router_backend.engines.transformers.model import DecodedModel
from router_backend.errors import LoadError
from router_backend.service.loader import Loader
from router_backend.settings import load_settings
from router_backend.types import GenerateRequest, SamplingParams
from tests.engines.test_transformers import load_exact
from tests.fakes import tiny

pytestmark = pytest.mark.torch
SECTIONS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
}


def quantised(method: str, folder: Path) -> Path:
    """A checkpoint whose linear layers are packed as the method packs them: eight weights of 4 bits in an int32."""
    network = tiny.model("llama31")
    tiny.save("llama31", folder)
    tensors = {name: each.contiguous() for name, each in network.state_dict().items()}
    for name in [name for name in tensors if ".layers." in name and name.endswith("_proj.weight")]:
        out, width = tensors.pop(name).shape
        stem, packed = name.removesuffix("weight"), (width, out // 8) if method == "awq" else (width // 8, out)
        tensors[f"{stem}qweight"] = torch.zeros(packed, dtype=torch.int32)
        tensors[f"{stem}qzeros"] = torch.zeros((max(1, width // 32), out // 8), dtype=torch.int32)
        tensors[f"{stem}scales"] = torch.ones((max(1, width // 32), out), dtype=torch.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": SECTIONS[method]}), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("method", "package", "library"), [("awq", "gptqmodel", "gptqmodel"), ("gptq", "gptqmodel and optimum", "optimum")]
)
def test_a_package_that_is_missing_is_named_before_and_by_the_load(
    method: str, package: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gptqmodel", "optimum"):
        monkeypatch.setitem(sys.modules, name, None)
    here = Candidate(str(quantised(method, tmp_path / "quantised")), "folder")
    (rung,) = Loader(load_settings(), machine.inspect()).rungs(here)
    assert rung.strategy == "native" and rung.skip is not None
    assert rung.skip.startswith(f"{package} not installed, and its weights are quantised by {method}: ")
    assert "built from source" in rung.skip and "compressed-tensors or a GGUF" in rung.skip
    with pytest.raises(LoadError, match=f"not installed here: ImportError: .*{library}"):
        load(Rung(here, "native"), load_settings(model_device="cpu"), Path(here.name))


def test_compressed_tensors_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from router_backend import engines

    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    said = engines.missing("transformers", "compressed-tensors")
    assert said is not None and said.endswith("pip install 'router-backend[quantized]'")
    assert engines.missing("transformers", "mxfp4") is None


def test_a_real_checkpoint_in_compressed_tensors_answers_as_before(tmp_path: Path) -> None:
    """Eight bits a weight, made and loaded on the processor by the library itself."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=8, strategy="channel"))
    config = QuantizationConfig(
        config_groups={"all": scheme},
        ignore=["lm_head"],
        format="pack-quantized",
        quantization_status="frozen",
    )
    plain, packed = tiny.save("llama31", tmp_path / "plain"), tiny.save("llama31", tmp_path / "packed")
    network = tiny.model("llama31")
    apply_quantization_config(network, config)
    for module in network.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = (module.weight.abs().amax(1, keepdim=True) / 127).to(module.weight_scale.dtype)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(network)
    network.save_pretrained(packed)
    compressor.update_config(str(packed))

    here = Candidate(str(packed), "folder")
    (rung,) = Loader(load_settings(model_device="cpu"), machine.inspect()).rungs(here)
    assert (rung.strategy, rung.skip) == ("native", None)
    assert rung.needs is not None
    assert said(load(Rung(here, "native"), load_settings(model_device="cpu", threads=1), packed)) == said(
        load_exact(plain)
    )


def said(model: DecodedModel) -> str:
    asked = GenerateRequest("test", "Say hello.", SamplingParams(12, temperature=0))
    return "".join(chunk.text for chunk in model.generate(asked, lambda: False))
