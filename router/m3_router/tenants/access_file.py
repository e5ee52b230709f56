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

from m3_router.config import ConfigError, LoadedAccess, RouterConfig, load, load_access

POLL_SECONDS: Final = 0.5
RACY_SECONDS: Final = 2.0  # a file may change twice within the grain of its time stamp

_log = logging.getLogger(__name__)


class AccessFile:
    """The configuration file and all files of keys and tenants that it names, those that these name included.

    `apply(config, access)` is called at each change.
    """

    def __init__(
        self,
        path: Path | None,
        config: RouterConfig,
        access: LoadedAccess | None,
        apply: Callable[[RouterConfig, LoadedAccess | None], None],
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
        self._tell_unusable(frozenset())
        self.reloads = 0
        self.failures = 0
        self.last_error: str | None = None  # of the newest change, None once one was taken

    @property
    def unusable_keys(self) -> int:
        """Keys of tenants that open nothing now."""
        return 0 if self._access is None else len(self._access.unusable_keys)

    async def run(self) -> None:
        """Look twice a second, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.poll()

    async def poll(self) -> bool:
        """Look once. Returns whether a change was taken."""
        return await self.reload() if await asyncio.to_thread(self._look, self._wall_clock()) else False

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
        told = frozenset(() if self._access is None else self._access.unusable_keys)
        self._config, self._access = config, access
        self._begin()
        self.reloads += 1
        self.last_error = None
        _log.info("took the changed configuration: %d keys", 0 if access is None else len(access.keys))
        self._tell_unusable(told)
        return True

    def _look(self, now: float) -> bool:
        """Whether any file has changed; each is looked at, so that the next look begins from here."""
        changes = [seen.has_changed(path, now) for path, seen in self._files.items()]
        return any(changes)

    def _tell_unusable(self, told: frozenset[str]) -> None:
        """Log the keys of tenants that open nothing, each once."""
        for fault in () if self._access is None else self._access.unusable_keys:
            if fault not in told:
                _log.warning("a tenant's key opens nothing: %s", fault)

    def _read(self) -> tuple[RouterConfig, LoadedAccess | None]:
        config = self._config if self._path is None else load(self._path)
        return config, None if config.auth == "none" else load_access(config.auth)

    def _begin(self) -> None:
        """Watch the files of the configuration in use. One that is watched already keeps what was seen of it."""
        auth = self._config.auth
        paths = [self._path, *(() if auth == "none" else (auth.keys_file, auth.tenants_file))]
        if self._access is not None:
            paths += [path for tenant in self._access.tenants for path in tenant.key_files]
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
