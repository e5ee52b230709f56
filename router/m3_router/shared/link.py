"""The way to Redis: every call has a budget, and whether Redis takes part at all is one answer, `mode`.

Owns the connections, the breaker and its reason. `shared`: calls are made. `local`: they fail at once, cost nothing,
and a task of the link's own probes, with growing pauses, until Redis connects, takes a write and answers within the
budget. No call raises for what Redis or the network did: it returns a `Failure`, which says whether the command may
have been carried out nevertheless. What is shared, and what to do without it, is the callers'.

A full Redis (OOM), a read-only or a loading one is `local` as well: who cannot write cannot share.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from m3_router.config import RedisSettings

Mode = Literal["shared", "local"]
FailureKind = Literal["away", "timeout", "lost", "unfit", "refused"]
T = TypeVar("T")
# The client's type says of every method that it may return a plain value, too, so a call's type cannot be inferred.
Command: TypeAlias = "Callable[[Redis], Awaitable[T]]"

CONNECTIONS: Final = 4  # for calls; opened by the probe, so that no call pays for a handshake
WAITING_CONNECTIONS: Final = 8  # for calls that let Redis wait
FAILURES_TO_OPEN: Final = 3  # in a row
PROBE_SECONDS: Final = 1.0  # to connect and to answer; nobody waits for it
WAITING_MARGIN_SECONDS: Final = 1.0  # above what a waiting call asked Redis to wait: replies may be long
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0
STEADY_SECONDS: Final = 10.0  # of `shared`, before pauses begin with the first again: a flapping Redis is left alone
_LATE: Final = 1.5  # a wait that took so many times its limit was held up by the loop, not by Redis
_STOPPED: Final = "stopped"

_log = logging.getLogger(__name__)


class Failure(msgspec.Struct, frozen=True):
    """Why a call has no reply.

    `away`: not attempted. `timeout`, `lost`: no answer came, the command may have been carried out. `unfit`: Redis
    cannot take part now (full, read-only, loading, wrong password). `refused`: this one command was wrong.
    """

    kind: FailureKind
    reason: str

    @property
    def may_have_happened(self) -> bool:
        """Whether Redis may have carried the command out."""
        return self.kind in ("timeout", "lost")


class CallCounts(msgspec.Struct):
    """What became of the calls of one name."""

    answered: int = 0
    failed: int = 0
    skipped: int = 0  # in local mode
    seconds: float = 0.0  # until answers


class Link:
    """One process's way to Redis. `run` keeps it up; until its first probe the mode is local."""

    def __init__(self, settings: RedisSettings, on_mode: Callable[[Mode, str], None]) -> None:
        """`on_mode(mode, reason)` is called at each change, in the loop; it must return at once."""
        self._settings = settings
        self._on_mode = on_mode
        self._quick = _client(settings, CONNECTIONS, settings.call_seconds)
        self._waiting = _client(settings, WAITING_CONNECTIONS, PROBE_SECONDS)
        self._tasks: set[asyncio.Task[object]] = set()  # calls that were given up, until they have ended
        self._failures = 0
        self._is_shared = asyncio.Event()
        self._is_local = asyncio.Event()
        self._is_local.set()
        self.mode: Mode = "local"
        self.reason = "not connected yet"
        self.changes = 0  # of the mode: who sees another number than before has missed something
        self.counts: dict[str, CallCounts] = {}

    def key(self, *parts: str) -> str:
        """The name of a key of ours. All have one hash tag, and so one shard."""
        return ":".join(("{" + self._settings.key_prefix + "}", *parts))

    async def call(self, name: str, make: "Command[T]") -> T | Failure:
        """Do one round trip, `make(redis)`, within the budget of a call. `name` is what it is counted as."""
        return await self._bounded(self._quick, name, make, self._settings.call_seconds)

    async def waiting_call(self, name: str, make: "Command[T]", wait_seconds: float) -> T | Failure:
        """A command that lets Redis wait up to `wait_seconds` for something (XREAD BLOCK), on a connection of its own.

        Bounded by that and WAITING_MARGIN_SECONDS. For tasks that do nothing else.
        """
        return await self._bounded(self._waiting, name, make, wait_seconds + WAITING_MARGIN_SECONDS)

    async def until_shared(self) -> None:
        """Wait, for as long as it takes, until the mode is shared."""
        await self._is_shared.wait()

    async def until_local(self) -> None:
        """Wait until the mode is local."""
        await self._is_local.wait()

    async def run(self) -> None:
        """Probe while the mode is local, until cancelled."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        try:
            while True:
                failure = await self._probe()
                if failure is None:
                    begun = loop.time()
                    self._set_mode("shared", "")
                    await self._is_local.wait()
                    if loop.time() - begun >= STEADY_SECONDS:
                        pause = FIRST_PAUSE_SECONDS
                elif failure.reason != self.reason:
                    self._set_mode("local", failure.reason)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        finally:
            self._set_mode("local", _STOPPED)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._quick.aclose()
            await self._waiting.aclose()

    async def _probe(self) -> Failure | None:
        """Fill the pool with fresh connections, then see whether a write is answered within the budget of a call."""
        key = self.key("probe")

        async def write() -> object:
            return await self._quick.set(key, b"", ex=60)

        for client in (self._quick, self._waiting):
            with contextlib.suppress(exceptions.RedisError, OSError):
                await client.connection_pool.disconnect(inuse_connections=False)
        replies = await asyncio.gather(*(self._limited(write(), PROBE_SECONDS) for _ in range(CONNECTIONS)))
        failed = next((reply for reply in replies if isinstance(reply, Failure)), None)
        if failed is not None:
            return failed
        reply = await self._limited(write(), self._settings.call_seconds)
        return reply if isinstance(reply, Failure) else None

    async def _bounded(self, client: "Redis", name: str, make: "Command[T]", seconds: float) -> T | Failure:
        counts = self.counts.get(name)
        if counts is None:
            counts = self.counts[name] = CallCounts()
        if self.mode == "local":
            counts.skipped += 1
            return Failure("away", self.reason)
        loop = asyncio.get_running_loop()
        begun, changes = loop.time(), self.changes
        reply = await self._limited(make(client), seconds)
        if not isinstance(reply, Failure):
            counts.answered += 1
            counts.seconds += loop.time() - begun
            self._failures = 0
            return reply
        counts.failed += 1
        if changes == self.changes:  # else it is about connections that are no more
            self._count(reply)
        return reply

    async def _limited(self, work: Awaitable[T], seconds: float) -> T | Failure:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        task = loop.create_task(_reply(work))
        try:
            done, _ = await asyncio.wait((task,), timeout=seconds)
            if not done and loop.time() - begun > _LATE * seconds:
                done, _ = await asyncio.wait((task,), timeout=seconds)
        except asyncio.CancelledError:
            self._give_up(task)
            raise
        if done:
            return task.result()
        self._give_up(task)
        return Failure("timeout", f"no answer within {seconds * 1000:g} ms")

    def _give_up(self, task: "asyncio.Task[T | Failure]") -> None:
        """Cancel it; the client closes its connection, so that nobody gets its answer."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.cancel()

    def _count(self, failure: Failure) -> None:
        if failure.kind == "refused":
            self._failures = 0  # it answers
            return
        self._failures += 1
        if failure.kind == "unfit" or self._failures >= FAILURES_TO_OPEN:
            self._set_mode("local", failure.reason)

    def _set_mode(self, mode: Mode, reason: str) -> None:
        if (mode, reason) == (self.mode, self.reason):
            return
        is_change = mode != self.mode
        self.mode, self.reason, self._failures = mode, reason, 0
        if is_change:
            self.changes += 1
            self._tell(mode, reason)
        if mode == "shared":
            self._is_shared.set()
            self._is_local.clear()
        else:
            self._is_shared.clear()
            self._is_local.set()
        self._on_mode(mode, reason)

    def _tell(self, mode: Mode, reason: str) -> None:
        if mode == "shared":
            _log.info("Redis takes part")
        elif reason != _STOPPED:
            _log.warning("Redis does not take part, this replica goes on alone: %s", reason)


class _PasswordFile(CredentialProvider):
    """The password as the file has it at the time of each connection, so that it can be changed under us."""

    def __init__(self, username: str | None, path: Path) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """(password,) or (user, password). Raises OSError."""
        password = self._path.read_text(encoding="utf-8").strip()
        return (self._username, password) if self._username is not None else (password,)


def _client(settings: RedisSettings, connections: int, pool_seconds: float) -> "Redis":
    options: dict[str, Any] = dict(parse_url(settings.read_url()))
    if settings.password_file is not None:
        username = options.pop("username", None)
        options["credential_provider"] = _PasswordFile(str(username) if username else None, settings.password_file)
    pool = BlockingConnectionPool(
        max_connections=connections,
        timeout=pool_seconds,
        socket_timeout=None,  # the limits are the link's own, and hold for a whole call
        socket_connect_timeout=PROBE_SECONDS,
        retry=Retry(NoBackoff(), 0),  # a command is sent once: its caller knows whether to repeat it
        protocol=2,
        **options,
    )
    return Redis.from_pool(pool)


async def _reply(work: Awaitable[T]) -> T | Failure:
    try:
        return await work
    except exceptions.RedisError as error:
        return Failure(_kind(error), str(error) or type(error).__name__)
    except OSError as error:
        return Failure("lost", str(error) or type(error).__name__)


def _kind(error: exceptions.RedisError) -> FailureKind:
    unfit = (
        exceptions.OutOfMemoryError,
        exceptions.ReadOnlyError,
        exceptions.BusyLoadingError,
        exceptions.ClusterError,
        exceptions.TryAgainError,
        exceptions.AuthenticationError,
        exceptions.AuthorizationError,
    )
    if isinstance(error, unfit) or str(error).startswith("MISCONF"):
        return "unfit"
    if isinstance(error, exceptions.TimeoutError):
        return "timeout"
    if isinstance(error, exceptions.ResponseError | exceptions.DataError):
        return "refused"
    return "lost"
