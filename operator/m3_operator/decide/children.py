"""The objects that an M3Deployment owns beside its pods, and how those that are there differ."""

from collections.abc import Mapping, Sequence

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.decide.equipment import group_objects
from m3_operator.decide.revisions import Revisions
from m3_operator.decide.routing import own_router
from m3_operator.groups import Group
from m3_operator.observed import DeploymentSnapshot, Manifest, owner_uid, uid
from m3_operator.plan.actions import CreatePods, ObjectAction, PodAction
from m3_operator.plan.objects import differences
from m3_operator.render.disruption import disruption_budget
from m3_operator.render.experts import has_plan, plan_config_map
from m3_operator.render.worker import group_service, workers_service


def change_children(
    deployment: M3Deployment,
    revisions: Revisions,
    snapshot: DeploymentSnapshot,
    *,
    groups: Mapping[int, Group],
    places: Sequence[int],
    actions: Sequence[PodAction],
    extras: Sequence[Manifest],
) -> tuple[ObjectAction, ...]:
    """What to apply and delete. `places`: indexes of groups; `actions`: what is about to be made of them.

    `extras`: objects of no group, that only some clusters can have.
    """
    made = {action.group for action in actions if isinstance(action, CreatePods)}
    by_revision = {name: (template.deployment, template.gang) for name, template in revisions.templates.items()}
    desired: list[Manifest] = [
        workers_service(deployment),
        disruption_budget(
            deployment,
            groups=revisions.wanted.groups,
            max_unavailable=max(revisions.wanted.rollout.unavailable, 1),
        ),
        *(group_service(deployment, index) for index in sorted({*places, *made})),
        *group_objects(by_revision, groups, actions),
        *revisions.weights.objects,
        *extras,
    ]
    live = {**snapshot.children, **snapshot.claims}
    if snapshot.experts is not None and has_plan(deployment):
        desired.append(plan_config_map(deployment, snapshot.experts.plan))
    elif has_plan(deployment):  # a plan that an earlier operator learned is good until there is a newer one
        live.pop(("ConfigMap", names.experts_name(deployment.metadata.name)), None)
    namesake = snapshot.namesake
    is_ours = namesake is not None and owner_uid(namesake) == uid(snapshot.manifest)
    if namesake is not None and is_ours:
        live[names.ROUTER_KIND, deployment.metadata.name] = namesake
    if deployment.spec.router is None and (namesake is None or is_ours):
        desired.append(own_router(deployment))
    return tuple(differences([*desired, *revisions.objects], live, snapshot.manifest))
