"""The stream by which every replica learns which worker was sent which prefix, so that all place alike.

    note(), gone() ---- 10 ms ----> XADD --> stream --> XREAD --> index.apply(), index.drop() of every other replica

Owns both ends of the stream and the place in it up to which this replica has read. What is known is the index's
(`affinity`), what an entry holds is `affinity_records`' concern.

A new replica reads the last `replaySeconds` before `is_caught_up`. Redis away: notes gather, bounded, and are sent
when it is back; a new replica waits ALONE_SECONDS for it and then goes on alone. Redis back empty (`_life`, a key of
random content, is another one): every replica sends again what it has told lately, and is told what the others have.
All of it may be told twice: an index is a set. The stream holds about as many blocks as an index.

What a replica cannot know: one that starts in the seconds between Redis' return without its data and the others
noticing it is caught up with an empty stream, and is told the rest as it comes.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from typing import Any, Final, Protocol

from m3_router.config import AffinitySettings
from m3_router.shared.affinity_notes import Note, Told, records_of
from m3_router.shared.affinity_records import Held, Outbox, decode, encode
from m3_router.shared.link import Failure, Link

BATCH_SECONDS: Final = 0.01  # notes of so long make one entry
SEND_PAUSE_SECONDS: Final = 0.04  # between two entries: under load each has hundreds of notes
READ_PAUSE_SECONDS: Final = 0.04  # between two reads: what came meanwhile is one reply
READ_WAIT_SECONDS: Final = 1.0
READ_ENTRIES: Final = 64
APPLY_BLOCKS: Final = 4096  # before other work of the loop has its turn
RETRY_SECONDS: Final = 0.25
SEND_BYTES: Final = 128 * 1024  # in one call
OUTBOX_BYTES: Final = 8 * 2**20
ALONE_SECONDS: Final = 5.0  # without Redis, until a new replica goes on without it
LIFE_SECONDS: Final = 5.0  # between two looks at whether Redis still has what it was told
MIN_ENTRIES: Final = 1_000
MAX_ENTRIES: Final = 500_000
_TOLD_SHARE: Final = 16  # of an index: eight replicas that tell so much have not filled a generation before they repeat
_OWNER, _DATA = b"r", b"d"


class Index(Protocol):
    """What is told: the `affinity.Affinity` of a pool."""

    def apply(self, uid: str, epoch: str, digests: list[int]) -> None:
        """Another replica has sent the worker these blocks."""

    def drop(self, uid: str, epoch: str, digests: list[int]) -> None:
        """The worker has lost these blocks, as another replica has heard. Nothing for an unknown worker or epoch."""


def stream_entries(index_blocks: int, entry_blocks: float) -> int:
    """How many entries the stream keeps, of `entry_blocks` blocks on average.

    They hold as much as the two generations of an index, which is all that a reader could make use of.
    """
    return min(max(int(2 * index_blocks / max(entry_blocks, 1.0)), MIN_ENTRIES), MAX_ENTRIES)


class AffinityLog:
    """This replica's part in the stream. `run` until it is cancelled."""

    def __init__(self, link: Link, replica: str, indexes: Mapping[str, Index], settings: AffinitySettings) -> None:
        """`replica`: an id of this process, by which it knows its own entries. `indexes`: by name of the pool."""
        self._link = link
        self._replica = replica.encode()
        self._indexes = indexes
        self._settings = settings
        self._key = link.key("affinity")
        self._life_key = link.key("affinity", "life")
        self._notes: list[Note] = []
        self._wake = asyncio.Event()
        self._told = Told(settings.index_blocks // _TOLD_SHARE, settings.replay_seconds / 2)
        self._outbox = Outbox(OUTBOX_BYTES)
        self._entry_blocks = 1.0  # mean, moving
        self._position: str | None = None  # in the stream; None before the first read
        self._life: bytes | None = None
        self.is_caught_up = False
        self.sent_entries = 0
        self.read_entries = 0  # of others
        self.malformed = 0

    @property
    def waiting_entries(self) -> int:
        """Entries that Redis has not got yet."""
        return self._outbox.unsent

    @property
    def dropped_entries(self) -> int:
        """Entries that waited in vain: Redis was away for too long."""
        return self._outbox.dropped

    def note(self, pool: str, uid: str, epoch: str, chain: list[int]) -> None:
        """A worker is sent a prompt with this chain. On the way of a request: keeps the list, which must not change."""
        if not self._notes:
            self._wake.set()
        self._notes.append(((pool, uid, epoch), chain, True))

    def gone(self, pool: str, uid: str, epoch: str, digests: list[int]) -> None:
        """A worker says that it does not hold these any more; the index of this replica knows already."""
        if not self._notes:
            self._wake.set()
        self._notes.append(((pool, uid, epoch), digests, False))

    async def run(self) -> None:
        """Tell and be told, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            tasks.create_task(self._read())
            tasks.create_task(self._watch_life())
            tasks.create_task(self._go_alone())

    # Telling.

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_SECONDS)
            self._wake.clear()
            self._gather(loop.time())
            while entries := self._outbox.next(SEND_BYTES):
                if isinstance(await self._send(entries), Failure):
                    self._wake.set()
                    await asyncio.sleep(RETRY_SECONDS)
                    break
                self._outbox.sent(entries)
                self.sent_entries += len(entries)
            await asyncio.sleep(SEND_PAUSE_SECONDS)

    def _gather(self, now: float) -> None:
        notes, self._notes = self._notes, []
        records = records_of(notes, self._told, now)
        entries = list(encode(records))
        blocks = sum([len(record.digests) for record in records])
        for entry in entries:
            self._outbox.add(entry)
            self._entry_blocks += 0.01 * (blocks / len(entries) - self._entry_blocks)

    async def _send(self, entries: list[bytes]) -> object:
        longest = stream_entries(self._settings.index_blocks, self._entry_blocks)

        async def add(redis: Any) -> object:  # noqa: ANN401 - see link.Command
            pipeline = redis.pipeline(transaction=False)
            for entry in entries:
                fields = {_OWNER: self._replica, _DATA: entry}
                pipeline.xadd(self._key, fields, maxlen=longest, approximate=True)
            return await pipeline.execute()

        return await self._link.call("affinity.tell", add)

    # Being told.

    async def _read(self) -> None:
        while True:
            await self._link.until_shared()
            if self._position is None:
                self._position = await self._replay_start()
            entries = await self._next_entries()
            if entries is None:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            await self._apply(entries)
            if len(entries) < READ_ENTRIES:
                self.is_caught_up = True
                await asyncio.sleep(READ_PAUSE_SECONDS)

    async def _replay_start(self) -> str | None:
        reply = await self._link.call("affinity.time", lambda redis: redis.time())
        if isinstance(reply, Failure):
            return None
        seconds, _ = reply
        return f"{max(int(seconds - self._settings.replay_seconds), 0) * 1000}-0"

    async def _next_entries(self) -> list[Any] | None:
        """What comes after the position, which moves behind it; None if Redis did not say."""
        position, life = self._position, self._life
        if position is None:
            return None
        wait_seconds = READ_WAIT_SECONDS if self.is_caught_up else 0.0

        async def read(redis: Any) -> Any:  # noqa: ANN401 - see link.Command
            block_ms = int(wait_seconds * 1000) or None  # 0 would wait for ever
            return await redis.xread({self._key: position}, count=READ_ENTRIES, block=block_ms)

        reply = await self._link.waiting_call("affinity.read", read, wait_seconds)
        if isinstance(reply, Failure):
            return None
        entries: list[Any] = reply[0][1] if reply else []
        if entries and life is self._life:
            self._position = entries[-1][0].decode()
        return entries

    async def _apply(self, entries: list[Any]) -> None:
        applied = 0
        for _, fields in entries:
            if fields.get(_OWNER) == self._replica:
                continue
            self.read_entries += 1
            try:
                records = decode(fields[_DATA])
            except (KeyError, ValueError):
                self.malformed += 1
                continue
            for record in records:
                if (index := self._indexes.get(record.pool)) is None:
                    continue  # a replica with other settings
                digests = record.digests
                if isinstance(record, Held):
                    index.apply(record.uid, record.epoch, digests)
                else:
                    index.drop(record.uid, record.epoch, digests)
                    self._told.gone((record.pool, record.uid, record.epoch), digests)
                applied += len(digests)
                if applied >= APPLY_BLOCKS:
                    applied = 0
                    await asyncio.sleep(0)

    # Whether Redis has what it was told.

    async def _watch_life(self) -> None:
        while True:
            await self._link.until_shared()
            life = await self._look_at_life()
            if life is None:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if self._life is not None and life != self._life:
                self._position = "0-0"  # what others tell again may have any id
                self._told.forget()
                self._outbox.send_again()
                self._wake.set()
            self._life = life
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LIFE_SECONDS):
                    await self._link.until_local()

    async def _look_at_life(self) -> bytes | None:
        kept_seconds = int(2 * self._settings.replay_seconds) + 1

        async def look(redis: Any) -> Any:  # noqa: ANN401 - see link.Command
            pipeline = redis.pipeline(transaction=False)
            pipeline.set(self._life_key, secrets.token_bytes(16), nx=True)
            pipeline.expire(self._life_key, kept_seconds)
            pipeline.expire(self._key, kept_seconds)
            pipeline.get(self._life_key)
            return (await pipeline.execute())[-1]

        reply = await self._link.call("affinity.life", look)
        return None if isinstance(reply, Failure) else reply

    async def _go_alone(self) -> None:
        """Be caught up with nobody, if Redis does not take part for ALONE_SECONDS."""
        loop = asyncio.get_running_loop()
        away_since = loop.time()
        while not self.is_caught_up:
            await asyncio.sleep(RETRY_SECONDS)
            if self._link.mode == "shared":
                away_since = loop.time()
            elif loop.time() - away_since >= ALONE_SECONDS:
                self.is_caught_up = True
