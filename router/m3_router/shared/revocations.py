"""Keys that an administrator has revoked at once, on every replica, before the keys file says the same.

Owns the set in Redis: digests, each until when. Every replica reads it twice a second. An entry lives for a day; a
replica whose table still has the key renews it, so a revoked key stays revoked until it has left every table, also
through a Redis that loses its data. Without Redis a revocation holds on this replica, and is told once Redis is back.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from m3_router.shared.link import Command, Failure
from m3_router.tenants.tenants import Tenants

POLL_SECONDS: Final = 0.5
ENTRY_SECONDS: Final = 86_400

T = TypeVar("T")


class Caller(Protocol):
    """The part of `link.Link` that is used here."""

    def key(self, *parts: str) -> str: ...
    async def call(self, name: str, make: "Command[T]") -> T | Failure: ...


class Revocations:
    """This replica's view of the revoked keys. Feeds `Tenants.revoke`."""

    def __init__(self, link: Caller, tenants: Tenants, wall_clock: Callable[[], float]) -> None:
        self._link = link
        self._tenants = tenants
        self._wall_clock = wall_clock
        self._key = link.key("revoked")

    async def revoke(self, digest: bytes) -> bool:
        """Refuse a key (its SHA-256 digest) from now on. Returns whether the other replicas will hear of it now."""
        self._tenants.revoke(self._tenants.revoked | {digest})
        return await self._write({digest})

    async def run(self) -> None:
        """Read and renew, until cancelled."""
        while True:
            await self.poll()
            await asyncio.sleep(POLL_SECONDS)

    async def poll(self) -> bool:
        """Take in what others have revoked. Returns whether Redis was there to say it."""
        now = self._wall_clock()

        async def read(redis: Any) -> list[tuple[bytes, float]]:  # noqa: ANN401 - see link.Command
            entries: list[tuple[bytes, float]] = await redis.zrange(self._key, 0, -1, withscores=True)
            return entries

        reply = await self._link.call("revoked.read", read)
        if isinstance(reply, Failure):
            return False
        until = {bytes.fromhex(member.decode()): score for member, score in reply if score > now}
        tenants = self._tenants
        kept = {digest for digest in tenants.revoked if tenants.has_key(digest)}
        tenants.revoke(kept | until.keys())
        in_table = {digest for digest in tenants.revoked if tenants.has_key(digest)}
        fading = {digest for digest in in_table if until.get(digest, 0.0) < now + ENTRY_SECONDS / 2}
        if fading:
            await self._write(fading)
        return True

    async def _write(self, digests: set[bytes]) -> bool:
        now = self._wall_clock()

        async def write(redis: Any) -> None:  # noqa: ANN401 - see link.Command
            pipeline = redis.pipeline(transaction=True)
            pipeline.zadd(self._key, {digest.hex(): now + ENTRY_SECONDS for digest in digests})
            pipeline.zremrangebyscore(self._key, "-inf", now)
            pipeline.expire(self._key, ENTRY_SECONDS)
            await pipeline.execute()

        return not isinstance(await self._link.call("revoked.write", write), Failure)
