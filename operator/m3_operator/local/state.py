"""The state directory of `m3 up`: tiny checkpoints, API keys, router files and logs.

Owns the files under one directory and the lock that keeps a second `m3 up` out of it. Checkpoints stay from run to
run (their directory's name is a digest of their settings) and so do keys, so that a client's configuration survives a
restart; logs are those of the last run. Nobody but the user may read any of it.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from m3_operator.errors import OperatorError

KEY_PATTERN = re.compile(r"[\x21-\x7e]{16,256}")


class StateError(OperatorError):
    """A state directory that cannot be used."""


class StateDirectory:
    """One locked state directory; a context manager that frees the lock, as the kernel does when we are killed."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self._lock = -1

    def __enter__(self) -> "StateDirectory":
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"state directory {self.path}: {error.strerror}; name another with --state-dir") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise StateError(
                f"state directory {self.path} is in use by another `m3 up`; "
                "stop that one, or name another directory with --state-dir"
            ) from None
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(mode=0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def key(self, router: str) -> str:
        """The API key of a router, made when it is first asked for."""
        file = self.path / "keys" / router
        with contextlib.suppress(FileNotFoundError):
            key = file.read_text(encoding="utf-8").strip()
            if not KEY_PATTERN.fullmatch(key):
                raise StateError(
                    f"{file}: not an API key of 16 to 256 printable characters; remove it to get a new one"
                )
            return key
        key = f"m3-{secrets.token_urlsafe(24)}"
        self.write({file: f"{key}\n"})
        return key

    def write(self, files: Mapping[Path, str]) -> None:
        """Write files that only the user may read."""
        for path, text in files.items():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
