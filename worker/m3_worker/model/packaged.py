"""The trained tiny M3 that ships with this package, and the name by which it is served.

`--model tiny` is a directory of that name where there is one, as for every path; else the packaged checkpoint.
"""

import logging
from importlib import resources
from pathlib import Path

from m3_worker.model.config_fields import CheckpointError

NAME = Path("tiny")
log = logging.getLogger(__name__)


def checkpoint_directory(model: Path) -> Path:
    """The directory that `--model` means. Raises CheckpointError, one line, if there is none."""
    if model.is_dir():
        return model
    if model != NAME:
        raise CheckpointError(
            f"{model}: no such directory; --model must be a checkpoint directory, "
            f"or {NAME} for the trained tiny model that ships with m3_worker"
        )
    directory = Path(str(resources.files("m3_worker"))) / "data" / "tiny"
    if not directory.is_dir():
        raise CheckpointError(f"--model {NAME}: this installation has no {directory}; `make tiny-model` writes it")
    log.info("serving the tiny model that ships with m3_worker, from %s", directory)
    return directory
