"""Who else routes to the same workers, and how much each has in flight on them.

Every replica (process) writes a report of itself into one Redis hash, four times a second, and reads all others in the
same round trip. Owns the reports and what follows from them: who is live, how many replicas there are, and the tokens
that others have on each worker. What a quota or a placement makes of that is theirs.

Nobody's clock is compared with anybody's: a replica is live while its beat counts up, as seen by reports of our own
that Redis answered. So nobody is given up while Redis is away; `count` stays what it was, and the tokens of others,
which are soon untrue, are forgotten. A Redis that comes back empty is filled by the next reports.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from m3_router.shared.link import Failure, Link

BEAT_SECONDS: Final = 0.25
SILENT_BEATS: Final = 20  # of ours, until another is gone: longer than its link may need to notice that Redis is back
STALE_BEATS: Final = 6  # until what it had in flight counts no longer
KEY_SECONDS: Final = 60
MAX_REPLICAS: Final = 4096
_LEFT: Final = -1  # the beat of a replica that said goodbye


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What one replica says of itself."""

    beat: int
    name: str
    tokens: dict[str, int]  # in flight by uid of the worker


class Neighbours:
    """What the reports of others come to. Pure: fed with one reading of all reports after the other."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}
        self._silent: dict[str, int] = {}  # readings since the beat last changed

    @property
    def names(self) -> dict[str, str]:
        """Names of the others that are live, by id."""
        return {replica: report.name for replica, report in self._reports.items()}

    def read(self, reports: Mapping[str, Report]) -> list[str]:
        """Take a reading. Returns the ids in it of those that are gone, whose reports may be deleted."""
        for replica in self._reports:
            self._silent[replica] += 1
        gone = []
        for replica, report in reports.items():
            known = self._reports.get(replica)
            if report.beat == _LEFT:
                self._reports.pop(replica, None)
                gone.append(replica)
            elif known is None or known.beat != report.beat:
                self._reports[replica] = report
                self._silent[replica] = 0
        for replica in [replica for replica in self._reports if self._silent[replica] >= SILENT_BEATS]:
            del self._reports[replica]
            gone.append(replica)
        self._silent = {replica: self._silent[replica] for replica in self._reports}
        return [replica for replica in gone if replica in reports]

    def tokens(self) -> dict[str, int]:
        """Tokens that the others have in flight, by uid of the worker."""
        total: dict[str, int] = {}
        for replica, report in self._reports.items():
            if self._silent[replica] < STALE_BEATS:
                for uid, tokens in report.tokens.items():
                    total[uid] = total.get(uid, 0) + tokens
        return total


class Replicas:
    """This replica among the others. `run` reports until it is cancelled; `leave` says goodbye."""

    def __init__(
        self,
        link: Link,
        name: str,
        own_tokens: Callable[[], dict[str, int]],
        *,
        on_count: Callable[[int], None],
        on_tokens: Callable[[dict[str, int]], None],
    ) -> None:
        """`own_tokens()`: what this replica has in flight, by uid of the worker; asked four times a second.

        `on_count(count)` and `on_tokens(tokens of the others by uid)` are called in the loop when these have changed. A
        worker that is missing from `tokens` has none.
        """
        self.id = uuid.uuid4().hex
        self.count = 1  # live replicas, this one among them; the last known while Redis is away
        self.malformed = 0  # reports that could not be read
        self._link = link
        self._name = name
        self._own_tokens = own_tokens
        self._on_count = on_count
        self._on_tokens = on_tokens
        self._key = link.key("replicas")
        self._beat = 0
        self._neighbours = Neighbours()
        self._tokens: dict[str, int] = {}  # as told last
        self._unanswered = 0

    @property
    def names(self) -> dict[str, str]:
        """All live replicas' names by id, as last known."""
        return {self.id: self._name, **self._neighbours.names}

    async def run(self) -> None:
        """Report and read four times a second, until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> None:
        """Report once, and take in what the others say."""
        self._beat += 1
        report = Report(self._beat, self._name, {uid: tokens for uid, tokens in self._own_tokens().items() if tokens})
        reply = await self._exchange(report)
        if isinstance(reply, Failure):
            self._unanswered += 1
            if self._unanswered == STALE_BEATS:
                self._tell_tokens({})
            return
        self._unanswered = 0
        gone = self._neighbours.read(self._decode(reply))
        if gone:
            await self._link.call("replicas.forget", lambda redis: redis.hdel(self._key, *gone))
        self._tell_tokens(self._neighbours.tokens())
        count = 1 + len(self._neighbours.names)
        if count != self.count:
            self.count = count
            self._on_count(count)

    async def leave(self) -> None:
        """Let the others know at once that this replica is gone. Call it after `run` was cancelled."""
        await self._exchange(Report(_LEFT, self._name, {}))

    async def _exchange(self, report: Report) -> dict[bytes, bytes] | Failure:
        data = msgspec.msgpack.encode(report)

        async def write_and_read(redis: Any) -> dict[bytes, bytes]:  # noqa: ANN401 - see link.Command
            pipeline = redis.pipeline(transaction=False)
            pipeline.hset(self._key, self.id, data)
            pipeline.expire(self._key, KEY_SECONDS)
            pipeline.hgetall(self._key)
            reports: dict[bytes, bytes] = (await pipeline.execute())[-1]
            return reports

        return await self._link.call("replicas.beat", write_and_read)

    def _decode(self, fields: dict[bytes, bytes]) -> dict[str, Report]:
        reports: dict[str, Report] = {}
        for replica, data in list(fields.items())[:MAX_REPLICAS]:
            try:
                reports[replica.decode()] = msgspec.msgpack.decode(data, type=Report)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self.malformed += 1
        reports.pop(self.id, None)
        return reports

    def _tell_tokens(self, tokens: dict[str, int]) -> None:
        if tokens != self._tokens:
            self._tokens = tokens
            self._on_tokens(tokens)
