"""The bytes of all files that are missing: several at once, each from where it was left, each verified.

What passes is tried again, with growing pauses, for as long as bytes come in between; the first error that does not
pass ends all of it. Contents are verified while they are written: no file is read again, but for the part that was
there before.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from m3_worker.fetch.cache import CachedModel
from m3_worker.fetch.errors import FetchError, TransientError
from m3_worker.fetch.hub import Hub, HubFile

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_PAUSES_SECONDS = (1, 2, 4, 8, 16, 32, 60, 60)
"""Between attempts that bring nothing; then it is given up."""
_TRIES_OF_CONTENT = 2
"""How often a file may turn out to be another than announced."""
_READ_BYTES = 2**22


class _StoppedError(Exception):
    """Another file's error ended the download."""


def retried(attempt: Callable[[], _Result], sleep: Callable[[float], None]) -> _Result:
    """The result of an attempt that may fail in passing. Raises FetchError when it does not pass."""
    for pause in _PAUSES_SECONDS:
        try:
            return attempt()
        except TransientError as error:
            log.warning("%s; trying again in %d s", error, pause)
            sleep(pause)
    try:
        return attempt()
    except TransientError as error:
        raise FetchError("HubUnreachable", str(error)) from None


class Download:
    """One run over the files of a model."""

    def __init__(
        self, hub: Hub, model: CachedModel, *, threads: int, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._hub = hub
        self._model = model
        self._threads = threads
        self._sleep = sleep
        self._stopping = threading.Event()

    def run(self, files: Sequence[HubFile]) -> None:
        """Bring the missing ones. Raises FetchError, the first of any file."""
        missing = self._model.missing(files)
        self._model.refuse_if_full(sum(file.size_bytes for file in missing) - self._model.done_bytes(missing))
        with ThreadPoolExecutor(self._threads, "fetch") as threads:
            running = [threads.submit(self._bring, file) for file in missing]
            errors = [error for one in running if (error := one.exception()) is not None]
        first = next((error for error in errors if not isinstance(error, _StoppedError)), None)
        if first is not None:
            raise first

    def _bring(self, file: HubFile) -> None:
        try:
            for _ in range(_TRIES_OF_CONTENT):
                if self._is_as_announced(file):
                    with self._model.telling():
                        self._model.partial(file).replace(self._model.path(file))
                    return
                log.warning("%s is not what the hub announced: once more from its beginning", file.name)
                with self._model.telling():
                    self._model.partial(file).unlink()
            raise FetchError("DownloadCorrupt", f"{file.name} is not what the hub announced ({file.digest})")
        except _StoppedError:
            raise
        except BaseException:
            self._stopping.set()
            raise

    def _is_as_announced(self, file: HubFile) -> bool:
        """Bring the file's partial form to its full size; whether its content is the announced one."""
        partial = self._model.partial(file)
        with self._model.telling():
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
        while True:
            before = self._model.partial_bytes(file)
            digest = retried(lambda: self._extend(file), self._wait)
            if digest is not None:
                return digest == file.digest
            if self._model.partial_bytes(file) == before:
                raise FetchError("DownloadCorrupt", f"{file.name}: the hub sends {before} of {file.size_bytes} bytes")

    def _extend(self, file: HubFile) -> str | None:
        """Append what the hub sends now; the digest of the whole once there is enough, None if it sent too little."""
        hasher, partial = file.hasher(), self._model.partial(file)
        with self._model.telling(), partial.open("r+b", buffering=0) as written:
            while piece := written.read(_READ_BYTES):
                hasher.update(piece)
            size = start = written.tell()
            if size < file.size_bytes:
                try:
                    with self._hub.content(file, size) as pieces:
                        for piece in pieces:
                            if self._stopping.is_set():
                                raise _StoppedError
                            written.write(piece)
                            hasher.update(piece)
                            size += len(piece)
                            if size > file.size_bytes:
                                return ""  # longer than announced: nothing that could be completed
                except TransientError:
                    if size > start:
                        return None  # bytes came: the next attempt begins the count of failures anew
                    raise
            if size < file.size_bytes:
                return None
            os.fsync(written.fileno())  # a marker of completeness must not outlive what it tells of
        return hasher.hexdigest()

    def _wait(self, seconds: float) -> None:
        if self._stopping.is_set():
            raise _StoppedError
        self._sleep(seconds)
