"""Which revision groups are brought to, which one stays until then, and which old ones are kept.

    asked      what the spec says now
    current    the last that all groups were brought to, from the status; without it, the newest old one that serves
    target     what groups are brought to: asked, or current after a rollback

A rollback changes no spec: it lasts until the spec asks for yet another revision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.capacity.startup import startup_seconds, with_startup
from m3_operator.decide.equipment import choose_gang, fetch_image
from m3_operator.decide.installation import Installation
from m3_operator.decide.progress import RolloutRecord, Tally, deadline, next_record, read_record, tally
from m3_operator.decide.weights import Weights, decide_weights
from m3_operator.groups import Group
from m3_operator.observed import DeploymentSnapshot, Manifest
from m3_operator.plan.wanted import Wanted, policy_of
from m3_operator.render.revisions import Template, controller_revision, number_of, read_template, revision_of
from m3_operator.render.worker import revision

_PATIENCE_BEYOND_ONE_GROUP_SECONDS: Final = 600


@dataclass(frozen=True, kw_only=True)
class Revisions:
    """The revisions of one deployment, and where its rollout stands."""

    asked: str
    target: str
    current: str | None
    """None: nothing was ever brought to all groups."""
    wanted: Wanted
    """What the plan is asked to reach."""
    templates: Mapping[str, Template]
    """What groups can be made of: `target` and, where it can be read, `current`."""
    objects: tuple[Manifest, ...]
    """The ControllerRevisions that should exist."""
    weights: Weights
    """The models that have to be downloaded."""
    seen: Tally
    """The groups, seen from `target`."""
    record: RolloutRecord | None
    """The rollout of `asked`; None: none is under way."""
    is_stuck: bool
    """Whether the rollout has missed its deadline."""
    patience: timedelta
    """How long it may go without progress."""
    wake_at: datetime | None
    """When it will have missed its deadline."""

    @property
    def is_rolled_back(self) -> bool:
        """Whether the asked revision was given up."""
        return self.target != self.asked


def decide_revisions(
    snapshot: DeploymentSnapshot,
    deployment: M3Deployment,
    image: str,
    installation: Installation,
    *,
    groups_wanted: int,
    groups: Mapping[int, Group],
    now: datetime,
    is_frozen: bool = False,
) -> Revisions:
    """The revisions of a deployment whose spec can be read. `is_frozen`: nothing can be made of it, nothing rolls."""
    rollout = deployment.spec.rollout
    asked = revision(deployment, image)
    kept = {revision_of(found): found for (kind, _), found in snapshot.children.items() if kind == names.REVISION_KIND}
    templates = {asked: Template(deployment, image)}
    current = _current(snapshot.manifest, asked, kept, groups)
    if current is not None and current != asked and (found := kept.get(current)) is not None:
        template = read_template(found, deployment)
        templates |= {current: template} if template is not None else {}
    templates = {
        name: Template(
            with_startup(found.deployment),
            found.image,
            choose_gang(found.deployment, installation),
            fetch_image(found, installation),
        )
        for name, found in templates.items()
    }
    weights = decide_weights(snapshot, templates, asked, now)
    # Groups that serve are not given up for others that have nothing to load yet.
    is_frozen = is_frozen or asked in weights.missing
    policy = policy_of(rollout, groups_wanted)
    wanted = Wanted(
        deployment=deployment.metadata.name,
        groups=groups_wanted,
        nodes=deployment.spec.parallelism.nodes,
        revision=asked,
        current=current if current in templates else None,
        current_nodes=templates[current].deployment.spec.parallelism.nodes if current in templates else 0,
        rollout=replace(policy, is_paused=policy.is_paused or is_frozen),
        recovery=deployment.spec.recovery,
    )
    seen = tally(wanted, groups, now)
    if seen.is_everywhere:
        current = asked
        wanted = replace(wanted, current=asked, current_nodes=wanted.nodes)
    record = next_record(read_record(snapshot.manifest), wanted, seen, now)
    patience = _patience(deployment)
    due = deadline(record, patience)
    is_stuck = due is not None and due <= now
    if record is not None and is_stuck and rollout.auto_rollback and wanted.current is not None:
        record, is_stuck = replace(record, is_rolled_back=True), False
    if record is not None and record.is_rolled_back and wanted.current is not None:
        wanted = replace(wanted, revision=wanted.current, nodes=wanted.current_nodes)
        seen = tally(wanted, groups, now)
    in_use = {asked, current, wanted.revision, *(group.revision for group in groups.values())}
    return Revisions(
        asked=asked,
        target=wanted.revision,
        current=current,
        wanted=wanted,
        templates=templates,
        weights=weights,
        objects=_kept_objects(kept, templates[asked], asked, in_use, rollout.revision_history_limit),
        seen=seen,
        record=record,
        is_stuck=is_stuck,
        patience=patience,
        wake_at=due if due is not None and due > now else None,
    )


def _patience(deployment: M3Deployment) -> timedelta:
    spec = deployment.spec
    of_one_group = spec.drain.timeout_seconds + startup_seconds(deployment) + spec.rollout.min_ready_seconds
    if spec.model.cache is not None and spec.model.cache.mode == "NodeLocal":
        of_one_group += startup_seconds(deployment)  # each node may have to download the model before it reads it
    return timedelta(
        seconds=spec.rollout.progress_deadline_seconds or of_one_group + _PATIENCE_BEYOND_ONE_GROUP_SECONDS
    )


def _current(manifest: Manifest, asked: str, kept: Mapping[str, Manifest], groups: Mapping[int, Group]) -> str | None:
    told = manifest.get("status", {}).get("currentRevision")
    if told:
        return str(told)
    serving = {group.revision for group in groups.values() if group.is_ready and group.revision is not None}
    old = [found for found in serving if found != asked and found in kept]
    return max(old, key=lambda found: (number_of(kept[found]), found), default=None)


def _kept_objects(
    kept: Mapping[str, Manifest], asked: Template, name: str, in_use: set[str | None], limit: int
) -> tuple[Manifest, ...]:
    spare = sorted((found for found in kept if found not in in_use), key=lambda found: number_of(kept[found]))
    wanted = {*in_use, *spare[max(0, len(spare) - limit) :]}
    objects: list[Manifest] = [manifest for found, manifest in sorted(kept.items()) if found in wanted]
    if name not in kept:
        number = 1 + max((number_of(manifest) for manifest in kept.values()), default=0)
        objects.append(controller_revision(asked, name, number))
    return tuple(objects)
