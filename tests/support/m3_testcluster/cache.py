"""Where the test cluster keeps what is costly to make, and how two runs share it.

Owns the cache's place and its locks; the callers own what lies inside. Everything here can be deleted at any time
while no test runs: it is made again.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3_testcluster.progress import Report, step, to_stderr


def cache_root() -> Path:
    """`$M3_CACHE_DIR`, else `$XDG_CACHE_HOME/m3serve`, else `~/.cache/m3serve`, with `cluster` below it."""
    if chosen := os.environ.get("M3_CACHE_DIR"):
        base = Path(chosen)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        base = Path(xdg) / "m3serve"
    else:
        base = Path.home() / ".cache" / "m3serve"
    return base.absolute() / "cluster"


@contextmanager
def locked(path: Path, what: str, report: Report = to_stderr) -> Iterator[None]:
    """Holds an exclusive lock on `path` for the block; says so while another process holds it.

    The kernel lets go of the lock when its holder dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"{what}: waiting for another process that is at it", report):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
