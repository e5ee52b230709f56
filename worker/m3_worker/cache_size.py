"""How many pages the cache has and how long a context it serves: decided at start, or refused with the arithmetic.

Pure: the memory that is free comes in as a number.
"""

from dataclasses import dataclass

from m3_worker.config import WorkerSettings
from m3_worker.model.config import ModelConfig

CPU_CACHE_TOKENS = 65536
"""Enough for development; a machine's memory says little about what else wants it."""

DEVICE_SHARE = 0.9
"""Of the device memory left beside the weights; the rest is for activations and the allocator's fragments."""


class CacheSizeError(ValueError):
    """The settings ask for a context that cannot be served. The message is one line with the numbers."""


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What is allocated, and the longest prompt and answer together."""

    pages: int
    max_context_tokens: int


def choose_cache_size(
    settings: WorkerSettings, config: ModelConfig, bytes_per_token: int, free_bytes: int | None
) -> CacheSize:
    """Pages and context of a worker. `free_bytes` is the free memory of a device, None for a CPU.

    Never more pages than max_concurrent sequences of the whole context can fill. Raises CacheSizeError.
    """
    trained = config.max_position_embeddings
    asked = settings.max_context_tokens
    if asked is not None and asked > trained:
        raise CacheSizeError(f"--max-context-tokens {asked}: the checkpoint's max_position_embeddings is {trained}")
    tokens, origin = _cache_tokens(settings, bytes_per_token, free_bytes)
    pages = tokens // config.page_tokens
    context = asked if asked is not None else min(trained, pages * config.page_tokens)
    needed = -(-max(context, 1) // config.page_tokens)
    if pages < needed:
        raise CacheSizeError(
            f"one sequence of {max(context, 1)} tokens needs {needed} pages of {config.page_tokens} tokens "
            f"({_mib(needed * config.page_tokens * bytes_per_token)}), the cache has {pages} "
            f"({_mib(pages * config.page_tokens * bytes_per_token)}, {origin}): "
            "raise --cache-tokens or lower --max-context-tokens"
        )
    return CacheSize(min(pages, settings.max_concurrent * needed), context)


def _cache_tokens(settings: WorkerSettings, bytes_per_token: int, free_bytes: int | None) -> tuple[int, str]:
    if settings.cache_tokens is not None:
        return settings.cache_tokens, f"--cache-tokens {settings.cache_tokens}"
    if free_bytes is None:
        return CPU_CACHE_TOKENS, f"{CPU_CACHE_TOKENS} tokens by default on cpu"
    share = f"{DEVICE_SHARE:.0%} of {_mib(free_bytes)} free at {bytes_per_token} bytes a token"
    return int(free_bytes * DEVICE_SHARE) // bytes_per_token, share


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
