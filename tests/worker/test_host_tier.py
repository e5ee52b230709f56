"""The host tier: pages come back as they went, in any type of pool."""

import pytest
import torch

from m3_worker.host_tier import HostTier
from m3_worker.model.cache import PagedCache
from m3_worker.scheduling.host_pages import CopyIn, CopyOut


def cache(dtype: torch.dtype, index_dtype: torch.dtype) -> PagedCache:
    def pool(*shape: int, of: torch.dtype) -> torch.Tensor:
        return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(len(shape))).to(of)

    return PagedCache(
        k=pool(3, 5, 4, 2, 8, of=dtype),
        v=pool(3, 5, 4, 2, 8, of=dtype),
        index_k=pool(2, 5, 4, 8, of=index_dtype),
        sparse_layers=(False, True, True),
    )


def content(of: PagedCache, page: int) -> list[torch.Tensor]:
    return [pool[:, page].to(torch.float32, copy=True) for pool in (of.k, of.v, of.index_k)]


@pytest.mark.parametrize(
    ("dtype", "index_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float8_e4m3fn), (torch.float8_e4m3fn, torch.bfloat16)],
    ids=str,
)
def test_a_page_comes_back_as_it_went(dtype: torch.dtype, index_dtype: torch.dtype) -> None:
    paged = cache(dtype, index_dtype)
    tier = HostTier(paged, slots=2)
    before = [content(paged, page) for page in range(5)]
    tier.copy([CopyOut(page=1, slot=0), CopyOut(page=4, slot=1), CopyIn(slot=0, page=3), CopyIn(slot=1, page=1)])
    for page, expected in enumerate([before[0], before[4], before[2], before[1], before[4]]):
        assert all(map(torch.equal, content(paged, page), expected))


def test_copies_are_done_in_their_order() -> None:
    paged = cache(torch.float32, torch.float32)
    one, two = content(paged, 1), content(paged, 2)
    tier = HostTier(paged, slots=1)
    tier.copy([CopyOut(1, 0), CopyIn(0, 3), CopyOut(2, 0), CopyIn(0, 1)])
    assert all(map(torch.equal, content(paged, 3), one))
    assert all(map(torch.equal, content(paged, 1), two))


def test_its_size_is_that_of_its_pages() -> None:
    paged = cache(torch.bfloat16, torch.bfloat16)
    assert HostTier(paged, slots=2).bytes == 2 * 2 * (2 * 3 * 4 * 2 * 8 + 2 * 4 * 8)
