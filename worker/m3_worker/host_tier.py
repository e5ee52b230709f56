"""The host's copy of evicted pages: a pool in host memory, and the copies between it and the paged cache.

Owns that memory and nothing else: `scheduling.host_pages` decides which page goes into which slot. The pools may be of
any type, they are copied as they are. On a GPU the memory is pinned and the copies are queued on the current stream,
where the steps are as well: so they happen in their order and before what is computed next, and nobody waits for them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from m3_worker.model.cache import PagedCache
from m3_worker.scheduling.host_pages import Copy, CopyOut


class HostTier:
    """Slots for pages of one cache. A page is one contiguous piece of each pool here, unlike on the device."""

    def __init__(self, cache: PagedCache, slots: int) -> None:
        """Allocates the slots: raises what torch raises if there is no memory for them."""
        self._pools = [(pool, _host_pool(pool, slots)) for pool in (cache.k, cache.v, cache.index_k)]

    @property
    def bytes(self) -> int:
        """Host memory that the slots take."""
        return sum(host.nbytes for _, host in self._pools)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Do the copies in their order; what is computed afterwards sees them done."""
        for copy in copies:
            for device, host in self._pools:
                if isinstance(copy, CopyOut):
                    host[copy.slot].copy_(device[:, copy.page], non_blocking=True)
                else:
                    device[:, copy.page].copy_(host[copy.slot], non_blocking=True)


def _host_pool(pool: Tensor, slots: int) -> Tensor:
    """[slots, layers, page_tokens, ...] for a pool [layers, pages, page_tokens, ...]."""
    shape = (slots, pool.shape[0], *pool.shape[2:])
    return torch.empty(shape, dtype=pool.dtype, pin_memory=pool.device.type == "cuda")
