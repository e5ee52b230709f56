"""Configuration and keys as their files say now: read again when they change, without a restart.

Owns the watching. Twice a second it looks at the files' stat, and reads them where that differs or is too fresh to be
trusted; a file that was only touched is no change. A file that cannot be used changes
nothing: it is counted and logged once, and what held before goes on to hold. Parsing is done in a thread.

Each replica watches its own mount, so a key that leaves the file is refused everywhere within POLL_SECONDS and the
time that the mount takes.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from m3_router.config import Access, ConfigError, RouterConfig, load, load_access

POLL_SECONDS: Final = 0.5
RACY_SECONDS: Final = 2.0  # a file may change twice within the grain of its time stamp

_log = logging.getLogger(__name__)


class AccessFile:
    """The configuration file and the keys file that it names. `apply(config, access)` is called at each change."""

    def __init__(
        self,
        path: Path | None,
        config: RouterConfig,
        access: Access | None,
        apply: Callable[[RouterConfig, Access | None], None],
        *,
        wall_clock: Callable[[], float],
    ) -> None:
        """`config` is what was read from `path`, `access` what came of it (`auth: none`: None), and both are in use.
        Without a path only the keys file is watched.

        `apply` is called in the loop, and may raise ConfigError for a change that needs a restart.
        """
        self._path = path
        self._config = config
        self._access = access
        self._apply = apply
        self._wall_clock = wall_clock
        self._files: dict[Path, _Seen] = {}
        self._begin()
        self.reloads = 0
        self.failures = 0
        self.last_error: str | None = None  # of the newest change, None once one was taken

    async def run(self) -> None:
        """Look twice a second, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.poll()

    async def poll(self) -> bool:
        """Look once. Returns whether a change was taken."""
        now = self._wall_clock()
        changed = [path for path, seen in self._files.items() if await asyncio.to_thread(seen.has_changed, path, now)]
        return await self.reload() if changed else False

    async def reload(self) -> bool:
        """Read everything again. Returns whether it has changed and could be used."""
        try:
            config, access = await asyncio.to_thread(self._read)
            if (config, access) == (self._config, self._access):
                self.last_error = None
                return False
            self._apply(config, access)
        except ConfigError as error:
            self.failures += 1
            self.last_error = str(error)
            _log.error("the changed configuration is not used: %s", error)
            return False
        self._config, self._access = config, access
        self._begin()
        self.reloads += 1
        self.last_error = None
        _log.info("took the changed configuration: %d keys", 0 if access is None else len(access.keys))
        return True

    def _read(self) -> tuple[RouterConfig, Access | None]:
        config = self._config if self._path is None else load(self._path)
        return config, None if config.auth == "none" else load_access(config.auth)

    def _begin(self) -> None:
        """Watch the files of the configuration in use. One that is watched already keeps what was seen of it."""
        auth = self._config.auth
        paths = [self._path, None if auth == "none" else auth.keys_file]
        self._files = {path: self._files.get(path) or _Seen() for path in paths if path is not None}


class _Seen:
    """What was last seen of one file."""

    __slots__ = ("_digest", "_stat")

    def __init__(self) -> None:
        self._stat: tuple[int, ...] | None = None
        self._digest: bytes | None = None

    def has_changed(self, path: Path, now: float) -> bool:
        """Whether its content is another than at the last call. A file that is gone has none, as before the first."""
        stat: tuple[int, ...] = ()
        digest: bytes | None = None
        try:
            status = path.stat()  # of what a link leads to: mounts are changed by moving a link
            stat = (status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev)
            if stat == self._stat and now - status.st_mtime > RACY_SECONDS:
                return False
            digest = hashlib.sha256(path.read_bytes()).digest()
        except OSError:
            stat = ()
        is_other = digest != self._digest
        self._stat, self._digest = stat, digest
        return is_other
