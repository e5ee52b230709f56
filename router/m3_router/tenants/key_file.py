"""The key that an external upstream wants to see, as its file says now.

Owns the reading of the file, and the watching: a new key holds without a restart, and a file that cannot be used
changes nothing and is logged once. Keys are never logged. What is done with a key is its pool's business.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from m3_router.config import ConfigError

POLL_SECONDS: Final = 0.5

_log = logging.getLogger(__name__)


def read_key(path: Path) -> str:
    """The key in a file. Raises ConfigError."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"apiKeyFile {path}: cannot be read: {error}") from error
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"apiKeyFile {path}: does not hold a key of visible ASCII characters")
    return key


class KeyFile:
    """One watched file. use: gets the key, each time it is another one."""

    def __init__(self, path: Path, use: Callable[[str], None]) -> None:
        self._path = path
        self._use = use
        self._key = ""
        self._has_failed = False

    async def run(self) -> None:
        """Look twice a second, until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.poll()

    async def poll(self) -> None:
        """Look once."""
        try:
            key = await asyncio.to_thread(read_key, self._path)
        except ConfigError as error:
            if not self._has_failed:
                _log.error("the key in use stays: %s", error)
            self._has_failed = True
            return
        self._has_failed = False
        if key != self._key:
            self._key = key
            self._use(key)
