"""transformers' `minimax_m3_vl` on a checkpoint directory, in fp32 on the CPU: the first oracle.

The library reads the official config and the official tensor names itself, by its own conversion table. Only the vision
config needs help: of the released form it does not take `img_token_compression_config` and `rope_theta`, so these are
spelled in its own way. Where a checkpoint has no vision, the library would build the full-size tower: it gets a very
small one, which no text ever runs through.
"""

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def logits(directory: Path, ids: Sequence[int], **media: Tensor) -> Tensor:
    """Logits [len(ids), vocabulary] fp32 of one sequence, all at once. media: what its processors make of images."""
    with torch.inference_mode():
        return _model(directory)(input_ids=torch.tensor([list(ids)]), **media).logits[0].float()


def greedy(directory: Path, prompt_ids: Sequence[int], n: int, **media: Tensor) -> list[int]:
    """The n tokens that follow the prompt, most likely first; no token ends it early."""
    prompt = torch.tensor([list(prompt_ids)])
    with torch.inference_mode():
        out = _model(directory).generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            min_new_tokens=n,
            max_new_tokens=n,
            eos_token_id=None,
            pad_token_id=0,
            **media,
        )
    return out[0, len(prompt_ids) :].tolist()


def image_features(directory: Path, pixels: Tensor, grid: Tensor) -> list[Tensor]:
    """What stands in for the placeholders of each image or video segment: [tokens, hidden] each."""
    with torch.inference_mode():
        return list(_model(directory).get_image_features(pixels, grid).pooler_output)


@lru_cache(maxsize=4)
def _model(directory: Path) -> Any:
    from transformers import MiniMaxM3SparseForConditionalGeneration, MiniMaxM3VLConfig
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it lists the vision tensors that are not there
    official = json.loads((directory / "config.json").read_bytes())
    vision = official.pop("vision_config", None)
    if vision is None:
        official["projector_hidden_size"] = 8
        own = {"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    else:
        compression, theta = vision.pop("img_token_compression_config"), vision.pop("rope_theta")
        own = {
            **vision,
            "model_type": "minimax_m3_vl_vision",
            "temporal_patch_size": compression["temporal_patch_size"],
            "spatial_merge_size": compression["spatial_merge_size"],
            "rope_parameters": {"rope_type": "axial", "rope_theta": theta},
        }
    config = MiniMaxM3VLConfig(**official, vision_config=own)
    model, report = MiniMaxM3SparseForConditionalGeneration.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    text_only = ("vision", "projector") if vision is None else ()
    not_loaded = [name for name in report["missing_keys"] if not any(part in name for part in text_only)]
    if not_loaded or report["unexpected_keys"] or report["mismatched_keys"]:
        raise AssertionError(f"transformers does not take the checkpoint as it is: {report}")
    return model.eval()
