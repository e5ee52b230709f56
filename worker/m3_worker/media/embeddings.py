"""What the vision tower makes of the media in a step, and the embeddings that are still needed.

Owns the embeddings between steps. A segment is computed when the first of its placeholders is, all of it at once, and
kept for the chunks to come, for other requests with the same content, and for a sequence that has to start again. The
memory for that is bounded: what was used longest ago goes first and is computed again if need be, so that nobody has to
say when a request is done with its media. Belongs to the runner, on the engine's thread.
"""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from m3_worker.model.cache import MediaRows
from m3_worker.model.vision import VisionTower
from m3_worker.scheduling.batch import Chunk
from m3_worker.scheduling.request import MediaSpan

KEPT_BYTES = 256 * 2**20
"""Room for 36 of M3's largest images in bfloat16."""


class MediaEmbeddings:
    """The tower with the embeddings of the segments used last."""

    def __init__(self, tower: VisionTower, kept_bytes: int = KEPT_BYTES) -> None:
        self._tower = tower
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()  # by digest, used last at the end
        self._bytes = 0

    def rows(self, chunks: Iterable[Chunk]) -> tuple[MediaRows, ...]:
        """What takes the place of the placeholders among a step's tokens, which stand in the order of the chunks.

        A chunk may begin and end within an item: it gets that part of the item's embeddings.
        """
        found = []
        row = 0  # of the chunk's first token in the step
        for chunk in chunks:
            media = chunk.sequence.request.media
            is_beyond = not media or chunk.start >= media[-1].start + media[-1].tokens  # as in every step of decoding
            for item in () if is_beyond else media:
                start, end = max(item.start, chunk.start), min(item.start + item.tokens, chunk.end)
                if start < end:
                    first = item.first_row + start - item.start
                    embeddings = self._embeddings(item)[first : first + end - start]
                    rows = torch.arange(row + start - chunk.start, row + end - chunk.start, device=embeddings.device)
                    found.append(MediaRows(rows, embeddings))
            row += chunk.tokens
        self._evict()
        return tuple(found)

    def _embeddings(self, item: MediaSpan) -> Tensor:
        kept = self._kept.get(item.digest)
        if kept is None:
            patches = torch.from_numpy(np.ascontiguousarray(item.pixels))  # an image's frames are one until here
            kept = self._kept[item.digest] = self._tower.embed(patches, item.grid)
            self._bytes += kept.nbytes
        self._kept.move_to_end(item.digest)
        return kept

    def _evict(self) -> None:
        while self._bytes > self._kept_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes
