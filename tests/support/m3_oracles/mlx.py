"""mlx-lm's `minimax_m3_vl` on a checkpoint directory, in fp32 on the CPU: the second oracle.

Written independently of transformers, on another array library. It reads the official config and tensor names itself.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def logits(directory: Path, ids: Sequence[int]) -> Tensor:
    """Logits [len(ids), vocabulary] fp32 of one sequence, all at once."""
    import mlx.core as mx
    import numpy as np

    model = _model(directory)
    out = model(mx.array([list(ids)]), cache=model.make_cache())
    return torch.from_numpy(np.array(out[0].astype(mx.float32)))


def greedy(directory: Path, prompt_ids: Sequence[int], n: int) -> list[int]:
    """The n tokens that follow the prompt, most likely first; no token ends it early."""
    import mlx.core as mx

    model = _model(directory)
    cache, fed, tokens = model.make_cache(), list(prompt_ids), []
    for _ in range(n):
        out = model(mx.array([fed]), cache=cache)
        tokens.append(int(mx.argmax(out[0, -1]).item()))
        fed = tokens[-1:]
    return tokens


@lru_cache(maxsize=4)
def _model(directory: Path) -> Any:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    model, _ = load_model(directory, lazy=False, strict=True)
    model.set_dtype(mx.float32)
    return model
