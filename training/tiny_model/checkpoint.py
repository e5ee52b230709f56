"""The trained model as a checkpoint directory in the official form."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from tiny_model import shape
from tiny_model.network import Network

# What the release keeps in fp32.
_WIDE = ("block_sparse_moe.gate.weight", "e_score_correction_bias", "patch_embedding.weight")


def write(directory: Path, network: Network, tokenizer: Tokenizer, template: str) -> int:
    """Write every file, made anew. Returns their bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", shape.config_json(tokenizer))
    _write_json(directory / "generation_config.json", shape.generation_config_json(tokenizer))
    _write_json(directory / "tokenizer_config.json", shape.tokenizer_config_json())
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    save_file(_tensors(network), directory / "model.safetensors", metadata={"format": "pt"})
    return sum(path.stat().st_size for path in directory.iterdir())


def _tensors(network: Network) -> dict[str, Tensor]:
    """By their official names, which the library knows how to write."""
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as saved:
        network.model.save_pretrained(saved)
        tensors = load_file(Path(saved) / "model.safetensors")
    return {
        name: tensor if name.endswith(_WIDE) else tensor.to(torch.bfloat16) for name, tensor in sorted(tensors.items())
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
