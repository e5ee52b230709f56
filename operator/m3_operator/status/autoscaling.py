"""What an autoscaled deployment says of its scaling: who decides, what was decided and why, and from which values.

Values are rounded and are told with a decision, or every half a minute if they have changed: load that comes and goes
writes a status twice a minute at most, and an idle deployment never.
"""

from datetime import datetime, timedelta
from math import isfinite
from typing import Any, Final

from m3_operator import names
from m3_operator.decide.autoscaling import Scaling, remembered
from m3_operator.observed import DeploymentSnapshot, Manifest, parse_time
from m3_operator.plan.autoscale import ScaleAdvice
from m3_operator.plan.pressure import mean_value
from m3_operator.spec.autoscaling import AutoscalingSpec
from m3_operator.spec.status import SCALE_CHANGES_SHOWN
from m3_operator.status.conditions import Verdict, timestamp

_TOLD_EVERY: Final = timedelta(seconds=30)
_OWNERS: Final = {
    "HPA": "a HorizontalPodAutoscaler writes spec.replicas",
    "KEDA": "KEDA writes spec.replicas",
    "External": "somebody else writes spec.replicas",
}
_LIMITS: Final = {
    "Maximum": "more groups are asked for than autoscaling.maxReplicas",
    "Minimum": "fewer groups are asked for than autoscaling.minReplicas",
    "Rate": "more is asked for than the pace of autoscaling.up or autoscaling.down allows",
    "Capacity": "a group finds no node: add nodes, or lower autoscaling.maxReplicas",
    "Rollout": "the number of groups is held until the rollout is through",
}


def autoscaling_status(
    snapshot: DeploymentSnapshot, spec: AutoscalingSpec | None, scaling: Scaling | None, now: datetime
) -> dict[str, Any] | None:
    """`status.autoscaling`; None without autoscaling. While nothing can run (no `scaling`), it stays as it was."""
    before: Manifest = snapshot.manifest.get("status", {}).get("autoscaling") or {}
    if scaling is None:
        return dict(before) or None
    if spec is None:
        return None
    advice = scaling.advice
    if advice is None:
        return {"backend": spec.backend, "desired": scaling.wanted, "reason": "OwnedByBackend"}
    was = remembered(snapshot.manifest)
    status: dict[str, Any] = {"backend": spec.backend, "desired": advice.desired, "reason": advice.reason}
    if advice.limited_by is not None:
        status["limitedBy"] = advice.limited_by
    is_new = was is not None and was != advice.desired
    history = [dict(entry) for entry in before.get("history") or ()]
    if is_new:
        change = {"time": timestamp(now), "from": was, "to": advice.desired, "reason": advice.message}
        history = [*history, change][-SCALE_CHANGES_SHOWN:]
        status["lastScaleTime"] = timestamp(now)
    elif "lastScaleTime" in before:
        status["lastScaleTime"] = before["lastScaleTime"]
    if history:
        status["history"] = history
    return {**status, **_signals(snapshot, spec, before, now, is_due=is_new)}


def scaling_verdicts(spec: AutoscalingSpec | None, scaling: Scaling | None) -> list[Verdict]:
    """ScalingActive and ScalingLimited; none without autoscaling."""
    if spec is None or scaling is None:
        return []
    advice = scaling.advice
    if advice is None:
        return [_of_backend(spec, scaling)]
    active = Verdict("ScalingActive", True, "SignalsRead", f"the operator decides, by {_named(spec)}")
    if not advice.is_active:
        active = Verdict("ScalingActive", False, advice.reason, advice.message)
    return [active, _limited(advice)]


def _of_backend(spec: AutoscalingSpec, scaling: Scaling) -> Verdict:
    if scaling.missing_kind is not None:
        message = (
            f"autoscaling.backend {spec.backend}: the API server has no {scaling.missing_kind}, or the operator may "
            "not use it; install it and restart the operator, or choose another backend"
        )
        return Verdict("ScalingActive", False, "BackendMissing", message)
    return Verdict("ScalingActive", True, "OwnedByBackend", _OWNERS[spec.backend])


def _limited(advice: ScaleAdvice) -> Verdict:
    if advice.limited_by is None:
        return Verdict("ScalingLimited", False, "NotLimited", "as many groups are wanted as the signals ask for")
    return Verdict("ScalingLimited", True, advice.limited_by, _LIMITS[advice.limited_by])


def _named(spec: AutoscalingSpec) -> str:
    return ", ".join(signal.type for signal in spec.signals)


def _signals(
    snapshot: DeploymentSnapshot, spec: AutoscalingSpec, before: Manifest, now: datetime, *, is_due: bool
) -> dict[str, Any]:
    """The signals and when they were read; as before, unless they changed and it is time to say so."""
    samples = snapshot.signals.samples
    readings = []
    for signal in spec.signals:
        reading: dict[str, Any] = {"name": signal.type, "target": signal.target}
        value = mean_value(signal, samples) if samples else None
        if value is not None and isfinite(value):
            reading["value"] = float(f"{value:.2g}")
        readings.append(reading)
    told, told_at = before.get("signals"), parse_time(before.get("signalsTime"))
    is_due = is_due or told_at is None or now - told_at >= _TOLD_EVERY
    if told == readings or (not is_due and told is not None):
        return {key: before[key] for key in ("signals", "signalsTime") if key in before}
    return {"signals": readings, "signalsTime": timestamp(now)}


def in_flight(snapshot: DeploymentSnapshot) -> dict[int, int]:
    """Requests that the groups which are being drained still answer, by index, as far as they have told."""
    return {
        pod.group: found.in_flight
        for pod in snapshot.pods
        if pod.rank == 0 and pod.is_terminating and (found := snapshot.signals.workers.get(pod.uid)) is not None
    }


def asleep_message(scaling: Scaling | None) -> str | None:
    """What to say of no groups where the autoscaler wants none; None: it was somebody else."""
    if scaling is None or scaling.advice is None or scaling.wanted:
        return None
    return f"no group runs while there is nothing to do: the next request at the {names.ROUTER_KIND} wakes one"
