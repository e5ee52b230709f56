"""The size of the cache: from what is asked for, or from what is free, or refused with the numbers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from m3_worker.cache_size import CacheSize, CacheSizeError, choose_cache_size
from m3_worker.config import WorkerSettings

CONFIG: Any = SimpleNamespace(max_position_embeddings=8192, page_tokens=16)
BYTES_PER_TOKEN = 1024


def choose(free_bytes: int | None = None, **settings: Any) -> CacheSize:
    return choose_cache_size(WorkerSettings(model=Path("m"), **settings), CONFIG, BYTES_PER_TOKEN, free_bytes)


def test_a_cpu_gets_65536_tokens() -> None:
    assert choose() == CacheSize(pages=4096, max_context_tokens=8192)


def test_no_more_is_allocated_than_the_sequences_can_fill() -> None:
    assert choose(max_concurrent=2) == CacheSize(pages=1024, max_context_tokens=8192)
    assert choose(max_concurrent=2, max_context_tokens=1000) == CacheSize(pages=2 * 63, max_context_tokens=1000)


def test_the_context_is_what_the_cache_holds_if_nobody_says() -> None:
    assert choose(cache_tokens=1000) == CacheSize(pages=62, max_context_tokens=992)


def test_a_device_gives_nine_tenths_of_what_is_free() -> None:
    assert choose(free_bytes=10 * 2**20).pages == 10 * 1024 * 9 // 10 // 16


@pytest.mark.parametrize(
    ("settings", "free_bytes", "message"),
    [
        (
            {"max_context_tokens": 9000},
            None,
            "--max-context-tokens 9000: the checkpoint's max_position_embeddings is 8192",
        ),
        (
            {"max_context_tokens": 2000, "cache_tokens": 1000},
            None,
            "one sequence of 2000 tokens needs 125 pages of 16 tokens (2.0 MiB), the cache has 62 (1.0 MiB, "
            "--cache-tokens 1000): raise --cache-tokens or lower --max-context-tokens",
        ),
        (
            {"max_context_tokens": 8192},
            5 * 2**20,
            "one sequence of 8192 tokens needs 512 pages of 16 tokens (8.0 MiB), the cache has 288 (4.5 MiB, "
            "90% of 5.0 MiB free at 1024 bytes a token)",
        ),
        ({"cache_tokens": 15}, None, "one sequence of 1 tokens needs 1 pages of 16 tokens"),
    ],
)
def test_a_context_that_cannot_be_served_is_refused_with_the_arithmetic(
    settings: dict[str, int], free_bytes: int | None, message: str
) -> None:
    with pytest.raises(CacheSizeError) as refusal:
        choose(free_bytes, **settings)
    assert str(refusal.value).startswith(message)
