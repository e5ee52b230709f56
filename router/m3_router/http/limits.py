"""The bounds of sizes and times that every message is held to: `LimitSettings`, as plain attributes.

Read some ten times a request; an attribute of the settings costs thirty times one of these.
"""

from m3_router.config import LimitSettings


class Limits:
    """What `LimitSettings` says, in bytes and seconds."""

    __slots__ = (
        "attempts",
        "body_bytes",
        "body_stall_seconds",
        "buffered_bytes",
        "comment_seconds",
        "connect_seconds",
        "connections",
        "first_byte_seconds",
        "head_bytes",
        "head_seconds",
        "idle_seconds",
        "keep_alive_seconds",
    )

    def __init__(self, settings: LimitSettings) -> None:
        self.attempts: int = settings.attempts
        self.body_bytes: int = settings.body_bytes
        self.body_stall_seconds: float = settings.body_stall_seconds
        self.buffered_bytes: int = settings.buffered_bytes
        self.comment_seconds: float = settings.comment_seconds
        self.connect_seconds: float = settings.connect_seconds
        self.connections: int = settings.connections
        self.first_byte_seconds: float = settings.first_byte_seconds
        self.head_bytes: int = settings.head_bytes
        self.head_seconds: float = settings.head_seconds
        self.idle_seconds: float = settings.idle_seconds
        self.keep_alive_seconds: float = settings.keep_alive_seconds
