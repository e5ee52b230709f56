"""How many groups one M3Deployment runs, and who says so.

What counts is what its status says: a decision is told first and carried out by the next look, so that an operator
that ends between the two neither forgets it nor does it twice. Without a word of it there, the groups that exist are
the memory. `spec.replicas` is what an autoscaler of somebody else writes, or a person; we never do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from m3_operator.api import M3Deployment
from m3_operator.decide.installation import Installation
from m3_operator.groups import Group
from m3_operator.observed import DeploymentSnapshot, Manifest, parse_time
from m3_operator.plan.autoscale import ScaleAdvice, ScaleChange, ScaleState, next_scale
from m3_operator.render.autoscaler import AUTOSCALER_KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The number of groups to run now, and what the autoscaler says."""

    wanted: int
    """Groups to run now."""
    advice: ScaleAdvice | None = None
    """Of the built-in autoscaler; None: another one, or none."""
    missing_kind: str | None = None
    """The kind of autoscaler that is asked for and that the API server does not have."""

    told_at: datetime | None = None
    """When the status tells a new number, which the next look carries out; None: there is none."""


def decide_scaling(
    deployment: M3Deployment,
    snapshot: DeploymentSnapshot,
    groups: Mapping[int, Group],
    installation: Installation,
    now: datetime,
) -> Scaling:
    """How many groups should run."""
    spec = deployment.spec.autoscaling
    if spec is None:
        return Scaling(wanted=deployment.spec.desired_groups)
    if spec.backend != "Builtin":
        kind = AUTOSCALER_KINDS.get(spec.backend)
        missing = kind if kind is not None and kind not in installation.optional_kinds else None
        return Scaling(wanted=deployment.spec.desired_groups, missing_kind=missing)
    wanted = remembered(snapshot.manifest)
    if wanted is None:
        staying = sum(bool(group.staying) for group in groups.values())
        wanted = spec.clamp(max(staying, 1))
    if deployment.spec.suspend:
        return Scaling(
            wanted=0,
            advice=ScaleAdvice(
                desired=wanted, reason="Suspended", message="spec.suspend is set: no group runs", is_active=False
            ),
        )
    within = [group for group in groups.values() if group.staying]
    state = ScaleState(
        wanted=wanted,
        ready=min(sum(group.is_ready for group in within), wanted),  # a surge has more for a while
        samples=snapshot.signals.samples,
        busy_at=snapshot.signals.busy_at,
        changes=changes(snapshot.manifest),
        # A rollout that waits for somebody (a pause, a partition) has all its groups serving, and blocks nothing.
        is_rolling=len({group.revision for group in within}) > 1 and not all(group.is_ready for group in within),
        unscheduled=_unscheduled(within),
    )
    # Bounds hold at once; what the law says holds from the next look on.
    within_bounds, advice = spec.clamp(wanted), next_scale(spec, state, now)
    return Scaling(wanted=within_bounds, advice=advice, told_at=now if advice.desired != within_bounds else None)


def remembered(manifest: Manifest) -> int | None:
    """The number that was decided last; None if the status has none."""
    found = _status(manifest).get("desired")
    return None if found is None else int(found)


def changes(manifest: Manifest) -> tuple[ScaleChange, ...]:
    """The last decisions, oldest first."""
    entries = [
        ScaleChange(at, int(entry.get("from", 0)), int(entry.get("to", 0)))
        for entry in _status(manifest).get("history") or ()
        if (at := parse_time(entry.get("time"))) is not None
    ]
    return tuple(sorted(entries, key=lambda change: change.at))


def _status(manifest: Manifest) -> Manifest:
    found: Manifest = manifest.get("status", {}).get("autoscaling") or {}
    return found


def _unscheduled(groups: list[Group]) -> str:
    """What the scheduler says of the first pod that it finds no node for."""
    for group in groups:
        for pod in group.staying:
            if pod.node_name is None and pod.message:
                return f"{pod.name}: {pod.message}"
    return ""
