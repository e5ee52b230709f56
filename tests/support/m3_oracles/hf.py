"""transformers' `minimax_m3_vl` on a checkpoint directory, in fp32 on the CPU: the first oracle.

The library reads the official config and the official tensor names itself, by its own conversion table. Only the vision
tower is ours: the library would build the full-size one for a checkpoint that has none, so it gets a very small one,
which no text ever runs through.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def logits(directory: Path, ids: Sequence[int]) -> Tensor:
    """Logits [len(ids), vocabulary] fp32 of one sequence, all at once."""
    with torch.inference_mode():
        return _model(directory)(input_ids=torch.tensor([list(ids)])).logits[0].float()


def greedy(directory: Path, prompt_ids: Sequence[int], n: int) -> list[int]:
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
        )
    return out[0, len(prompt_ids) :].tolist()


@lru_cache(maxsize=4)
def _model(directory: Path) -> Any:
    from transformers import MiniMaxM3SparseForConditionalGeneration, MiniMaxM3VLConfig
    from transformers.utils import logging as library_logging

    library_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it lists the vision tensors that are not there
    config = MiniMaxM3VLConfig.from_pretrained(directory)
    config.vision_config.update(
        {"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    )
    config.projector_hidden_size = 8
    model, report = MiniMaxM3SparseForConditionalGeneration.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    not_loaded = [name for name in report["missing_keys"] if "vision" not in name and "projector" not in name]
    if not_loaded or report["unexpected_keys"] or report["mismatched_keys"]:
        raise AssertionError(f"transformers does not take the checkpoint as it is: {report}")
    return model.eval()
