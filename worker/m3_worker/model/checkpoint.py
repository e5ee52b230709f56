"""From a checkpoint directory to a model: official tensor names, each tensor read once.

Owns the names (`tensor_places`) and the reading. The files are memory-mapped and every tensor is copied once, straight
to its place among the stacked and fused weights of `model.ModelWeights`: no second copy of the model in memory.
Matrices in MXFP8 stay in it, kind by kind; a kind that is only partly in it is dequantised. A rank of a group reads its
share only: its slices of attention, the experts of its slots.
Everything is checked from the shards' headers before a byte of weights is read.
Known and left out, with a line in the log: MTP modules (drafting layers), and vision tensors where the config has no
vision. Any other name that the config does not explain is refused.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from m3_kernels.mxfp8 import BLOCK, Mxfp8, Weight
from m3_worker.model.config import CheckpointError, ModelConfig
from m3_worker.model.m3 import Attention, Experts, M3Model, Mlp, ModelWeights, WeightKind
from m3_worker.model.shards import Shards
from m3_worker.model.share import RankShare
from m3_worker.model.vision import Affine, VisionWeights

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes needed), first with zero bytes read, last with all."""

_VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "patch_merge_mlp.")
_MTP_PREFIXES = ("mtp.", "model.mtp.", "language_model.mtp.", "language_model.model.mtp.")
_MAPPED_SHARE = 1 / 32
"""How much of the weights may be mapped from files beside those that are loaded: what loading takes above them."""
_FLOATS = ("F32", "BF16", "F16")
_FP8 = "F8_E4M3"
_SCALE_TYPES = ("U8", "F8_E8M0")
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, _FP8: 1, "U8": 1, "F8_E8M0": 1}
SCALES = "_scale_inv"
"""What follows the name of a tensor in MXFP8 in that of its scales."""
_KINDS: tuple[tuple[str, WeightKind], ...] = (  # names of the matrices that may be in MXFP8; the first that matches
    (r"self_attn\.o_proj\.weight", "output"),
    (r"self_attn\.\w+_proj\.weight", "projections"),
    (r"mlp\.\w+_proj\.weight", "mlp"),
    (r"block_sparse_moe\.shared_experts\.\w+_proj\.weight", "shared"),
    (r"block_sparse_moe\.experts\.\d+\.w[123]\.weight", "experts"),
)


def load_model(
    directory: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Progress,
    *,
    share: RankShare | None = None,
) -> M3Model:
    """Read the weights in `directory` to `device` in `dtype` (the router stays fp32): all, or a rank's share.

    Raises CheckpointError, one line, on a missing or unreadable file, and on a tensor that is missing, unexpected, of
    another shape than `config` says, or of a dtype that is neither a plain float nor, where `config` says so, MXFP8.
    """
    held = config if share is None else share.config
    with Shards(directory) as shards:
        quantised = _quantised_kinds(shards) if config.is_mxfp8 else frozenset()
        _check(shards, tensor_places(ModelWeights.allocate(config, dtype, "meta", quantised=quantised), config), config)
        weights = ModelWeights.allocate(held, dtype, device, share, quantised=quantised)
        places: dict[str, list[Tensor]] = {}
        for name, place in _model_places(weights, held, share):
            places.setdefault(name, []).append(place)  # one expert may have several slots
        needed_bytes = sum(_needed_bytes(shards, name, each) for name, each in places.items())
        read_bytes = mapped_bytes = 0
        progress(read_bytes, needed_bytes)
        for name in shards:
            for place in places.get(name, ()):
                _read(shards, name, place, 0 if share is None else share.head_part)
            bytes_here = _needed_bytes(shards, name, places.get(name, ()))
            read_bytes += bytes_here
            mapped_bytes += bytes_here
            if mapped_bytes > needed_bytes * _MAPPED_SHARE:
                shards.release()
                mapped_bytes = 0
            progress(read_bytes, needed_bytes)
    return M3Model(held, weights)


def read_experts(directory: Path, layer: int, experts: Sequence[int], gate_up: Weight, down: Weight) -> None:
    """Read experts of the model's `layer` into gate_up [n, 2F, C] and down [n, C, F]. Raises CheckpointError."""
    prefix = f"{_layer_prefix(layer)}.block_sparse_moe"
    places = list(_routed_places(prefix, experts, gate_up, down))
    with Shards(directory) as shards:
        for name, place in places:
            _read(shards, name, place, 0)


def tensor_places(weights: ModelWeights, config: ModelConfig) -> dict[str, Tensor]:
    """Official tensor name -> the view of `weights` that it fills. The views cover all weights, once."""
    return dict(_model_places(weights, config, None))


def weight_kind(name: str) -> WeightKind | None:
    """Which kind of matrix an official tensor name stands for, of those that may be in MXFP8; None if for none."""
    part = re.sub(r"^language_model\.model\.layers\.\d+\.", "", name)
    return next((kind for pattern, kind in _KINDS if re.fullmatch(pattern, part)), None)


def _quantised_kinds(shards: Shards) -> frozenset[WeightKind]:
    """The kinds of which every tensor is in MXFP8. Of the others, those that are will be dequantised as they are read.

    So matrices that are kept fused need not be of one precision in the checkpoint.
    """
    dtypes: dict[WeightKind, set[str]] = {}
    for name, shard in shards.items():
        kind = weight_kind(name)
        if kind is not None:
            dtypes.setdefault(kind, set()).add(shard.get_slice(name).get_dtype())
    return frozenset(kind for kind, of_kind in dtypes.items() if of_kind == {_FP8})


def _tensors(name: str, weight: Weight) -> Iterator[tuple[str, Tensor]]:
    """The one or two tensors of a checkpoint that a weight is made of."""
    if isinstance(weight, Tensor):
        yield name, weight
    else:
        yield name, weight.values
        yield name + SCALES, weight.scales


def _layer_prefix(number: int) -> str:
    return f"language_model.model.layers.{number}"


def _model_places(weights: ModelWeights, config: ModelConfig, share: RankShare | None) -> Iterator[tuple[str, Tensor]]:
    moe_layers = count()
    yield "language_model.model.embed_tokens.weight", weights.embedding
    for number, layer in enumerate(weights.layers):
        prefix = _layer_prefix(number)
        yield f"{prefix}.input_layernorm.weight", layer.attention_norm
        yield f"{prefix}.post_attention_layernorm.weight", layer.mlp_norm
        yield from _attention_places(f"{prefix}.self_attn", layer.attention, config)
        if isinstance(layer.mlp, Experts):
            held = range(config.experts) if share is None else share.held(next(moe_layers))
            yield from _expert_places(f"{prefix}.block_sparse_moe", layer.mlp, held)
        else:
            yield from _mlp_places(f"{prefix}.mlp", layer.mlp)
    yield "language_model.model.norm.weight", weights.norm
    yield "language_model.lm_head.weight", weights.lm_head
    if weights.vision is not None:
        yield from _vision_places(weights.vision)


def _attention_places(prefix: str, attention: Attention, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    kv_width = config.kv_heads * config.head_dim
    rows = {"q_proj": config.heads * config.head_dim, "k_proj": kv_width, "v_proj": kv_width}
    norms = attention.norms
    yield f"{prefix}.q_norm.weight", norms.q
    yield f"{prefix}.k_norm.weight", norms.k
    if norms.index_q is not None and norms.index_k is not None:
        rows |= {"index_q_proj": config.kv_heads * config.index_dim, "index_k_proj": config.index_dim}
        yield f"{prefix}.index_q_norm.weight", norms.index_q
        yield f"{prefix}.index_k_norm.weight", norms.index_k
    at = 0
    for name, size in rows.items():
        yield from _tensors(f"{prefix}.{name}.weight", attention.projections[at : at + size])
        at += size
    yield from _tensors(f"{prefix}.o_proj.weight", attention.output)


def _mlp_places(prefix: str, mlp: Mlp) -> Iterator[tuple[str, Tensor]]:
    half = len(mlp.gate_up) // 2
    yield from _tensors(f"{prefix}.gate_proj.weight", mlp.gate_up[:half])
    yield from _tensors(f"{prefix}.up_proj.weight", mlp.gate_up[half:])
    yield from _tensors(f"{prefix}.down_proj.weight", mlp.down)


def _expert_places(prefix: str, experts: Experts, held: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.gate.weight", experts.router
    yield f"{prefix}.e_score_correction_bias", experts.bias
    yield from _routed_places(prefix, held, experts.gate_up, experts.down)
    yield from _mlp_places(f"{prefix}.shared_experts", experts.shared)


def _routed_places(prefix: str, held: Sequence[int], gate_up: Weight, down: Weight) -> Iterator[tuple[str, Tensor]]:
    half = gate_up.shape[1] // 2
    for number, one_gate_up, one_down in zip(held, gate_up, down, strict=True):
        yield from _tensors(f"{prefix}.experts.{number}.w1.weight", one_gate_up[:half])
        yield from _tensors(f"{prefix}.experts.{number}.w3.weight", one_gate_up[half:])
        yield from _tensors(f"{prefix}.experts.{number}.w2.weight", one_down)


def _vision_places(vision: VisionWeights) -> Iterator[tuple[str, Tensor]]:
    tower = "vision_tower.vision_model"
    yield f"{tower}.embeddings.patch_embedding.weight", vision.patch_embedding
    yield from _affine_places(f"{tower}.pre_layrnorm", vision.pre_norm)  # spelled so in the release
    for number, layer in enumerate(vision.layers):
        prefix = f"{tower}.encoder.layers.{number}"
        yield from _affine_places(f"{prefix}.layer_norm1", layer.attention_norm)
        parts = zip("qkv", layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
        for name, weight, bias in parts:
            yield from _affine_places(f"{prefix}.self_attn.{name}_proj", Affine(weight, bias))
        yield from _affine_places(f"{prefix}.self_attn.out_proj", layer.output)
        yield from _affine_places(f"{prefix}.layer_norm2", layer.mlp_norm)
        yield from _affine_places(f"{prefix}.mlp.fc1", layer.mlp_in)
        yield from _affine_places(f"{prefix}.mlp.fc2", layer.mlp_out)
    for name, pair in (("multi_modal_projector", vision.projector), ("patch_merge_mlp", vision.merge)):
        for number, affine in enumerate(pair, start=1):
            yield from _affine_places(f"{name}.linear_{number}", affine)


def _affine_places(prefix: str, affine: Affine) -> Iterator[tuple[str, Tensor]]:
    yield f"{prefix}.weight", affine.weight
    yield f"{prefix}.bias", affine.bias


def _read(shards: Shards, name: str, place: Tensor, part: int) -> None:
    """Read a tensor into its place; if that is smaller, the `part`-th slice of its size."""
    try:
        header = shards[name].get_slice(name)
        slices = tuple(
            slice(None) if size == full else slice(part * size, (part + 1) * size)
            for size, full in zip(place.shape, header.get_shape(), strict=True)
        )
        if place.dtype == torch.uint8:  # the bits of scales, whichever of their types the file gives them
            place.copy_(header[slices].view(torch.uint8))
        elif header.get_dtype() == _FP8 and place.dtype != torch.float8_e4m3fn:
            scales = shards[name + SCALES].get_tensor(name + SCALES)
            place.copy_(Mxfp8(header[:], scales.view(torch.uint8)).dequantised()[slices])
        else:
            place.copy_(header[slices])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{shards.path(name)}: cannot read {name}: {error}") from None


def _needed_bytes(shards: Shards, name: str, places: Sequence[Tensor]) -> int:
    item_bytes = _ITEM_BYTES[shards[name].get_slice(name).get_dtype()] if places else 0
    return sum(place.numel() * item_bytes for place in places)


def _check(found: Mapping[str, Any], expected: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Compare the shards' headers with what the model needs."""
    needed = dict(expected)
    for name, place in expected.items():
        allowed: Sequence[str] = _SCALE_TYPES if place.dtype == torch.uint8 else _FLOATS
        if config.is_mxfp8 and weight_kind(name):
            allowed = (*_FLOATS, _FP8)
        _check_tensor(found, name, place.shape, allowed)
        if found[name].get_slice(name).get_dtype() == _FP8:
            needed[name + SCALES] = place
            _check_tensor(found, name + SCALES, (*place.shape[:-1], place.shape[-1] // BLOCK), _SCALE_TYPES)
    extra = [name for name in found if name not in needed]
    for prefixes, kind in (
        (_VISION_PREFIXES, "vision tensors"),
        (_MTP_PREFIXES, "MTP tensors"),
    ):
        skipped = [name for name in extra if name.startswith(prefixes)]
        if skipped:
            log.info("left out %d %s: not used by this engine", len(skipped), kind)
        extra = [name for name in extra if not name.startswith(prefixes)]
    if extra:
        raise CheckpointError(f"tensor {extra[0]} is unexpected: nothing in config.json explains it")


def _check_tensor(found: Mapping[str, Any], name: str, shape: Sequence[int], allowed: Sequence[str]) -> None:
    if name not in found:
        raise CheckpointError(f"tensor {name} is missing: expected shape {list(shape)}")
    header = found[name].get_slice(name)
    actual, dtype = list(header.get_shape()), header.get_dtype()
    if actual != list(shape):
        raise CheckpointError(f"tensor {name} has shape {actual}: expected {list(shape)} by config.json")
    if dtype not in allowed:
        raise CheckpointError(f"tensor {name} has dtype {dtype}: only {', '.join(allowed)} are supported")
