"""A checkpoint in MXFP8 is loaded as it is and gives what its dequantised weights give in transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from m3_kernels.mxfp8 import Mxfp8
from m3_oracles import hf, native
from m3_worker.config import TinySettings
from m3_worker.model.checkpoint import SCALES, load_model, weight_kind
from m3_worker.model.config import CheckpointError, ModelConfig
from m3_worker.model.m3 import Experts
from m3_worker.tiny import write_checkpoint

pytestmark = pytest.mark.xdist_group("oracles")  # importing the oracles takes seconds: once is enough

PROMPT = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(0)).tolist()  # sparse beyond 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("mxfp8")
    torch.set_num_threads(1)
    write_checkpoint(TinySettings(directory=directory, seed=21, layers=3, dtype="mxfp8", vision=False))
    return directory


def copy(source: Path, target: Path, *, scale_type: torch.dtype = torch.uint8, dequantise: str = "nothing") -> Path:
    """The same checkpoint in one shard. dequantise: a part of the names of those to write in fp32, or "everything"."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(source.glob("*.safetensors")):
        tensors |= load_file(shard)
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALES):
            continue
        if name + SCALES not in tensors:
            out[name] = tensor.float() if dequantise == "everything" else tensor
        elif dequantise == "everything" or dequantise in name:
            out[name] = Mxfp8(tensor, tensors[name + SCALES]).dequantised()
        else:
            out[name], out[name + SCALES] = tensor, tensors[name + SCALES].view(scale_type)
    save_file(out, target / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((source / "config.json").read_bytes())
    if dequantise == "everything":
        del config["quantization_config"]
        config["torch_dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config))
    return target


def logits(directory: Path) -> torch.Tensor:
    (found,) = native.Native(native.load(directory)).step({"prompt": PROMPT}).values()
    return found


def test_logits_are_those_of_the_dequantised_weights_in_transformers(checkpoint: Path, tmp_path: Path) -> None:
    plain = copy(checkpoint, tmp_path, dequantise="everything")
    expected = hf.logits(plain, PROMPT)
    assert (logits(checkpoint) - expected).abs().max() < 1e-4
    assert (logits(plain) - expected).abs().max() < 1e-4


def test_the_matrices_stay_in_mxfp8(checkpoint: Path) -> None:
    model = native.load(checkpoint)
    layer = model.weights.layers[-1]
    assert isinstance(layer.mlp, Experts)
    assert isinstance(model.weights.layers[0].mlp, type(layer.mlp.shared))
    dense = model.weights.layers[0].mlp
    for weight in (layer.attention.projections, layer.attention.output, layer.mlp.gate_up, layer.mlp.down, dense.down):
        assert isinstance(weight, Mxfp8)
    assert layer.mlp.router.dtype == torch.float32
    assert isinstance(model.weights.lm_head, torch.Tensor)


def test_scales_may_have_the_type_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    assert torch.equal(logits(copy(checkpoint, tmp_path, scale_type=torch.float8_e8m0fnu)), logits(checkpoint))


def test_matrices_that_are_fused_need_not_be_of_one_precision(checkpoint: Path, tmp_path: Path) -> None:
    mixed = copy(checkpoint, tmp_path, dequantise="index_")
    model = native.load(mixed)
    assert isinstance(model.weights.layers[-1].attention.projections, torch.Tensor)
    assert isinstance(model.weights.layers[-1].attention.output, Mxfp8)
    torch.testing.assert_close(logits(mixed), logits(checkpoint), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("language_model.model.layers.3.self_attn.index_q_proj.weight", "projections"),
        ("language_model.model.layers.3.self_attn.o_proj.weight", "output"),
        ("language_model.model.layers.12.block_sparse_moe.experts.7.w2.weight", "experts"),
        ("language_model.model.layers.12.block_sparse_moe.shared_experts.up_proj.weight", "shared"),
        ("language_model.model.layers.0.mlp.gate_proj.weight", "mlp"),
        ("language_model.model.layers.12.block_sparse_moe.gate.weight", None),
        ("language_model.model.layers.12.self_attn.q_norm.weight", None),
        ("language_model.lm_head.weight", None),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", None),
    ],
)
def test_the_matrices_that_may_be_quantised(name: str, kind: str | None) -> None:
    assert weight_kind(name) == kind


def without_scales(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["language_model.model.layers.0.self_attn.o_proj.weight_scale_inv"]


def with_short_scales(tensors: dict[str, torch.Tensor]) -> None:
    tensors["language_model.model.layers.0.self_attn.o_proj.weight_scale_inv"] = torch.zeros(64, 3, dtype=torch.uint8)


def with_float_scales(tensors: dict[str, torch.Tensor]) -> None:
    tensors["language_model.model.layers.0.self_attn.o_proj.weight_scale_inv"] = torch.zeros(64, 4)


def with_a_quantised_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["language_model.lm_head.weight"] = tensors["language_model.lm_head.weight"].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_scales, r"o_proj.weight_scale_inv is missing: expected shape \[64, 4\]"),
        (with_short_scales, r"o_proj.weight_scale_inv has shape \[64, 3\]: expected \[64, 4\] by config.json"),
        (with_float_scales, "o_proj.weight_scale_inv has dtype F32: only U8, F8_E8M0 are supported"),
        (with_a_quantised_head, "lm_head.weight has dtype F8_E4M3: only F32, BF16, F16 are supported"),
    ],
)
def test_what_is_not_whole_is_refused(checkpoint: Path, tmp_path: Path, change: Any, message: str) -> None:
    copy(checkpoint, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path, ModelConfig.load(tmp_path), torch.float32, "cpu", lambda read, needed: None)
