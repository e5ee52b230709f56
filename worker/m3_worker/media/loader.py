"""The way of a request's images and videos: from URLs to patches, off the event loop and within the worker's limits.

Owns the threads that decode and the count of bytes that all requests hold together. Bytes are counted as long as the
patches live, wherever they are kept: who drops the last reference frees them, without a word to anybody.
"""

import asyncio
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np

from m3_worker.media.decode import decode_image, decode_video
from m3_worker.media.items import MediaError, MediaLimits, MediaMemoryError, MediaReference, ProcessedMedia
from m3_worker.media.sources import MediaFetcher, data_url_bytes
from m3_worker.model.vision_config import VisionConfig

_DECODING_THREADS = 2
"""How many files are decoded at one time: each may take the memory of one of the largest pictures a few times over."""


class MediaLoader:
    """Loads the media of all requests of one worker."""

    def __init__(self, config: VisionConfig, limits: MediaLimits, fetcher: MediaFetcher | None = None) -> None:
        """Without a fetcher, only data: URLs are read."""
        self.config = config
        self._limits = limits
        self._fetcher = fetcher
        self._threads = ThreadPoolExecutor(_DECODING_THREADS, thread_name_prefix="m3-media")
        self._held = _HeldBytes(limits.held_bytes)

    async def load(self, sources: Sequence[MediaReference]) -> list[ProcessedMedia]:
        """All of a request's media, in order.

        Raises MediaError with its `where` for the first that is refused, MediaMemoryError if the worker holds too much.
        """
        if len(sources) > self._limits.items:
            where = sources[self._limits.items].where
            rule = f"at most {self._limits.items} images and videos in a request"
            raise MediaError(f"it is one of {len(sources)}: there must be {rule}", where)
        try:
            async with asyncio.TaskGroup() as tasks:
                loading = [tasks.create_task(self._load(source)) for source in sources]
        except ExceptionGroup as group:
            refused = (error for error in group.exceptions if isinstance(error, MediaError | MediaMemoryError))
            raise next(refused, group) from None
        return [task.result() for task in loading]

    def close(self) -> None:
        """Let the decoding threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _load(self, source: MediaReference) -> ProcessedMedia:
        try:
            content = await self._content(source.url)
            decode = decode_image if source.kind == "image" else decode_video
            loop = asyncio.get_running_loop()
            media = await loop.run_in_executor(self._threads, decode, content, self.config, self._limits)
        except MediaError as error:
            raise MediaError(str(error), source.where) from None
        self._held.add(media)
        return media

    async def _content(self, url: str) -> bytes:
        if url[:5].lower() == "data:":
            return data_url_bytes(url, self._limits)
        if self._fetcher is None:
            raise MediaError("this worker reads data: URLs only: http(s) needs --allow-media-urls")
        return await self._fetcher.fetch(url)


class _HeldBytes:
    """Bytes of the patches that are alive."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = Lock()  # the last reference may be the engine's, on its own thread

    def add(self, media: ProcessedMedia) -> None:
        for segment in media.segments:
            owner = segment.patches
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            with self._lock:
                if self._held + owner.nbytes > self._limit:
                    raise MediaMemoryError(f"images and videos of all requests have {self._held:,} bytes already")
                self._held += owner.nbytes
            weakref.finalize(owner, self._release, owner.nbytes).atexit = False

    def _release(self, taken: int) -> None:
        with self._lock:
            self._held -= taken
