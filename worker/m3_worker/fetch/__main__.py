"""`python -m m3_worker.fetch`: bring one model into the cache, unless it is there; exit 0 when it is complete.

Without a marker of completeness the hub is asked; with one, nobody is, so that what was downloaded once can be used
where there is no network. A failure is one line, REASON: sentence, on standard error and in `--message-file`.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from m3_worker.config import FetchSettings
from m3_worker.fetch.cache import CachedModel
from m3_worker.fetch.download import Download, retried
from m3_worker.fetch.errors import FetchError
from m3_worker.fetch.hub import Hub
from m3_worker.fetch.page import Progress, telling

log = logging.getLogger("m3_worker.fetch")


def main() -> None:
    """Download, and say how it went."""
    settings = FetchSettings.parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs the addresses of redirects, which are signed
    # The first process of a container ignores signals that it does not handle; what was written is not lost.
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(128 + signal.SIGTERM))
    progress = Progress()
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(telling(progress, settings.host, settings.port))
        except OSError as error:
            _fail(settings, f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}")
        log.info("the progress is told at port %d", port)
        try:
            fetch(settings, os.environ.get("HF_TOKEN") or None, progress)
        except FetchError as error:
            _fail(settings, str(error))


def fetch(
    settings: FetchSettings, token: str | None, progress: Progress, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Bring the model into the cache, unless it is complete. Raises FetchError."""
    model = CachedModel(settings)
    if model.is_complete():
        log.info("%s is complete", model.directory)
        return
    with Hub(settings, token) as hub:
        files = retried(hub.files, sleep)
        needed = sum(file.size_bytes for file in files)
        progress.begin(needed, lambda: model.done_bytes(files))
        with model.filling():
            if model.is_complete():
                log.info("%s was completed meanwhile", model.directory)
                return
            log.info(
                "%s: %d files, %d bytes, %d of them there", settings.repo, len(files), needed, progress.done_bytes()
            )
            Download(hub, model, threads=settings.threads, sleep=sleep).run(files)
            model.complete(files, settings)
    log.info("%s is complete", model.directory)


def _fail(settings: FetchSettings, cause: str) -> NoReturn:
    if settings.message_file is not None:
        with contextlib.suppress(OSError):
            settings.message_file.write_text(cause)
    sys.exit(f"m3-fetch: {cause}")


if __name__ == "__main__":
    main()
