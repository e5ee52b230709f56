"""Why a download ended without the model, as a word for programs and a sentence for people."""

from typing import Literal

Reason = Literal[
    "RepositoryForbidden", "RepositoryNotFound", "HubUnreachable", "CacheFull", "CacheNotWritable", "DownloadCorrupt"
]
"""The operator makes conditions of these words."""


class FetchError(Exception):
    """It cannot be done; trying again at once would not help."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class TransientError(Exception):
    """The hub or the network failed in a way that passes. The message is one line."""
