"""What a deployment's status says of its experts."""

from collections.abc import Mapping
from typing import Any, Final

from m3_operator.expert_plan.balancing import Reason
from m3_operator.experts.window import ExpertState, Outcome
from m3_operator.status.conditions import Verdict, timestamp

_WORDS: Final[Mapping[Outcome, str]] = {
    "Placed": "experts are placed; their load is not known yet",
    Reason.TOO_FEW_TOKENS: "too few tokens lately to tell",
    Reason.PAUSED: "the last moves did not help as much as was promised: waiting some windows",
    Reason.NOTHING_GAINS: "no move within the budget would help; more redundant experts would",
    Reason.REBALANCED: "experts are being moved",
}


def expert_status(state: ExpertState) -> dict[str, Any]:
    """`status.experts`."""
    shown: dict[str, Any] = {
        "planHash": state.plan.digest,
        "epoch": state.plan.epoch,
        "ratio": state.ratio,
        "movedPercent": state.moved_percent,
        "reason": str(state.reason),
    }
    if state.worst_layer is not None:
        shown["worstLayer"] = state.worst_layer
    if state.rebalanced_at is not None:
        shown["lastRebalanceTime"] = timestamp(state.rebalanced_at)
    return shown


def balanced(state: ExpertState) -> Verdict:
    """The condition Balanced."""
    if state.reason in ("Placed", Reason.TOO_FEW_TOKENS):
        return Verdict("Balanced", None, str(state.reason), _WORDS[state.reason])
    is_even = state.ratio <= state.trigger_ratio
    figures = f"the most loaded rank has {state.ratio:g} times the mean in layer {state.worst_layer}"
    words = _WORDS.get(state.reason)
    return Verdict("Balanced", is_even, str(state.reason), f"{figures}; {words}" if words else figures)
