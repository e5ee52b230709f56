"""Limits that hold over all replicas, though each admits requests by itself: who may use how much of a window.

Owns the protocol between the replicas; counting is `quotas`, the atomic step `lease_script`. Nothing waits for this: it
moves allowances between replicas several times a second, and what it has not moved yet is refused or admitted without
it. With `limit` L, n live replicas, and replica i's allowance A_i and use u_i <= A_i in one window:

1. A window begins with A_i = L/n, and nobody asks anybody. Idle tenants cost nothing.
2. Who changes something registers (A_i, u_i) in the window's hash, once a second; at once when it has used half of its
   headroom. What it wants is u_i + (L - sum u) / n: an equal share of what is left. It gets at most L - sum A_j, and
   *nothing above its A_i until every live replica has registered in this window*: who has not may hold L/n, or, if
   Redis has lost its data, whatever it held before.
3. Who gets less than it wants lists the window in a set, which every replica reads in each round. The others register
   then, and give back what is more than their share of what is left. What is given back is given up here first, and
   told in the next call (`keep`), so that no request can use it while the call is under way, or if its answer is lost.
4. A request that needs more than its replica's headroom, though it is left, is refused with Retry-After 1; and its
   amount is asked for: the others keep only shares of the rest. Of several such needs one goes first, for a second.
5. A replica that joins holds nothing of the windows that are open (`join`, before it is ready). Once the others hear
   of it, each lets idle windows have the share of one more replica, registers in all that it has used, and then says
   so (its view). When all have, the newcomer takes its share of the windows in which nobody has registered, and
   registers in the rest. One that leaves turns its registrations into use (`leave`). Of one that vanished (5 s without
   a beat), its use counts and its headroom is free again; what it had in flight counts no more.

So sum A_i <= L at each moment, and the sum of what is admitted never exceeds a limit, while replicas reach Redis,
whether they come or go; nor when Redis freezes, dies, or comes back empty under all of them: each goes on with the A_i
it has, L/n in the windows that begin meanwhile. The stated slice, by which the sum may exceed: what a replica had
admitted in the last second before it was killed; and, for each replica that lost Redis while the others did not, the
headroom it had, at most its share or one request. An answer that is longer than its reservation adds what it is longer.
The windows' numbers are in their keys: replicas whose clocks differ turn at different moments, and share each window.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from m3_router.shared.lease_script import KNOWN, LEAVE, REGISTER, VIEW, Claim, Granted, decode_reply
from m3_router.shared.link import Command, Failure
from m3_router.tenants.meters import Meter
from m3_router.tenants.quotas import Quota, Quotas

ROUND_SECONDS: Final = 0.1
GATHER_SECONDS: Final = 0.01  # between two rounds, however urgent
REPORT_SECONDS: Final = 1.0  # what is not urgent waits for so long at most
WANT_SECONDS: Final = 3.0  # what a refused request needs is kept for its retry
SETTLE_SECONDS: Final = 0.5  # two beats: until every replica has heard of a new one
JOIN_SECONDS: Final = 5.0
BATCH_WINDOWS: Final = 32  # of one call: short for whoever shares this Redis
KNOWN_WINDOWS: Final = 128  # of one call that only looks
_MARGIN_SECONDS: Final = 120  # that a window's hash outlives it
_GAUGE_SECONDS: Final = 120  # renewed while it changes
_TOTAL_SECONDS: Final = 400 * 86_400
_VIEW_SECONDS: Final = 600

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Caller(Protocol):
    """The part of `link.Link` that is used here."""

    @property
    def mode(self) -> str: ...

    def key(self, *parts: str) -> str: ...
    async def call(self, name: str, make: "Command[T]") -> T | Failure: ...
    async def until_shared(self) -> None: ...


class Peers(Protocol):
    """The part of `replicas.Replicas` that is used here."""

    @property
    def id(self) -> str: ...
    @property
    def names(self) -> Mapping[str, str]: ...


class Leases:
    """This replica's end of the protocol. `join` first, then `run` until it is cancelled, then `leave`."""

    def __init__(
        self,
        link: Caller,
        peers: Peers,
        quotas: Quotas,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` is monotonic, `wall_clock` since the epoch. Takes the quotas' shares away until `join`."""
        self._link = link
        self._peers = peers
        self._quotas = quotas
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._asked_key = link.key("quota", "asked")
        self._views_key = link.key("quota", "views")
        self._live: tuple[str, ...] = ()
        self._has_newcomers = False  # not adapted to yet
        self._reports: dict[Quota, None] = {}  # changed, and not urgent
        self._reported_at = clock()
        self._urgent: dict[Meter, Quota] = {}  # have less than they want
        self._wanting: dict[Meter, Quota] = {}  # a request was refused for want of more
        self._answered: dict[str, str] = {}  # what others ask for, by key: the mark of the asking that was answered
        self._hunger = asyncio.Event()
        self._is_joining = False
        quotas.on_hunger = self._hunger.set
        quotas.share_among(0, 0, wall_clock())

    async def join(self, within_seconds: float = JOIN_SECONDS) -> bool:
        """Take this replica's part of all open windows. Returns whether it has; if not, it takes equal shares.

        Call it while `Replicas.run` and `Link.run` are running, before being ready.
        """
        self._is_joining = True
        try:
            async with asyncio.timeout(within_seconds):
                await self._link.until_shared()
                await self._sleep(SETTLE_SECONDS)
                await self._take_part()
        except TimeoutError:
            _log.warning("quotas begin with equal shares: the replicas did not agree within %g s", within_seconds)
            has_agreed = False
        else:
            has_agreed = True
        self._is_joining = False
        if not has_agreed:
            self._count_peers()
            self._take_shares()
        return has_agreed

    async def run(self) -> None:
        """Rounds, until cancelled."""
        while True:
            await self.round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._hunger.wait()
            self._hunger.clear()
            await self._sleep(GATHER_SECONDS)

    async def round(self) -> None:
        """Tell what has changed here, answer what others ask for, and take what is granted."""
        self._count_peers()
        self._quotas.can_grow = self._link.mode == "shared" and len(self._live) > 1
        is_report = self._clock() - self._reported_at >= REPORT_SECONDS
        due = self._due(is_report)
        if self._has_newcomers:
            due.update(self._all_used())
        is_told = await self._register(due) if due or len(self._live) > 1 else True
        if is_told and len(self._live) > 1 and (is_report or self._has_newcomers):
            self._has_newcomers = False
            await self._tell_view(self._live)

    async def leave(self) -> None:
        """Let the others have what this replica will not use. Call it when nothing is in flight any more."""
        wall = self._wall_clock()
        meters = [
            (quota, meter)
            for quota in self._quotas.all()
            for meter in quota.meters
            if meter.is_current(wall) and (meter.is_leased or meter.used)
        ]
        for begin in range(0, len(meters), BATCH_WINDOWS):
            part = meters[begin : begin + BATCH_WINDOWS]
            keys = [self._key(quota, meter) for quota, meter in part]
            arguments: list[str | int] = [self._peers.id]
            for _, meter in part:
                arguments += [meter.used if meter.period != "now" else 0, _seconds_to_live(meter, wall)]
            await self._evaluate("quota.leave", LEAVE, keys, arguments)

    def _count_peers(self) -> None:
        live = tuple(sorted(self._peers.names))
        if live == self._live:
            return
        self._has_newcomers = self._has_newcomers or not set(live) <= set(self._live)
        self._live = live
        self._quotas.share_among(len(live), live.index(self._peers.id), self._wall_clock())

    def _take_shares(self) -> None:
        wall = self._wall_clock()
        for quota in self._quotas.all():
            for meter in quota.meters:
                if meter.is_current(wall) and not meter.is_leased:
                    meter.allow(max(meter.allowance, self._quotas.share(meter)))

    def _all_used(self) -> dict[Meter, Quota]:
        """What is to be told to a newcomer. Windows that nobody has used are left to the smaller share at once."""
        wall = self._wall_clock()
        used: dict[Meter, Quota] = {}
        for quota in self._quotas.all():
            for meter in quota.meters:
                if not meter.is_current(wall):
                    continue
                if meter.used or meter.is_leased:
                    used[meter] = quota
                else:
                    meter.allow(min(meter.allowance, self._quotas.share(meter)))
        return used

    async def _take_part(self) -> None:
        """Wait until the others have adapted to this replica; then take shares of what is idle, register elsewhere."""
        while True:
            self._live = live = tuple(sorted(self._peers.names))
            views = await self._tell_view(live)
            if all(self._peers.id in views.get(other, "").split(",") for other in live):
                break
            await self._sleep(ROUND_SECONDS)
        self._has_newcomers = False
        self._quotas.share_among(len(live), live.index(self._peers.id), self._wall_clock())
        waiting = await self._used_by_others()
        while waiting:
            await self._register(waiting)
            waiting = {m: quota for m, quota in waiting.items() if not m.is_leased or m in self._urgent}
            if waiting:
                await self._sleep(ROUND_SECONDS)

    async def _used_by_others(self) -> dict[Meter, Quota]:
        """The open windows in which somebody has registered. Of all others this replica takes its share."""
        wall = self._wall_clock()
        windows: list[tuple[Meter, Quota]] = []
        for quota in self._quotas.all():
            quota.turn(wall)
            windows += [(meter, quota) for meter in quota.meters if not meter.is_leased]
        found: dict[Meter, Quota] = {}
        for begin in range(0, len(windows), KNOWN_WINDOWS):
            part = windows[begin : begin + KNOWN_WINDOWS]
            keys = [self._key(quota, meter) for meter, quota in part]
            reply = await self._evaluate("quota.known", KNOWN, keys, [])
            for (meter, quota), is_known in zip(
                part, [1] * len(part) if isinstance(reply, Failure) else reply, strict=True
            ):
                if is_known:
                    found[meter] = quota
                else:
                    meter.allow(self._quotas.share(meter))
        return found

    async def _tell_view(self, live: tuple[str, ...]) -> dict[str, str]:
        """Say that this replica has adapted to these. Returns the views of all that are known."""
        arguments: list[str | int] = [self._peers.id, ",".join(live), _VIEW_SECONDS]
        reply = await self._evaluate("quota.view", VIEW, [self._views_key], arguments)
        if isinstance(reply, Failure):
            return {}
        return {reply[i].decode(): reply[i + 1].decode() for i in range(0, len(reply), 2)}

    def _due(self, is_report: bool) -> dict[Meter, Quota]:
        """What is to be told in this round; it is urgent where a meter is hungry or a request was refused."""
        now, wall = self._clock(), self._wall_clock()
        for quota in self._quotas.take_touched():
            self._reports[quota] = None
            if quota.is_hungry:
                quota.is_hungry = False
                for meter in quota.meters:
                    if meter.wanted:
                        self._wanting[meter] = quota
                    if meter.wanted or meter.used > meter.low_water:
                        self._urgent[meter] = quota
        self._urgent = {m: quota for m, quota in self._urgent.items() if m.is_current(wall) and m in quota.meters}
        due = dict(self._urgent)
        for meter, quota in list(self._wanting.items()):
            if now - meter.wanted_at >= WANT_SECONDS or not meter.is_current(wall):
                meter.wanted = 0
                del self._wanting[meter]
                if meter.is_current(wall):
                    due[meter] = quota
        if is_report:
            self._reported_at = now
            due.update((meter, quota) for quota in self._reports for meter in quota.meters if meter.is_current(wall))
            self._reports.clear()
        return due

    async def _register(self, due: dict[Meter, Quota]) -> bool:
        """Register these, and then those that others ask for or that have more than their share.

        Returns whether Redis has answered everything.
        """
        for is_first in (True, False, False):  # second: what is asked for; third: what was given back for it
            again: dict[Meter, Quota] = {}
            meters = list(due.items())
            for begin in range(0, max(1, len(meters)), BATCH_WINDOWS):
                part = meters[begin : begin + BATCH_WINDOWS]
                more = await self._register_batch(part, reads_asked=is_first and begin == 0)
                if more is None:
                    return False
                again.update(more)
            if not again:
                break
            due = again
        return True

    async def _register_batch(
        self, meters: list[tuple[Meter, Quota]], *, reads_asked: bool
    ) -> dict[Meter, Quota] | None:
        """One call. Returns what is to be registered next, None if there was no answer."""
        wall = self._wall_clock()
        windows = [meter.window for meter, _ in meters]
        claims = [self._claim(meter, quota, wall) for meter, quota in meters]
        keys = [self._asked_key, *(claim.key for claim in claims)]
        arguments: list[str | int] = [self._peers.id, ",".join(self._live), int(reads_asked)]
        for claim in claims:
            arguments += claim.arguments()
        reply = await self._evaluate("quota.register", REGISTER, keys, arguments)
        if isinstance(reply, Failure):
            return None
        marks, outcomes = decode_reply(reply)
        again = self._asked_for(marks) if reads_asked else {}
        for (meter, quota), window, outcome in zip(meters, windows, outcomes, strict=True):
            if meter.window == window and self._take(meter, quota, outcome):
                again[meter] = quota
        return again

    def _claim(self, meter: Meter, quota: Quota, wall: float) -> Claim:
        return Claim(
            key=self._key(quota, meter),
            limit=meter.limit,
            used=meter.used,
            keep=max(meter.used, meter.allowance),
            held=meter.allowance,
            want=meter.wanted,
            gone=meter.gone_used if meter.is_leased else 0,
            seconds=_seconds_to_live(meter, wall),
            counts_gone=meter.period != "now",
            asks=meter in self._urgent or self._is_joining,
        )

    def _take(self, meter: Meter, quota: Quota, outcome: Granted) -> bool:
        """Use what was granted, and give up what is more than a share. Returns whether something must be told again."""
        meter.is_leased = True
        meter.others_used = outcome.others_used
        meter.gone_used = outcome.gone_used
        has_given_up = meter.wanted > meter.left
        if has_given_up:
            meter.wanted = 0
        share = max(0, meter.left - outcome.yielded) // max(1, len(self._live))
        if not outcome.yielded:  # else another replica's need goes first
            share = max(meter.wanted, share)
        headroom = outcome.granted - meter.used
        if headroom - share > share // 8:
            meter.allow(meter.used + share)
            self._urgent.pop(meter, None)
            return True
        meter.allow(outcome.granted)
        is_met = headroom >= (meter.wanted or (share + 1) // 2)
        if is_met:
            self._urgent.pop(meter, None)
        elif self._is_joining:
            self._urgent[meter] = quota
        return has_given_up

    def _asked_for(self, marks: dict[str, str]) -> dict[Meter, Quota]:
        wall = self._wall_clock()
        found: dict[Meter, Quota] = {}
        for key, mark in marks.items():
            if self._answered.get(key) == mark:
                continue
            *_, tenant, name, window = key.split(":")
            quota = self._quotas.get(tenant)
            if quota is not None:
                quota.turn(wall)
                found.update((m, quota) for m in quota.meters if m.name == name and str(m.window) == window)
        self._answered = marks
        return found

    async def _evaluate(self, name: str, script: str, keys: list[str], arguments: list[str | int]) -> Any | Failure:  # noqa: ANN401 - a reply
        async def evaluate(redis: Any) -> Any:  # noqa: ANN401 - see link.Command
            return await redis.eval(script, len(keys), *keys, *arguments)

        return await self._link.call(name, evaluate)

    def _key(self, quota: Quota, meter: Meter) -> str:
        return self._link.key("quota", quota.tenant, meter.name, str(meter.window))


def _seconds_to_live(meter: Meter, wall: float) -> int:
    if meter.period == "now":
        return _GAUGE_SECONDS
    if meter.period == "total":
        return _TOTAL_SECONDS
    return max(0, int(meter.ends_at - wall)) + _MARGIN_SECONDS
