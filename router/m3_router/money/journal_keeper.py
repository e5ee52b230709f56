"""The thread of the journal that waits for the disk, so that the event loop does not.

Owns what is done to files beside writing records into them: making the next one, having the kernel write them down,
cutting off what was not used of a full one, removing. The journal says what and when; it never waits, except for a file
that is being made while the one before it is full already.
"""

import contextlib
import logging
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from m3_router.money.segments import MadeFile, create

SYNC_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 1.0  # on a disk that is full

_NEVER: Final = float("inf")

_log = logging.getLogger(__name__)


class Segment:
    """One file of the journal, as the writer knows it."""

    __slots__ = ("descriptor", "last_sequence", "mapping", "open_bills", "path")

    def __init__(self, path: Path, descriptor: int = -1, mapping: mmap.mmap | None = None) -> None:
        self.path = path
        self.descriptor = descriptor  # -1: it is not written any more
        self.mapping = mapping
        self.last_sequence = 0
        self.open_bills = 0  # opened in it, and not settled


class JournalKeeper:
    """The thread that waits for the disk, so that the event loop does not."""

    __slots__ = ("_commands", "_is_failing", "_segment_bytes", "_spare", "_spares", "_synced", "_worker")

    def __init__(self, directory: Path, segment_bytes: int, synced: Callable[[], int]) -> None:
        """`synced` returns the descriptor of the file being written, or -1, and takes note that it goes to disk."""
        self._synced = synced
        self._spare = directory / "spare"
        self._segment_bytes = segment_bytes
        self._is_failing = False  # the last spare could not be made
        self._commands: queue.SimpleQueue[tuple[str, Segment | None, int]] = queue.SimpleQueue()
        self._spares: queue.SimpleQueue[MadeFile] = queue.SimpleQueue()  # one at most
        self._worker = threading.Thread(target=self._run, name="journal", daemon=True)
        self._worker.start()
        self._commands.put(("prepare", None, 0))

    def sync_soon(self) -> None:
        """Have what was written put on the disk."""
        self._commands.put(("sync", None, 0))

    def take(self) -> MadeFile | None:
        """The file that is ready, waited for while it is being made; None while there is no room for it."""
        with contextlib.suppress(queue.Empty):
            if self._is_failing:
                return self._spares.get_nowait()
            return self._spares.get(timeout=RETRY_SECONDS)
        return None

    def begin(self, segment: Segment) -> None:
        """The file that was taken is this segment now: make the next one ready."""
        self._spare.rename(segment.path)
        self._commands.put(("prepare", None, 0))

    def seal(self, segment: Segment, used_bytes: int) -> None:
        """Finish a file that is not written any more."""
        self._commands.put(("seal", segment, used_bytes))

    def remove(self, segment: Segment) -> None:
        """Delete a file."""
        self._commands.put(("remove", segment, 0))

    def close(self) -> None:
        """Finish what was asked for, and end the thread."""
        self._commands.put(("close", None, 0))
        self._worker.join()
        with contextlib.suppress(queue.Empty):
            made = self._spares.get_nowait()
            made.mapping.close()
            os.close(made.descriptor)
            self._spare.unlink()

    def _run(self) -> None:
        sync_at = retry_at = _NEVER
        is_open = True
        while is_open:
            wait_until = min(sync_at, retry_at)
            try:
                timeout = None if wait_until == _NEVER else max(wait_until - time.monotonic(), 0.0)
                action, segment, used_bytes = self._commands.get(timeout=timeout)
            except queue.Empty:
                now = time.monotonic()
                if sync_at <= now:
                    sync_at = _NEVER
                    self._sync()
                if retry_at <= now:
                    retry_at = _NEVER if self._prepare() else now + RETRY_SECONDS
                continue
            if action == "sync":
                sync_at = min(sync_at, time.monotonic() + SYNC_SECONDS)
            elif action == "prepare":
                retry_at = _NEVER if self._prepare() else time.monotonic() + RETRY_SECONDS
            elif action == "seal" and segment is not None:
                self._seal(segment, used_bytes)
            elif action == "remove" and segment is not None:
                segment.path.unlink(missing_ok=True)
            is_open = action != "close"

    def _sync(self) -> None:
        descriptor = self._synced()
        if descriptor >= 0:
            try:
                os.fdatasync(descriptor)
            except OSError:
                _log.exception("the ledger's journal could not be written to the disk")

    def _prepare(self) -> bool:
        try:
            self._spares.put(create(self._spare, self._segment_bytes))
            directory = os.open(self._spare.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)  # the name that the last one was given
            finally:
                os.close(directory)
        except OSError as error:
            if not self._is_failing:
                _log.error(
                    "the ledger's journal has no room for another file of %d bytes: %s", self._segment_bytes, error
                )
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _seal(self, segment: Segment, used_bytes: int) -> None:
        descriptor, segment.descriptor = segment.descriptor, -1
        mapping, segment.mapping = segment.mapping, None
        try:
            os.fdatasync(descriptor)
            if mapping is not None:
                mapping.close()
            os.ftruncate(descriptor, used_bytes)
        except OSError:
            _log.exception("%s could not be finished", segment.path)
        finally:
            os.close(descriptor)
