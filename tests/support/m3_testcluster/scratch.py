"""Temporary directories of running clusters, and the removal of those whose owners died.

Owns their names and the lock in each, which its owner holds as long as it lives.
"""

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "m3t-"
_LOCK = "owner.lock"
# Between the making of a directory and the locking of it nobody may take it for abandoned.
_YOUNGEST_ABANDONED_SECONDS = 60


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new directory, removed at the end; removes first what dead owners left behind."""
    sweep(Path(tempfile.gettempdir()))
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        with (directory / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Removes the directories in `parent` whose owners are gone."""
    for path in parent.glob(f"{PREFIX}*/{_LOCK}"):
        try:
            with path.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime > _YOUNGEST_ABANDONED_SECONDS:
                    shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:
            continue  # in use, someone else's, or removed meanwhile
