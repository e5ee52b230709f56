"""From settings to a model that can be served: everything that is read, sized and allocated before the first request.

Owns the order: what is small and can be refused is read first, weights next, the cache last, from what they left free.
Runs on a thread beside the event loop; imports torch, which the server does not until here.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from m3_worker.cache import PagedCache
from m3_worker.cache_size import choose_cache_size
from m3_worker.chat.template import ChatTemplate
from m3_worker.checkpoint import load_model
from m3_worker.config import WorkerSettings
from m3_worker.engine import Engine
from m3_worker.generation_defaults import GenerationDefaults
from m3_worker.grammar import Grammars
from m3_worker.host_pages import HostPages
from m3_worker.host_tier import HostTier
from m3_worker.media import MediaLimits
from m3_worker.media_loader import MediaLoader
from m3_worker.media_prompt import check_tokens
from m3_worker.media_sources import MediaFetcher
from m3_worker.model_config import CheckpointError, ModelConfig
from m3_worker.packaged import checkpoint_directory
from m3_worker.pages import Pages
from m3_worker.runner import Runner
from m3_worker.scheduler import Scheduler, SchedulerLimits
from m3_worker.serving import ServedModel
from m3_worker.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CPU_WARM_UP_TOKENS = 8
_TINY_BYTES = 64 * 2**20
"""Below this, waking a second thread costs more than it computes."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where and in what type the model computes."""

    device: torch.device
    dtype: torch.dtype

    @property
    def free_bytes(self) -> int | None:
        """Free memory of the device; None on a CPU."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None


def load_served_model(settings: WorkerSettings, progress: Callable[[int, int], None]) -> ServedModel:
    """Read the checkpoint and build the engine around it, not started yet.

    Raises CheckpointError or CacheSizeError, each with one line to show.
    """
    directory = checkpoint_directory(settings.checkpoint)
    config = ModelConfig.load(directory)
    tokenizer = Tokenizer.load(directory)
    template = ChatTemplate.load(directory)
    defaults = GenerationDefaults.load(directory)
    place = _place(settings, config)
    threads = _threads(settings, sum(path.stat().st_size for path in directory.glob("*.safetensors")))
    if threads is not None:
        torch.set_num_threads(threads)
    cache_dtype, index_dtype = _cache_dtypes(settings, place)
    bytes_per_token = PagedCache.bytes_per_token(config, cache_dtype, index_dtype)
    if place.free_bytes is None:  # what does not depend on the weights is refused before they are read
        choose_cache_size(settings, config, bytes_per_token, None)
    model = load_model(directory, config, place.dtype, place.device, progress)
    size = choose_cache_size(settings, config, bytes_per_token, place.free_bytes)
    cache = PagedCache.allocate(config, size.pages, cache_dtype, place.device, index_dtype)
    runner = Runner(model, cache, config.page_tokens)
    runner.warm_up(_warm_up_tokens(settings, place, size.pages * config.page_tokens))
    limits = SchedulerLimits(settings.max_concurrent, settings.step_tokens, _step_seconds(settings, place))
    host_slots = settings.host_cache_tokens // config.page_tokens
    host_tier = HostTier(cache, host_slots) if host_slots else None
    scheduler = Scheduler(limits, Pages(size.pages, config.page_tokens, HostPages(host_slots)))
    log.info(
        "%d layers in %s on %s; cache of %d pages of %d tokens (%.1f MiB); contexts of up to %d tokens",
        config.layers,
        str(place.dtype).removeprefix("torch."),
        place.device,
        size.pages,
        config.page_tokens,
        size.pages * config.page_tokens * bytes_per_token / 2**20,
        size.max_context_tokens,
    )
    return ServedModel(
        name=settings.model_name,
        engine=Engine(scheduler, runner, max_waiting=settings.max_waiting, mover=host_tier),
        tokenizer=tokenizer,
        grammars=Grammars(tokenizer, config.vocab_size, config.eos_token_ids),
        template=template,
        defaults=defaults,
        vocab_size=config.vocab_size,
        max_context_tokens=size.max_context_tokens,
        eos_token_ids=frozenset(config.eos_token_ids),
        created_seconds=int(time.time()),
        media=_media_loader(settings, config, tokenizer),
    )


def _media_loader(settings: WorkerSettings, config: ModelConfig, tokenizer: Tokenizer) -> MediaLoader | None:
    """None for a text model. Raises CheckpointError if the tokenizer lacks M3's tokens for media."""
    if config.vision is None:
        return None
    check_tokens(tokenizer, config.vision)
    limits = MediaLimits(
        items=settings.max_media_items,
        item_bytes=settings.max_media_bytes,
        image_pixels=settings.max_image_pixels,
        video_seconds=settings.max_video_seconds,
        seconds=settings.media_seconds,
        held_bytes=settings.media_memory_bytes,
    )
    return MediaLoader(config.vision, limits, MediaFetcher(limits) if settings.allow_media_urls else None)


def _place(settings: WorkerSettings, config: ModelConfig) -> _Place:
    """Resolve "auto". Raises CheckpointError if cuda is asked for and there is none."""
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise CheckpointError("--device cuda: torch sees no CUDA device here; use --device cpu, or auto")
    device = torch.device("cuda" if settings.device == "cuda" or (settings.device == "auto" and has_cuda) else "cpu")
    dtype: torch.dtype = getattr(torch, config.dtype if settings.dtype == "auto" else settings.dtype)
    return _Place(device, dtype)


def _cache_dtypes(settings: WorkerSettings, place: _Place) -> tuple[torch.dtype, torch.dtype]:
    """Of keys and values, and of index keys."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
    of_cache = dtypes.get(settings.cache_dtype, place.dtype)
    return of_cache, dtypes.get(settings.index_cache_dtype, of_cache)


def _threads(settings: WorkerSettings, weight_bytes: int) -> int | None:
    """CPU threads of torch: what is asked for, else one for a tiny model, else torch's choice (None)."""
    if settings.threads is None and weight_bytes < _TINY_BYTES:
        return 1
    return settings.threads


def _step_seconds(settings: WorkerSettings, place: _Place) -> float:
    """What a step should take: short where decoding is fast, long enough on a CPU to compute something in it."""
    if settings.step_milliseconds is not None:
        return settings.step_milliseconds / 1000
    return 0.5 if place.device.type == "cpu" else 0.1


def _warm_up_tokens(settings: WorkerSettings, place: _Place, cache_tokens: int) -> int:
    """A whole step on a device, so that a lack of memory shows now; a few tokens on a CPU."""
    tokens = settings.step_tokens if place.device.type == "cuda" else _CPU_WARM_UP_TOKENS
    return min(tokens, cache_tokens, settings.step_tokens)
