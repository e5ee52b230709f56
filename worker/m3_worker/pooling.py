"""One vector for a prompt: the final normed states of its tokens, pooled and normalised.

Owns the arithmetic of an embedding. A prompt may be computed in several steps; the sum over its earlier chunks is kept
with its sequence (`Sequence.pooled`), so that it goes when the sequence does.
"""

import torch
from torch import Tensor

from m3_worker.scheduling.batch import Chunk


def pool(chunk: Chunk, states: Tensor) -> tuple[float, ...] | None:
    """Take in the states [chunk.tokens, C] of one chunk; the vector of length 1 if the prompt is complete, else None.

    Effect: `chunk.sequence.pooled` holds the sum so far. A sequence that was preempted begins anew at its token 0.
    """
    sequence = chunk.sequence
    if sequence.request.pooling == "last":
        return _normalised(states[-1].float()) if chunk.samples else None
    pooled = states.float().sum(0)
    if chunk.start > 0 and isinstance(sequence.pooled, Tensor):
        pooled += sequence.pooled
    sequence.pooled = pooled
    return _normalised(pooled) if chunk.samples else None  # the mean points where the sum does


def _normalised(vector: Tensor) -> tuple[float, ...]:
    return tuple(torch.nn.functional.normalize(vector, dim=0).tolist())
