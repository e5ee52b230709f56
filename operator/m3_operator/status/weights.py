"""What people read about a model that is downloaded: WeightsReady, and how far the download is."""

from typing import Any

from m3_operator.decide.deployment import DeploymentDecision
from m3_operator.decide.problem import Problem
from m3_operator.decide.weights import Told
from m3_operator.status.conditions import Verdict


def weights_ready(decision: DeploymentDecision) -> list[Verdict]:
    """Whether the model is downloaded; nothing of one that pods find somewhere."""
    told = _told(decision)
    return [] if told is None else [Verdict("WeightsReady", told.holds, told.reason, told.message)]


def weights_status(decision: DeploymentDecision) -> dict[str, Any] | None:
    """How far the download is, while one is under way and tells."""
    told = _told(decision)
    if told is None or told.progress is None:
        return None
    progress = told.progress
    shown = {"downloadedBytes": progress.done_bytes, "totalBytes": progress.needed_bytes}
    return shown if progress.seconds_left is None else {**shown, "secondsLeft": progress.seconds_left}


def missing_weights(decision: DeploymentDecision, how_many: str) -> Problem | None:
    """That groups are missing because their model is not downloaded yet."""
    told = _told(decision)
    serving = sum(group.is_ready for group in decision.groups.values())
    if told is None or told.holds is not False or serving >= decision.wanted:
        return None
    return Problem(told.reason, f"{how_many}; {told.message}")


def _told(decision: DeploymentDecision) -> Told | None:
    return None if decision.revisions is None or decision.is_refused else decision.revisions.weights.told
