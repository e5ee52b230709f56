"""The settings of a worker process, of a tiny checkpoint, of a download, and of a rank: from a command line or the
environment.

Imports pydantic and the standard library only, so that the operator renders what a worker parses:
`parse_arguments(settings.arguments()) == settings`.
Does not own what a checkpoint says (model.config) nor how "auto" is resolved (engine_model, cache_size).
"""

from m3_worker.config.command_line import flag
from m3_worker.config.fetch import FetchSettings, cached_at
from m3_worker.config.ranks import RankSettings
from m3_worker.config.tiny import TinySettings
from m3_worker.config.worker import WorkerSettings

__all__ = ["FetchSettings", "RankSettings", "TinySettings", "WorkerSettings", "cached_at", "flag"]
