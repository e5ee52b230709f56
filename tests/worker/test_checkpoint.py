"""Loading: every tensor lands in its place, and a checkpoint that does not fit is refused before weights are read."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3_configs import of_released_sizes
from m3_worker.config import TinySettings
from m3_worker.model.cache import PagedCache
from m3_worker.model.checkpoint import load_model, tensor_places
from m3_worker.model.config import CheckpointError, ModelConfig
from m3_worker.model.m3 import M3Model, ModelWeights
from m3_worker.tiny import write_checkpoint

SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LAYER_1 = "language_model.model.layers.1"
Edit = Callable[[dict[str, Tensor]], None]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny"
    write_checkpoint(TinySettings(directory=directory, layers=2, hidden=16, experts=3, intermediate=8, block=4))
    return directory


@pytest.fixture
def text_checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "text"
    write_checkpoint(
        TinySettings(directory=directory, layers=2, hidden=16, experts=3, intermediate=8, block=4, vision=False)
    )
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32) -> M3Model:
    return load_model(directory, ModelConfig.load(directory), dtype, "cpu", lambda _read, _needed: None)


def edit(directory: Path, shard: str, change: Edit) -> None:
    tensors = load_file(directory / shard)
    change(tensors)
    save_file(tensors, directory / shard)


def all_tensors(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / SHARD_1) | load_file(directory / SHARD_2)


def test_every_tensor_lands_in_its_place_and_every_weight_is_filled(checkpoint: Path) -> None:
    model, tensors = load(checkpoint), all_tensors(checkpoint)
    places = tensor_places(model.weights, model.config)
    assert places.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(places[name], tensor)
    experts = model.weights.layers[1].mlp
    w1, w3 = (tensors[f"{LAYER_1}.block_sparse_moe.experts.2.{part}.weight"] for part in ("w1", "w3"))
    assert torch.equal(experts.gate_up[2], torch.cat((w1, w3)))
    projections = model.weights.layers[1].attention.projections
    names = ("q_proj", "k_proj", "v_proj", "index_q_proj", "index_k_proj")
    assert torch.equal(projections, torch.cat([tensors[f"{LAYER_1}.self_attn.{name}.weight"] for name in names]))


def test_the_released_model_has_its_published_tensors() -> None:
    """Tensors and parameters as published for the release, with and without vision; shapes from its table."""
    by_layer = [0] * 3 + [1] * 57
    config = ModelConfig.from_json(of_released_sizes())
    assert list(config.moe_layers) == by_layer
    places = tensor_places(ModelWeights.allocate(config, torch.bfloat16, "meta"), config)
    assert len(places) == 23_416
    assert sum(place.numel() for place in places.values()) == 427_040_140_160
    text = [place for name, place in places.items() if name.startswith("language_model.")]
    per_dense, per_moe = 2 + 6 + 3, 2 + 6 + 4 + 2 + 3 * 128 + 3
    assert len(text) == 3 + 3 * per_dense + 57 * per_moe
    assert round(sum(place.numel() for place in text) / 1e9, 2) == 426.17
    assert PagedCache.bytes_per_token(config, torch.bfloat16) == 137_472
    assert PagedCache.bytes_per_token(config, torch.float8_e4m3fn) == 68_736
    assert PagedCache.bytes_per_token(config, torch.float8_e4m3fn, torch.bfloat16) == 76_032
    prefix = "language_model.model.layers.3"
    shapes = {name: tuple(place.shape) for name, place in places.items()}
    assert shapes[f"{prefix}.self_attn.q_proj.weight"] == (8192, 6144)
    assert shapes[f"{prefix}.self_attn.k_proj.weight"] == (512, 6144)
    assert shapes[f"{prefix}.self_attn.o_proj.weight"] == (6144, 8192)
    assert shapes[f"{prefix}.self_attn.index_q_proj.weight"] == (512, 6144)
    assert shapes[f"{prefix}.self_attn.index_k_proj.weight"] == (128, 6144)
    assert shapes[f"{prefix}.self_attn.index_k_norm.weight"] == (128,)
    assert shapes[f"{prefix}.block_sparse_moe.gate.weight"] == (128, 6144)
    assert shapes[f"{prefix}.block_sparse_moe.e_score_correction_bias"] == (128,)
    assert shapes[f"{prefix}.block_sparse_moe.experts.127.w2.weight"] == (6144, 3072)
    assert shapes[f"{prefix}.block_sparse_moe.shared_experts.gate_proj.weight"] == (3072, 6144)
    assert shapes["language_model.model.layers.2.mlp.down_proj.weight"] == (6144, 12288)
    assert shapes["language_model.lm_head.weight"] == (200064, 6144)
    tower = "vision_tower.vision_model"
    assert shapes[f"{tower}.embeddings.patch_embedding.weight"] == (1280, 3, 2, 14, 14)
    assert places[f"{tower}.embeddings.patch_embedding.weight"].dtype == torch.float32
    assert shapes[f"{tower}.pre_layrnorm.bias"] == (1280,)
    assert shapes[f"{tower}.encoder.layers.31.self_attn.out_proj.weight"] == (1280, 1280)
    assert shapes["multi_modal_projector.linear_1.weight"] == (6144, 1280)
    assert shapes["patch_merge_mlp.linear_1.weight"] == (6144, 24576)


def test_router_and_bias_stay_in_fp32_in_a_bf16_model(checkpoint: Path) -> None:
    model, tensors = load(checkpoint, torch.bfloat16), all_tensors(checkpoint)
    experts = model.weights.layers[1].mlp
    assert torch.equal(experts.router, tensors[f"{LAYER_1}.block_sparse_moe.gate.weight"])
    assert torch.equal(experts.bias, tensors[f"{LAYER_1}.block_sparse_moe.e_score_correction_bias"])
    down = tensors[f"{LAYER_1}.block_sparse_moe.experts.0.w2.weight"]
    assert torch.equal(experts.down[0], down.bfloat16())


def test_progress_runs_from_zero_to_all_bytes(checkpoint: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_model(checkpoint, ModelConfig.load(checkpoint), torch.float32, "cpu", lambda *call: calls.append(call))
    needed = sum(tensor.nbytes for tensor in all_tensors(checkpoint).values())
    assert calls[0] == (0, needed)
    assert calls[-1] == (needed, needed)
    assert [read for read, _ in calls] == sorted(read for read, _ in calls)


def test_a_single_file_without_an_index_is_read_too(checkpoint: Path) -> None:
    expected = all_tensors(checkpoint)
    save_file(expected, checkpoint / "model.safetensors")
    for name in (SHARD_1, SHARD_2, "model.safetensors.index.json"):
        (checkpoint / name).unlink()
    model = load(checkpoint)
    assert torch.equal(model.weights.lm_head, expected["language_model.lm_head.weight"])


def test_mtp_tensors_and_vision_that_the_config_has_not_are_left_out_and_the_log_says_so(
    text_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["vision_tower.vision_model.pre_layrnorm.weight"] = torch.zeros(2)
        tensors["multi_modal_projector.linear_1.bias"] = torch.zeros(2)
        tensors["patch_merge_mlp.linear_1.bias"] = torch.zeros(2)
        tensors["model.mtp.layers.0.enorm.weight"] = torch.zeros(2)

    edit(text_checkpoint, SHARD_1, add)
    with caplog.at_level(logging.INFO, logger="m3_worker.model.checkpoint"):
        load(text_checkpoint)
    assert [record.message for record in caplog.records] == [
        "left out 3 vision tensors: not used by this engine",
        "left out 1 MTP tensors: not used by this engine",
    ]


def remove(name: str) -> Edit:
    return lambda tensors: tensors.__delitem__(name)


def put(name: str, tensor: Tensor) -> Edit:
    return lambda tensors: tensors.__setitem__(name, tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            remove("language_model.model.norm.weight"),
            "tensor language_model.model.norm.weight is missing: expected shape [16]",
        ),
        (
            put("language_model.lm_head.weight", torch.zeros(3, 5)),
            "tensor language_model.lm_head.weight has shape [3, 5]: expected [270, 16] by config.json",
        ),
        (
            put("language_model.lm_head.weight", torch.zeros(270, 16, dtype=torch.int8)),
            "tensor language_model.lm_head.weight has dtype I8: only F32, BF16, F16 are supported",
        ),
        (
            put(f"{LAYER_1}.self_attn.index_v_proj.weight", torch.zeros(1)),
            f"tensor {LAYER_1}.self_attn.index_v_proj.weight is unexpected: nothing in config.json explains it",
        ),
        (
            put(f"{LAYER_1}.self_attn.q_proj.weight_scale_inv", torch.zeros(1)),
            f"tensor {LAYER_1}.self_attn.q_proj.weight_scale_inv is unexpected: nothing in config.json explains it",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_in_one_line(text_checkpoint: Path, change: Edit, message: str) -> None:
    edit(text_checkpoint, SHARD_2, change)
    with pytest.raises(CheckpointError) as refusal:
        load(text_checkpoint)
    assert str(refusal.value) == message


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    (checkpoint / SHARD_2).unlink()
    with pytest.raises(CheckpointError, match=f"{SHARD_2}: no such file; the weights must lie beside config.json"):
        load(checkpoint)


def test_a_cut_off_shard_is_named(checkpoint: Path) -> None:
    path = checkpoint / SHARD_2
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{SHARD_2}: cannot be read as safetensors: "):
        load(checkpoint)


def test_a_directory_without_weights_is_named(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "weight_map must map tensor names to file names"),
        ({"a": 3}, "weight_map must map tensor names to file names"),
        ({"a": "../other/model.safetensors"}, "must be the name of a file in the same directory"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(checkpoint: Path, weight_map: object, message: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=f"model.safetensors.index.json: .*{message}"):
        load(checkpoint)
