"""From settings to a model that can be served: everything that is read, sized and allocated before the first request.

Owns what is around the model that `engine_model` loads: tokenizer, template, engine. What is small is read first.
Runs on a thread beside the event loop; imports torch, which the server does not until here.
"""

import logging
import time
from collections.abc import Callable, Sequence

from m3_worker.chat.template import ChatTemplate
from m3_worker.config import RankSettings, WorkerSettings
from m3_worker.engine import Engine
from m3_worker.engine_model import EngineModel, Place, load_engine_model
from m3_worker.grammar import Grammars
from m3_worker.media.items import MediaLimits
from m3_worker.media.loader import MediaLoader
from m3_worker.media.prompt import check_tokens
from m3_worker.media.sources import MediaFetcher
from m3_worker.model.config import ModelConfig
from m3_worker.model.generation_defaults import GenerationDefaults
from m3_worker.model.packaged import checkpoint_directory
from m3_worker.ranks.leading import Leader, LedGroup, LoneExperts
from m3_worker.runner import Runner
from m3_worker.scheduling.host_pages import HostPages
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.serving import ServedExperts, ServedModel
from m3_worker.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_CPU_WARM_UP_TOKENS = 8


def load_served_model(
    settings: WorkerSettings,
    progress: Callable[[int, int], None],
    ranks: RankSettings | None = None,
    arguments: Sequence[str] = (),
) -> ServedModel:
    """Read the checkpoint and build the engine around it, not started yet.

    ranks: the group this process is rank 0 of, if it is not alone; `arguments` are given to the others of this node.
    Raises CheckpointError, CacheSizeError or GroupError, each with one line to show.
    """
    directory = checkpoint_directory(settings.checkpoint)
    tokenizer = Tokenizer.load(directory)
    template = ChatTemplate.load(directory)
    defaults = GenerationDefaults.load(directory)
    loaded = load_engine_model(settings, ranks or RankSettings(), arguments, progress)
    config, place, size = loaded.config, loaded.place, loaded.size
    runner = Runner(loaded.model, loaded.cache, config.page_tokens)
    runner.warm_up(_warm_up_tokens(settings, place, size.pages * config.page_tokens))
    limits = SchedulerLimits(settings.max_concurrent, settings.step_tokens, _step_seconds(settings, place))
    scheduler = Scheduler(limits, Pages(size.pages, config.page_tokens, HostPages(loaded.host_slots)))
    log.info(
        "%d layers in %s on %d rank(s) of %s; cache of %d pages of %d tokens (%.1f MiB a rank); contexts of %d tokens",
        config.layers,
        str(place.dtype).removeprefix("torch."),
        1 if loaded.group is None else loaded.group.group.ranks,
        place.device.type,
        size.pages,
        config.page_tokens,
        sum(pool.nbytes for pool in (loaded.cache.k, loaded.cache.v, loaded.cache.index_k)) / 2**20,
        size.max_context_tokens,
    )
    return ServedModel(
        name=settings.model_name,
        engine=Engine(scheduler, runner, max_waiting=settings.max_waiting, mover=loaded.mover),
        tokenizer=tokenizer,
        grammars=Grammars(tokenizer, config.vocab_size, config.eos_token_ids),
        template=template,
        defaults=defaults,
        vocab_size=config.vocab_size,
        max_context_tokens=size.max_context_tokens,
        eos_token_ids=frozenset(config.eos_token_ids),
        created_seconds=int(time.time()),
        media=_media_loader(settings, config, tokenizer),
        experts=_experts(loaded),
        group=None if loaded.group is None or loaded.rank is None else LedGroup(loaded.group, loaded.rank.voice),
    )


def _experts(loaded: EngineModel) -> ServedExperts | None:
    """None for a model without any."""
    if not any(loaded.config.moe_layers):
        return None
    if loaded.rank is not None:
        return Leader(loaded.rank.ranks, loaded.rank.voice, loaded.rank.swap)
    return LoneExperts(loaded.model.ranks, loaded.config)


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


def _step_seconds(settings: WorkerSettings, place: Place) -> float:
    """What a step should take: short where decoding is fast, long enough on a CPU to compute something in it."""
    if settings.step_milliseconds is not None:
        return settings.step_milliseconds / 1000
    return 0.5 if place.device.type == "cpu" else 0.1


def _warm_up_tokens(settings: WorkerSettings, place: Place, cache_tokens: int) -> int:
    """A whole step on a device, so that a lack of memory shows now; a few tokens on a CPU."""
    tokens = settings.step_tokens if place.device.type == "cuda" else _CPU_WARM_UP_TOKENS
    return min(tokens, cache_tokens, settings.step_tokens)
