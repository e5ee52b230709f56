"""The weights of a tiny checkpoint: random, in two shards with their index.

Owns their names, values and files; the same seed gives the same bytes. The rest of the directory is tiny's.
They are random everywhere, norms and router bias too: zeros there would hide a norm without its "1 +" or a router that
ignores its bias.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from m3_kernels.mxfp8 import quantise
from m3_worker.model.checkpoint import SCALES, tensor_places, weight_kind
from m3_worker.model.config import ModelConfig
from m3_worker.model.m3 import ModelWeights

_SHARDS = 2
_PLAIN_NORMS = ("layrnorm.weight", "layer_norm1.weight", "layer_norm2.weight")
"""Norms of which the weight itself is applied."""


def write_weights(directory: Path, config: ModelConfig, seed: int) -> int:
    """Write random weights for any config into its directory, with their index. Returns the bytes of the tensors."""
    places = tensor_places(ModelWeights.allocate(config, getattr(torch, config.dtype), "meta"), config)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, place in places.items():
        tensors[name] = _random(name, place, generator)
        if config.is_mxfp8 and weight_kind(name) is not None:
            quantised = quantise(tensors[name])
            tensors[name], tensors[name + SCALES] = quantised.values, quantised.scales
    names = list(tensors)
    per_shard = -(-len(names) // _SHARDS)
    weight_map: dict[str, str] = {}
    for number in range(_SHARDS):
        file = f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors"
        part = {name: tensors[name] for name in names[number * per_shard : (number + 1) * per_shard]}
        (directory / file).write_bytes(save(part, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(part, file)
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    text = json.dumps(index, indent=2) + "\n"
    (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return total_bytes


def _random(name: str, place: Tensor, generator: torch.Generator) -> Tensor:
    """Normal values that keep a random model lively: matrices pass on the variance of their input."""
    values = torch.randn(place.shape, generator=generator)
    if place.dim() == 1:  # biases, and norm weights of which mostly 1 + w is applied
        values *= 0.2
        if name.startswith("vision_tower.") and name.endswith(_PLAIN_NORMS):
            values += 1
    elif "embed_tokens" not in name:
        values *= place[0].numel() ** -0.5
    return values.to(place.dtype)
