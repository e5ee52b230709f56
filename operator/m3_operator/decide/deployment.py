"""What one M3Deployment needs now: read the spec, render what it asks for, plan the difference.

A decision also says what stands in the way, as a `Problem` with the reason that becomes a condition: what only the
operator can know. A problem stops no more than it must: a missing router stops no worker.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.capacity.assessment import Assessment, assess
from m3_operator.decide.autoscaling import Scaling, decide_scaling
from m3_operator.decide.children import change_children
from m3_operator.decide.diagnosis import diagnose
from m3_operator.decide.equipment import extras, lacking
from m3_operator.decide.installation import Installation
from m3_operator.decide.memory import Memory, read_memory
from m3_operator.decide.model_names import name_problem
from m3_operator.decide.problem import Problem
from m3_operator.decide.revisions import Revisions, decide_revisions
from m3_operator.decide.routing import routing_problem
from m3_operator.groups import Group, by_index
from m3_operator.observed import DeploymentSnapshot
from m3_operator.plan.actions import CreatePods, DeletePods, ObjectAction
from m3_operator.plan.avoidance import still_avoided
from m3_operator.plan.faults import HEALTHY, Health, examine
from m3_operator.plan.gates import Turn, next_turn
from m3_operator.plan.recovery import FailureRecord
from m3_operator.plan.rollout import places
from m3_operator.plan.steps import Steps, next_steps
from m3_operator.render.revisions import Template


@dataclass(frozen=True, kw_only=True)
class DeploymentDecision:
    """What to do about one M3Deployment."""

    deployment: M3Deployment | None  # None: its spec cannot be read
    groups: Mapping[int, Group]
    records: Mapping[int, FailureRecord]
    wanted: int = 0  # how many groups should run
    scaling: Scaling | None = None  # how that number comes about; None: the spec cannot be read
    assessment: Assessment | None = None  # None: its spec cannot be read
    revisions: Revisions | None = None  # None: there is nothing that groups could be made of
    objects: tuple[ObjectAction, ...] = ()
    steps: Steps = field(default_factory=Steps)
    turn: Turn = field(default_factory=Turn)  # of the groups that wait behind gates
    problem: Problem | None = None
    health: Health = HEALTHY
    findings: Mapping[int, Problem] = field(default_factory=dict)  # by group: why it does not serve

    @property
    def templates(self) -> Mapping[str, Template]:
        """By revision: what the steps create groups of."""
        return self.revisions.templates if self.revisions is not None else {}

    @property
    def revision(self) -> str | None:
        """Of new groups; None: there can be none."""
        return self.revisions.target if self.revisions is not None else None

    @property
    def places(self) -> list[int]:
        """Indexes of the groups that are there or missing; those about to be made beside groups that leave included,
        or the memory of why they are made again would be lost."""
        name = self.deployment.metadata.name if self.deployment else ""
        made = {action.group for action in self.steps.actions if isinstance(action, CreatePods)}
        return sorted({*places(name, self.wanted, self.groups), *made})

    @property
    def wake_at(self) -> datetime | None:
        """When to look again even if nothing happens."""
        if self.scaling is not None and self.scaling.told_at is not None:
            return self.scaling.told_at  # a new number of groups counts from the moment that the status tells it
        deadline = self.revisions.wake_at if self.revisions is not None and not self.is_refused else None
        weights = self.revisions.weights.wake_at if self.revisions is not None and not self.is_refused else None
        wakes = (self.steps.wake_at, self.turn.wake_at, deadline, weights)
        return min((at for at in wakes if at is not None), default=None)

    @property
    def is_refused(self) -> bool:
        """Whether no group can be made of the spec as it is: it does not fit, and groups are wanted."""
        return self.wanted > 0 and self.assessment is not None and self.assessment.answer == "no"


def decide_deployment(
    snapshot: DeploymentSnapshot, installation: Installation, now: datetime, memory: Memory | None = None
) -> DeploymentDecision:
    """What one M3Deployment needs now. `memory`: what is remembered of it, if that is more than its status tells."""
    memory = memory or read_memory(snapshot.manifest)
    groups, records = by_index(snapshot.pods), memory.records
    try:
        deployment = parse_deployment(snapshot.manifest, strict=False)
    except SpecError as error:
        problem = Problem("InvalidSpec", str(error))
        return DeploymentDecision(deployment=None, groups=groups, records=records, problem=problem)
    spec, scaling = deployment.spec, decide_scaling(deployment, snapshot, groups, installation, now)
    wanted = scaling.wanted
    decision = DeploymentDecision(
        deployment=deployment,
        groups=groups,
        records=records,
        wanted=wanted,
        scaling=scaling,
        assessment=assess(deployment),
    )
    is_native = spec.engine.type == "native"  # other engines' specs name their image
    image = spec.engine.image or (installation.worker_image if is_native else None)
    if image is None:
        words = "set spec.engine.image, or start the operator with --worker-image: there is no default"
        return replace(decision, problem=Problem("ImageMissing", words))
    if (lack := lacking(deployment, installation)) is not None:
        return replace(decision, problem=lack)
    revisions = decide_revisions(
        snapshot,
        deployment,
        image,
        installation,
        groups=groups,
        groups_wanted=wanted,
        now=now,
        is_frozen=decision.is_refused,
    )
    health = examine(groups, snapshot, spec.recovery, still_avoided(memory.avoided, now), now)
    decision = replace(decision, revisions=revisions, health=health)
    if decision.is_refused:
        return _refused(decision, revisions, snapshot, installation, now)
    steps = next_steps(revisions.wanted, groups, records, snapshot.names_in_the_way, now, health=health)
    steps = _without_those_that_wait(steps, revisions.weights.missing)
    decision = replace(decision, steps=steps)
    held = (groups.keys() - steps.leaving) | (set(decision.places) - groups.keys())
    return replace(
        decision,
        problem=routing_problem(deployment, snapshot)
        or name_problem(snapshot.manifest, snapshot.siblings, snapshot.router),
        findings=diagnose(groups, held, records, recovery=spec.recovery, health=health, now=now),
        objects=change_children(
            deployment,
            revisions,
            snapshot,
            groups=groups,
            places=decision.places,
            actions=steps.actions,
            extras=extras(deployment, installation),
        ),
        turn=next_turn(groups, timedelta(seconds=spec.placement.gang.timeout_seconds), now),
    )


def _without_those_that_wait(steps: Steps, missing: Collection[str]) -> Steps:
    """The steps but for groups whose model is not downloaded: nothing is made that would only hold GPUs."""
    actions = (one for one in steps.actions if not (isinstance(one, CreatePods) and one.revision in missing))
    return replace(steps, actions=tuple(actions)) if missing else steps


def _refused(
    decision: DeploymentDecision,
    revisions: Revisions,
    snapshot: DeploymentSnapshot,
    installation: Installation,
    now: datetime,
) -> DeploymentDecision:
    """What is left to do for a spec that cannot run: groups that serve go on serving, those too many still go.

    Nothing is made, and no group is replaced: there is nothing to replace it by.
    """
    deployment, assessment, groups = decision.deployment, decision.assessment, decision.groups
    if deployment is None or assessment is None:
        return decision
    steps = next_steps(revisions.wanted, groups, decision.records, snapshot.names_in_the_way, now)
    leaving = [action for action in steps.actions if isinstance(action, DeletePods) and action.group in steps.leaving]
    return replace(
        decision,
        objects=(
            change_children(
                deployment,
                revisions,
                snapshot,
                groups=groups,
                places=decision.places,
                actions=(),
                extras=extras(deployment, installation),
            )
            if groups
            else ()
        ),
        steps=Steps(tuple(leaving)),
        problem=Problem(assessment.reason, assessment.message),
    )
