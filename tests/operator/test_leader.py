"""Which replica acts: the rules by themselves, and elections between replicas over one Lease in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from m3_operator.errors import ConflictError, NotFoundError, OperatorError, RefusedError, UnavailableError
from m3_operator.leader import Election, Held, LeaseLostError, Move, Timing, View, decide, lease_manifest, read_lease

TIMING = Timing()
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def held_by(holder: str, version: str = "1") -> Held:
    return Held(version, holder, TIMING.lease_seconds)


def test_the_holder_gives_up_before_anybody_may_take_over() -> None:
    worst = TIMING.renew_deadline_seconds + TIMING.retry_seconds
    assert worst < TIMING.lease_seconds


@pytest.mark.parametrize(
    ("view", "now", "move"),
    [
        (View(), 0, Move.TAKE),
        (View(held_by(""), seen_at=0), 0, Move.TAKE),
        (View(held_by("other"), seen_at=5), 5, Move.WAIT),
        (View(held_by("other"), seen_at=5), 16.9, Move.WAIT),
        (View(held_by("other"), seen_at=5), 17, Move.TAKE),
        (View(held_by("me"), seen_at=5), 5, Move.TAKE),
        (View(held_by("me"), seen_at=5, renewed_at=5), 12.9, Move.TAKE),
        (View(held_by("me"), seen_at=5, renewed_at=5), 13, Move.LOST),
        (View(held_by("other"), seen_at=6, renewed_at=5), 6, Move.LOST),
        (View(None, seen_at=6, renewed_at=5), 6, Move.TAKE),
    ],
    ids=[
        "no Lease: make it",
        "released: take it",
        "just seen with another: wait",
        "seen for less than its duration: wait",
        "unchanged for its duration: take it",
        "our own name after a restart in the same pod: take it at once",
        "renewed lately: renew",
        "not renewed within the deadline: lost",
        "taken by another: lost",
        "removed by somebody: make it again",
    ],
)
def test_the_next_move(view: View, now: float, move: Move) -> None:
    assert decide(view, "me", TIMING, now) is move


def test_a_lease_counts_from_when_its_version_was_first_seen_and_its_own_times_do_not_matter() -> None:
    view = View().after_reading(held_by("other", "1"), 100)
    assert view.after_reading(held_by("other", "1"), 105).seen_at == 100
    assert view.after_reading(held_by("other", "2"), 105).seen_at == 105


def test_a_lease_object_says_who_and_since_when_and_names_the_version_it_replaces() -> None:
    first = lease_manifest("ns", "m3-operator", "a", before=None, timing=TIMING, now=NOW)
    assert first["metadata"] == {"name": "m3-operator", "namespace": "ns"}
    assert first["spec"] == {
        "holderIdentity": "a",
        "leaseDurationSeconds": 12,
        "leaseTransitions": 0,
        "renewTime": "2026-11-22T12:00:00.000000Z",
        "acquireTime": "2026-11-22T12:00:00.000000Z",
    }
    taken = lease_manifest("ns", "m3-operator", "b", before=held_by("a", "7"), timing=TIMING, now=NOW)
    assert taken["metadata"]["resourceVersion"] == "7"
    assert taken["spec"]["leaseTransitions"] == 1
    renewed = lease_manifest("ns", "m3-operator", "b", before=held_by("b", "8"), timing=TIMING, now=NOW)
    assert "acquireTime" not in renewed["spec"]


def test_a_lease_without_a_spec_counts_as_released() -> None:
    assert read_lease({"metadata": {"resourceVersion": "3"}}) == Held("3", "", 0.0, 0)


@dataclass
class Leases:
    """One Lease, kept as an API server does: a write must name the version it replaces."""

    manifest: dict[str, Any] | None = None
    version: int = 0
    failure: OperatorError | None = None

    async def read(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        await self._answer()
        if self.manifest is None:
            raise NotFoundError(404, "no such lease")
        return self.manifest

    async def overwrite(self, manifest: Any) -> dict[str, Any]:
        await self._answer()
        named = manifest["metadata"].get("resourceVersion")
        if self.manifest is not None and named is None:
            raise RefusedError(422, "metadata.resourceVersion: must be specified for an update")
        if self.manifest is not None and named != self.manifest["metadata"]["resourceVersion"]:
            raise ConflictError(409, "the object has been modified")
        self.version += 1
        self.manifest = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}
        return self.manifest

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure

    @property
    def holder(self) -> str:
        assert self.manifest is not None
        return str(self.manifest["spec"]["holderIdentity"])


@dataclass
class Time:
    """A clock that only moves when somebody sleeps on it; `skew_seconds` is what a replica's own clock differs by."""

    now: float = 0.0
    sleepers: list[tuple[float, asyncio.Event]] = field(default_factory=list)

    def clock(self, skew_seconds: float) -> Callable[[], float]:
        return lambda: self.now + skew_seconds

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self.sleepers.append((self.now + seconds, event))
        await event.wait()

    async def run(self, seconds: float) -> None:
        """Let time pass, waking sleepers in order."""
        end = self.now + seconds
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            due = [entry for entry in self.sleepers if entry[0] <= end]
            if not due:
                break
            first = min(due, key=lambda entry: entry[0])
            self.sleepers.remove(first)
            self.now = max(self.now, first[0])
            first[1].set()
        self.now = end


@dataclass
class Scene:
    """Replicas over one Lease."""

    leases: Leases = field(default_factory=Leases)
    time: Time = field(default_factory=Time)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def replica(self, name: str, skew_seconds: float = 0.0) -> Election:
        return Election(
            self.leases,
            "ns",
            "m3-operator",
            name,
            monotonic=self.time.clock(skew_seconds),
            sleep=self.time.sleep,
        )

    def start(self, work: Awaitable[Any]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self.tasks.append(task)
        return task


@pytest.fixture
async def scene() -> Any:
    found = Scene()
    yield found
    for task in found.tasks:
        task.cancel()
    await asyncio.gather(*found.tasks, return_exceptions=True)


async def lead(election: Election) -> None:
    await election.acquire()
    await election.keep()


async def test_of_two_that_start_together_one_leads(scene: Scene) -> None:
    a, b = scene.replica("a"), scene.replica("b")
    scene.start(lead(a))
    scene.start(lead(b))
    await scene.time.run(60)
    assert [a.is_leader, b.is_leader].count(True) == 1


@pytest.mark.parametrize("skew_seconds", [0.0, -86_400.0, 1e9])
async def test_a_killed_leader_is_followed_within_a_lease_and_a_retry_whatever_the_clocks_say(
    scene: Scene, skew_seconds: float
) -> None:
    a, b = scene.replica("a"), scene.replica("b", skew_seconds)
    leading = scene.start(lead(a))
    await scene.time.run(7)
    scene.start(lead(b))
    await scene.time.run(30)
    assert a.is_leader
    assert not b.is_leader
    leading.cancel()
    await scene.time.run(TIMING.lease_seconds - TIMING.retry_seconds - 0.1)
    assert not b.is_leader, "it took a Lease that may still have been held"
    await scene.time.run(2 * TIMING.retry_seconds + 0.2)
    assert b.is_leader


async def test_a_released_lease_is_taken_at_the_next_look(scene: Scene) -> None:
    a, b = scene.replica("a"), scene.replica("b")
    leading = scene.start(lead(a))
    await scene.time.run(5)
    scene.start(lead(b))
    await scene.time.run(5)
    leading.cancel()
    await a.release()
    assert scene.leases.holder == ""
    assert not a.is_leader
    await scene.time.run(TIMING.retry_seconds)
    assert scene.leases.holder == "b"


async def test_a_release_does_not_take_the_lease_from_its_next_holder(scene: Scene) -> None:
    a, b = scene.replica("a"), scene.replica("b")
    await a.acquire()
    scene.leases.manifest = None
    await b.acquire()
    await a.release()
    assert scene.leases.holder == "b"


async def test_a_leader_that_cannot_renew_gives_up_before_its_lease_ends(scene: Scene) -> None:
    a = scene.replica("a")
    keeping = scene.start(lead(a))
    await scene.time.run(5)
    scene.leases.failure = UnavailableError(0, "connection refused")
    await scene.time.run(TIMING.renew_deadline_seconds)
    with pytest.raises(LeaseLostError, match=r"lost Lease ns/m3-operator: connection refused; another replica may act"):
        await keeping


async def test_a_leader_rides_out_a_short_outage(scene: Scene) -> None:
    a = scene.replica("a")
    keeping = scene.start(lead(a))
    await scene.time.run(4)
    scene.leases.failure = UnavailableError(503, "starting")
    await scene.time.run(TIMING.renew_deadline_seconds - 2 * TIMING.retry_seconds)
    scene.leases.failure = None
    await scene.time.run(60)
    assert a.is_leader
    assert not keeping.done()


async def test_a_leader_whose_lease_was_taken_says_by_whom(scene: Scene) -> None:
    a = scene.replica("a")
    keeping = scene.start(lead(a))
    await scene.time.run(3)
    assert scene.leases.manifest is not None
    scene.leases.version += 1
    scene.leases.manifest["metadata"]["resourceVersion"] = str(scene.leases.version)
    scene.leases.manifest["spec"]["holderIdentity"] = "z"
    await scene.time.run(TIMING.retry_seconds)
    with pytest.raises(LeaseLostError, match="z has it"):
        await keeping


async def test_a_standby_outlasts_an_api_server_that_is_away(scene: Scene) -> None:
    a = scene.replica("a")
    scene.leases.failure = UnavailableError(0, "connection refused")
    scene.start(lead(a))
    await scene.time.run(60)
    scene.leases.failure = None
    await scene.time.run(TIMING.retry_seconds)
    assert a.is_leader


async def test_rights_that_lack_are_not_waited_for(scene: Scene) -> None:
    scene.leases.failure = RefusedError(403, "leases is forbidden")
    with pytest.raises(RefusedError, match="leases is forbidden"):
        await scene.replica("a").acquire()
