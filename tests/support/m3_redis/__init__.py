"""A real redis-server for tests, on a Unix socket of its own, and every way in which it can fail.

    with running_redis() as server:
        settings = RedisSettings(url=server.url, call_seconds=CALL_SECONDS)
        server.freeze(); server.thaw()            # SIGSTOP and SIGCONT: connections stay open, nothing is answered
        server.kill(); server.start()             # SIGKILL, and back without what it held
        server.fill(); server.make_room()         # every write is refused (OOM), reads go on

Owns the process and its directory. It keeps nothing on disk, so each start is an empty one.
"""

from m3_redis.link import CALL_SECONDS, WITHIN_SECONDS, eventually, running_link
from m3_redis.server import RedisServer, find_redis_server, running_redis

__all__ = [
    "CALL_SECONDS",
    "WITHIN_SECONDS",
    "RedisServer",
    "eventually",
    "find_redis_server",
    "running_link",
    "running_redis",
]
