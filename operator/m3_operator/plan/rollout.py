"""As many groups as wanted, of the revision that is wanted: which are made, which leave, and which wait.

Every group that has a pod is one of four:

    going      it leaves already (or lost a member and is removed); it takes a place until its last pod is gone,
               because its GPUs are not free before
    held       of the wanted revision, or staying behind (partition, paused, OnDelete); counts towards the wanted number
    excess     held, but too many: not serving ones first, then the highest index
    replaced   of another revision: leaves at once if it does not serve, else as soon as enough others do

    made:      lowest free indexes, while going + held + replaced < wanted + surge, and held < wanted
    drained:   a replaced group that serves, while available - 1 >= wanted - unavailable

The numbers go by what is available now, whoever took the rest down. A rollout whose new groups do not come up thus
stops by itself, and what recovery or a lost node took is not taken twice.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice

from m3_operator.groups import Group, GroupState
from m3_operator.names import pod_name
from m3_operator.plan.actions import CreatePods, PodAction
from m3_operator.plan.drain import drain
from m3_operator.plan.wanted import Wanted


@dataclass(frozen=True)
class Standing:
    """The groups, by what is to become of them. Indexes."""

    going: frozenset[int]
    missed: frozenset[int]
    """Of those that go: in whose place another of the wanted revision will be made."""
    held: frozenset[int]
    excess: frozenset[int]
    replaced: frozenset[int]


def stand(wanted: Wanted, groups: Mapping[int, Group], now: datetime) -> Standing:
    """What is to become of each group."""
    going = {index for index, group in groups.items() if _is_going(group)}
    others = [group for index, group in groups.items() if index not in going and group.revision != wanted.revision]
    behind = {group.index for group in _staying_behind(wanted, others, now)}
    replaced = {group.index for group in others} - behind
    held = groups.keys() - going - replaced
    by_worth = sorted((groups[index] for index in held), key=lambda group: _worth(wanted, group, now))
    excess = {group.index for group in by_worth[wanted.groups :]}
    ours = sorted(index for index in going if groups[index].revision == wanted.revision)
    missed = ours[: max(0, wanted.groups - len(held))]
    return Standing(
        going=frozenset(going),
        missed=frozenset(missed),
        held=frozenset(held - excess),
        excess=frozenset(excess),
        replaced=frozenset(replaced),
    )


def roll(
    wanted: Wanted,
    groups: Mapping[int, Group],
    standing: Standing,
    now: datetime,
    *,
    taken: Collection[int],
    names_in_the_way: Collection[str],
) -> list[PodAction]:
    """What to make and what to drain now. `taken` are groups that somebody else is taking down in this cycle."""
    return [
        *_leaving(wanted, groups, standing, taken, now),
        *_completed(wanted, groups, standing.held - set(taken), names_in_the_way),
        *_made(wanted, groups, standing, names_in_the_way),
    ]


def is_available(wanted: Wanted, group: Group, now: datetime) -> bool:
    """Whether the group serves, and has for long enough."""
    return group.is_ready and _available_at(wanted, group, now) <= now


def next_availability(wanted: Wanted, groups: Iterable[Group], now: datetime) -> datetime | None:
    """When the next group that serves will have served for long enough."""
    due = [_available_at(wanted, group, now) for group in groups if group.is_ready]
    return min((at for at in due if at > now), default=None)


def places(
    deployment: str, wanted: int, groups: Mapping[int, Group], names_in_the_way: Collection[str] = ()
) -> list[int]:
    """The indexes of the groups that are there, and of those that will be made where some are missing."""
    missing = max(0, wanted - len(groups))
    return sorted({*groups, *islice(_free_indexes(deployment, groups, names_in_the_way), missing)})


def _available_at(wanted: Wanted, group: Group, now: datetime) -> datetime:
    """When a group that serves counts as available; a kubelet's clock that runs ahead delays nothing by itself."""
    if group.ready_since is None or not wanted.rollout.min_ready:
        return now
    return group.ready_since + wanted.rollout.min_ready


def _is_going(group: Group) -> bool:
    """A failed group whose processes ended stays, with their logs, until its turn has come; one that lost a member
    is removed at once."""
    leaves = (GroupState.DRAINING, GroupState.TERMINATING)
    return group.state in leaves or (group.state is GroupState.FAILED and not group.finished)


def _staying_behind(wanted: Wanted, others: list[Group], now: datetime) -> list[Group]:
    """The groups of other revisions that are not to be replaced."""
    if wanted.rollout.is_paused or wanted.rollout.strategy == "OnDelete":
        # One that is half made and cannot be completed would stay so for ever.
        return [group for group in others if group.state is not GroupState.CREATING or _nodes(wanted, group)]
    of_current = [group for group in others if group.revision == wanted.current]
    return sorted(of_current, key=lambda group: _worth(wanted, group, now))[: wanted.groups_behind]


def _worth(wanted: Wanted, group: Group, now: datetime) -> tuple[bool, bool, bool, int]:
    """The most worth keeping sorts first."""
    is_failed = group.state is GroupState.FAILED
    return not is_available(wanted, group, now), not group.is_ready, is_failed, group.index


def _leaving(
    wanted: Wanted, groups: Mapping[int, Group], standing: Standing, taken: Collection[int], now: datetime
) -> list[PodAction]:
    actions: list[PodAction] = []
    for index in sorted(standing.excess - set(taken), reverse=True):
        actions += drain(groups[index], f"only {wanted.groups} groups are wanted")
    reason = f"revision {wanted.revision} replaces it"
    replaced = [groups[index] for index in sorted(standing.replaced - set(taken), reverse=True)]
    for group in replaced:
        if not group.is_ready or wanted.rollout.strategy == "Recreate":
            actions += drain(group, reason)
    if wanted.rollout.strategy == "Recreate":
        return actions
    counted = (standing.held | standing.replaced) - set(taken)
    available = sum(is_available(wanted, groups[index], now) for index in counted)
    serving = [group for group in replaced if group.is_ready]
    for group in sorted(serving, key=lambda group: (is_available(wanted, group, now), -group.index)):
        left = available - is_available(wanted, group, now)
        if left < wanted.groups - wanted.rollout.unavailable:
            break
        available = left
        actions += drain(group, reason)
    return actions


def _completed(
    wanted: Wanted, groups: Mapping[int, Group], held: Collection[int], names_in_the_way: Collection[str]
) -> Iterator[CreatePods]:
    """The pods that half made groups lack, of the revision that they are of."""
    for index in sorted(held):
        group = groups[index]
        if group.state is not GroupState.CREATING or group.revision is None or not _nodes(wanted, group):
            continue
        if not any(pod_name(wanted.deployment, index, rank) in names_in_the_way for rank in group.missing_ranks):
            yield CreatePods(index, group.missing_ranks, group.revision, "the group is not complete")


def _made(
    wanted: Wanted, groups: Mapping[int, Group], standing: Standing, names_in_the_way: Collection[str]
) -> Iterator[CreatePods]:
    room = min(
        wanted.groups + wanted.rollout.surge - len(groups),
        wanted.groups - len(standing.held) - len(standing.excess),
    )
    if wanted.rollout.strategy == "Recreate" and any(
        index not in standing.held and group.revision != wanted.revision for index, group in groups.items()
    ):
        return
    of_current = sum(groups[index].revision == wanted.current for index in standing.held)
    behind = max(0, wanted.groups_behind - of_current)
    free = _free_indexes(wanted.deployment, groups, names_in_the_way)
    for made, index in zip(range(room), free, strict=False):
        revision, nodes = wanted.revision, wanted.nodes
        if made < behind and wanted.current is not None:
            revision, nodes = wanted.current, wanted.current_nodes
        yield CreatePods(index, tuple(range(nodes)), revision, f"{wanted.groups} groups are wanted")


def _nodes(wanted: Wanted, group: Group) -> int:
    """Pods of a group of this one's revision; 0 if none can be made of it."""
    by_revision = {wanted.current: wanted.current_nodes, wanted.revision: wanted.nodes}
    return by_revision.get(group.revision, 0) if group.revision is not None else 0


def _free_indexes(deployment: str, groups: Mapping[int, Group], names_in_the_way: Collection[str]) -> Iterator[int]:
    """Indexes without a pod, from the lowest; not those where pods of an earlier owner still have one of the names."""
    stem = f"{deployment}-g"
    blocked = {name.removeprefix(stem).partition("-")[0] for name in names_in_the_way if name.startswith(stem)}
    return (index for index in count() if index not in groups and str(index) not in blocked)
