"""What computes, on every rank: weights, cache, and the host's pages beside it, sized to what the device has.

Owns that order: what can be refused by the settings is refused first, ranks meet next, weights are read, and the cache
takes its share of what they left free, as many pages on every rank. What is around it differs: `loading` on the rank
that serves, `rank_main` on those that follow.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from m3_kernels.cpu import compiled
from m3_worker.cache_size import CacheSize, choose_cache_size
from m3_worker.config import RankSettings, WorkerSettings
from m3_worker.first_plan import agreed_plan, learned_plan, plan_in_order
from m3_worker.heap import keep_freed_memory
from m3_worker.host_tier import HostTier
from m3_worker.model.cache import PagedCache
from m3_worker.model.checkpoint import load_model
from m3_worker.model.config import CheckpointError, ModelConfig
from m3_worker.model.m3 import M3Model
from m3_worker.model.packaged import checkpoint_directory
from m3_worker.model.share import RankShare
from m3_worker.ranks.leading import LeadingMover
from m3_worker.ranks.loading import RankModel, load_rank
from m3_worker.ranks.running_group import RunningGroup
from m3_worker.scheduling.host_pages import PageMover

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_LOAD_SECONDS = 86400.0
"""How long one rank waits for the others' weights; a rank that is gone is noticed otherwise."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and in what type the model computes."""

    device: torch.device
    dtype: torch.dtype

    @property
    def free_bytes(self) -> int | None:
        """Free memory of the device; None on a CPU."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None


@dataclass(frozen=True)
class EngineModel:
    """One rank's model and memory, or those of a process that is alone."""

    config: ModelConfig
    """Of the whole model."""
    place: Place
    model: M3Model
    cache: PagedCache
    size: CacheSize
    mover: PageMover | None
    host_slots: int
    group: RunningGroup | None
    """None, as `rank` is, for a process that is alone."""
    rank: RankModel | None


def load_engine_model(
    settings: WorkerSettings, ranks: RankSettings, arguments: Sequence[str], progress: Progress
) -> EngineModel:
    """Read, size and allocate; meet the other ranks where there are any, which are given `arguments`.

    Raises CheckpointError, CacheSizeError or GroupError, each with one line to show.
    """
    directory = checkpoint_directory(settings.checkpoint)
    config = ModelConfig.load(directory)
    place = _place(settings, ranks, config)
    if place.device.type == "cpu":
        keep_freed_memory()
        if compiled.level() is None:
            log.warning("m3serve was installed without a C compiler: on this CPU the engine is several times slower")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    cache_dtype, index_dtype = _cache_dtypes(settings, place)
    plan = learned_plan(plan_in_order(settings, ranks, config), settings.expert_plan)
    held = config if ranks.world_size == 1 else RankShare(config, plan, ranks.rank).config
    bytes_per_token = PagedCache.bytes_per_token(held, cache_dtype, index_dtype)
    if place.free_bytes is None:  # what does not depend on the weights is refused before they are read
        choose_cache_size(settings, config, bytes_per_token, None)
    group = RunningGroup(settings, ranks, place.device, arguments) if ranks.world_size > 1 else None
    rank: RankModel | None = None
    if group is not None:
        plan = agreed_plan(plan, group.group, settings.rank_join_seconds)
        rank = load_rank(group.group, directory, config, place.dtype, plan, progress=progress)
    model = load_model(directory, config, place.dtype, place.device, progress) if rank is None else rank.model
    size = choose_cache_size(settings, config, bytes_per_token, _least_free(place, group))
    cache = PagedCache.allocate(held, size.pages, cache_dtype, place.device, index_dtype)
    host_slots = settings.host_cache_tokens // config.page_tokens
    mover: PageMover | None = HostTier(cache, host_slots) if host_slots else None
    if mover is not None and rank is not None and ranks.rank == 0:
        mover = LeadingMover(mover, rank.voice)
    return EngineModel(config, place, model, cache, size, mover, host_slots, group, rank)


def _least_free(place: Place, group: RunningGroup | None) -> int | None:
    """Free bytes of the device that has the fewest; None on CPUs."""
    if group is None or place.free_bytes is None:
        return place.free_bytes
    return min(int(str(free)) for free in group.group.tell_all("free bytes", place.free_bytes, _LOAD_SECONDS))


def _place(settings: WorkerSettings, ranks: RankSettings, config: ModelConfig) -> Place:
    """Resolve "auto". Raises CheckpointError if cuda is asked for and there is none for this rank."""
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise CheckpointError("--device cuda: torch sees no CUDA device here; use --device cpu, or auto")
    dtype: torch.dtype = getattr(torch, config.dtype if settings.dtype == "auto" else settings.dtype)
    if settings.device == "cpu" or not has_cuda:
        return Place(torch.device("cpu"), dtype)
    if ranks.local_rank >= torch.cuda.device_count():
        raise CheckpointError(
            f"rank {ranks.rank} needs CUDA device {ranks.local_rank}: torch sees {torch.cuda.device_count()} here"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return Place(device, dtype)


def _cache_dtypes(settings: WorkerSettings, place: Place) -> tuple[torch.dtype, torch.dtype]:
    """Of keys and values, and of index keys."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
    of_cache = dtypes.get(settings.cache_dtype, place.dtype)
    return of_cache, dtypes.get(settings.index_cache_dtype, of_cache)
