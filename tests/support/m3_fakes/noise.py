"""An untrained model without its weights: logits are noise, and are sampled as a model's are."""

import torch

from m3_worker.sampling import sample
from m3_worker.scheduling.batch import Batch
from m3_worker.scheduling.request import SampledToken


class NoiseRunner:
    """Runs batches as `runner.Runner` does, but for the model: each step has the next numbers of one generator.

    favoured: added to the logits of some tokens, so that answers come to an end at all.
    """

    def __init__(self, vocab_size: int, seed: int, favoured: dict[int, float]) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._lean = torch.zeros(vocab_size)
        for token, value in favoured.items():
            self._lean[token] = value

    @torch.inference_mode()
    def logits(self, rows: int) -> torch.Tensor:
        """[rows, vocabulary], never the same twice."""
        return torch.randn(rows, len(self._lean), generator=self._generator) * 2 + self._lean

    def run(self, batch: Batch) -> list[SampledToken]:
        """One token for each of `batch.sampling`, sampled as wished."""
        return sample(self.logits(len(batch.sampling)), batch.sampling)
