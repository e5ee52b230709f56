"""The model under test, driven without an engine: sequences in, logits out, by scattered pages and any chunking."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from m3_worker.media.embeddings import MediaEmbeddings
from m3_worker.media.items import MediaItem
from m3_worker.model.cache import PagedCache, StepTensors
from m3_worker.model.checkpoint import load_model
from m3_worker.model.config import ModelConfig
from m3_worker.model.m3 import M3Model
from m3_worker.scheduling.batch import Chunk
from m3_worker.scheduling.request import Request, SamplingParameters
from m3_worker.scheduling.request import Sequence as EngineSequence


def load(directory: Path) -> M3Model:
    """The model of a checkpoint directory, in fp32 on the CPU."""
    return load_model(directory, ModelConfig.load(directory), torch.float32, "cpu", lambda _read, _needed: None)


@dataclass
class Native:
    """Sequences of one model, side by side in one cache whose pages are handed out in shuffled order.

    The cache starts out full of NaN, so that reading what was never written shows.
    """

    model: M3Model
    pages: int = 512
    lengths: dict[str, int] = field(default_factory=dict)
    media: Mapping[str, tuple[MediaItem, ...]] = field(default_factory=dict)
    """What stands in each sequence, by its name."""
    kept_bytes: int = 2**30
    """Of the embeddings of media."""

    def __post_init__(self) -> None:
        self.cache = PagedCache.allocate(self.model.config, self.pages, torch.float32, "cpu")
        for pool in (self.cache.k, self.cache.v, self.cache.index_k):
            pool.fill_(float("nan"))
        self._free = torch.randperm(self.pages, generator=torch.Generator().manual_seed(0)).tolist()
        self._tables: dict[str, list[int]] = {}
        tower = self.model.vision
        self._embeddings = None if tower is None else MediaEmbeddings(tower, self.kept_bytes)

    def step(self, new_tokens: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Append tokens to each named sequence, in one step. Returns the logits [new tokens, vocabulary] of each."""
        B = self.model.config.page_tokens
        starts, contexts, positions, slots = [0], [], [], []
        for name, tokens in new_tokens.items():
            old = self.lengths.get(name, 0)
            self.lengths[name] = old + len(tokens)
            table = self._tables.setdefault(name, [])
            table += [self._free.pop() for _ in range(-(-self.lengths[name] // B) - len(table))]
            starts.append(starts[-1] + len(tokens))
            contexts.append(self.lengths[name])
            positions += range(old, self.lengths[name])
            slots += [table[position // B] * B + position % B for position in range(old, self.lengths[name])]
        tables = [self._tables[name] for name in new_tokens]
        width = max(map(len, tables))
        step = StepTensors(
            token_ids=torch.tensor([token for tokens in new_tokens.values() for token in tokens]),
            positions=torch.tensor(positions),
            query_starts=starts,
            context_lengths=contexts,
            page_table=torch.tensor([table + [0] * (width - len(table)) for table in tables]),
            slot_mapping=torch.tensor(slots),
            logit_rows=torch.arange(starts[-1]),
            media=() if self._embeddings is None else self._embeddings.rows(self._chunks(new_tokens)),
        )
        logits = self.model.forward(step, self.cache)
        return dict(zip(new_tokens, logits.split([len(tokens) for tokens in new_tokens.values()]), strict=True))

    def _chunks(self, new_tokens: Mapping[str, Sequence[int]]) -> Iterator[Chunk]:
        """The newest tokens as the engine would say it, as far as media need to know."""
        for name, tokens in new_tokens.items():
            request = Request(name, tokens, SamplingParameters(max_tokens=1), media=self.media.get(name, ()))
            start = self.lengths[name] - len(tokens)
            yield Chunk(EngineSequence(request), start, len(tokens), array("q"), samples=False)

    def chunked(self, sequences: Mapping[str, Sequence[int]], sizes: Sequence[int]) -> dict[str, Tensor]:
        """Feed whole sequences in chunks of changing, uneven sizes, several sequences a step; all their logits."""
        parts: dict[str, list[Tensor]] = {name: [] for name in sequences}
        turn = 0
        while any(self.lengths.get(name, 0) < len(tokens) for name, tokens in sequences.items()):
            chunk: dict[str, Sequence[int]] = {}
            for number, (name, tokens) in enumerate(sequences.items()):
                done = self.lengths.get(name, 0)
                size = sizes[(turn + number) % len(sizes)]
                if size and done < len(tokens):
                    chunk[name] = tokens[done : done + size]
            turn += 1
            if chunk:
                for name, logits in self.step(chunk).items():
                    parts[name].append(logits)
        return {name: torch.cat(logits) for name, logits in parts.items()}

    def greedy(self, prompts: Mapping[str, Sequence[int]], n: int) -> dict[str, list[int]]:
        """The n most likely tokens after each prompt, all sequences decoding together."""
        out: dict[str, list[int]] = {name: [] for name in prompts}
        feed: Mapping[str, Sequence[int]] = prompts
        for _ in range(n):
            for name, logits in self.step(feed).items():
                out[name].append(int(logits[-1].argmax()))
            feed = {name: tokens[-1:] for name, tokens in out.items()}
        return out
