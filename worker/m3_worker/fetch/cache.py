"""One model's directory in a cache: what is there, what is missing, who fills it, and whether it is complete.

    CACHE/ORG--NAME/COMMIT/            the files, by the names that the hub gives them
    CACHE/ORG--NAME/COMMIT/F.partial   the beginning of file F; a file has its own name only when it was verified
    CACHE/ORG--NAME/COMMIT/.m3-complete.json   names and sizes, written when all files are there
    CACHE/ORG--NAME/COMMIT.lock        held by whoever fills the directory

Several processes may want one directory. Where a file system does not keep its locks, two of them write one partial
file, whose digest then tells; no unverified byte ever gets a file's own name.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from m3_worker.config import FetchSettings
from m3_worker.fetch.errors import FetchError
from m3_worker.fetch.hub import HubFile

_MARKER = ".m3-complete.json"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CachedModel:
    """The directory of one commit."""

    def __init__(self, settings: FetchSettings) -> None:
        self._root = settings.cache
        self.directory = settings.directory()
        self._lock = self.directory.with_name(f"{settings.revision}.lock")

    def is_complete(self) -> bool:
        """Whether the marker is there, and every file that it names, with its size."""
        try:
            sizes: Mapping[str, int] = json.loads((self.directory / _MARKER).read_text())["files"]
            return all((self.directory / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Waits until nobody else fills the directory. Raises FetchError."""
        with self.telling():
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("a")
        with lock:
            with self.telling():
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def missing(self, files: Sequence[HubFile]) -> list[HubFile]:
        """Those that have to be downloaded, the largest first: the last to begin should be the first to end."""
        left = [file for file in files if _size(self.path(file)) != file.size_bytes]
        return sorted(left, key=lambda file: -file.size_bytes)

    def done_bytes(self, files: Sequence[HubFile]) -> int:
        """Bytes of these files that are there, partial ones included."""
        sizes = ((_size(self.path(file)), _size(self.partial(file)), file.size_bytes) for file in files)
        return sum(min(whole if whole is not None else part or 0, wanted) for whole, part, wanted in sizes)

    def refuse_if_full(self, needed_bytes: int) -> None:
        """Raises FetchError if the volume cannot take so many more bytes."""
        with self.telling():
            free = shutil.disk_usage(self.directory).free
        if needed_bytes > free:
            raise FetchError(
                "CacheFull", f"{_gib(needed_bytes)} more are needed, and {self._root} has {_gib(free)} left; enlarge it"
            )

    def path(self, file: HubFile) -> Path:
        """Where the file is when it is whole."""
        return self.directory / file.name

    def partial(self, file: HubFile) -> Path:
        """Where the file grows."""
        return self.directory / f"{file.name}.partial"

    def partial_bytes(self, file: HubFile) -> int:
        """How far it has grown."""
        return _size(self.partial(file)) or 0

    def complete(self, files: Sequence[HubFile], settings: FetchSettings) -> None:
        """Write the marker, once all that it tells of is there. Raises FetchError."""
        told = {
            "repo": settings.repo,
            "revision": settings.revision,
            "files": {file.name: file.size_bytes for file in files},
        }
        draft = self.directory / f"{_MARKER}.draft"
        with self.telling():
            draft.write_text(json.dumps(told, indent=1))
            draft.replace(self.directory / _MARKER)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Makes a FetchError of what the file system refuses."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise FetchError("CacheFull", f"{self._root}: {error.strerror}; enlarge it") from None
            words = f"{self._root}: {error.strerror or error}; user {os.getuid()} must be able to write there"
            raise FetchError("CacheNotWritable", words) from None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
