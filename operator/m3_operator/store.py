"""What the operator last saw of the cluster: every object it watches, by kind, namespace and name.

Owned by the event loop: no locks. Fed by watch events, by the answers to our own writes (so that the next cycle sees
them before the watch does) and by a full list from time to time, because a watch that was interrupted does not tell of
what was deleted meanwhile. An older version never replaces a newer one. Pods are kept in their typed form: there are
many of them.

`put`, `remove` and `replace` answer with the owners whose snapshot changed: those are worth another look.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from m3_operator import names
from m3_operator.experts.window import ExpertState
from m3_operator.kept_objects import KeptObjects
from m3_operator.node_index import NodeIndex
from m3_operator.observed import (
    DeploymentSnapshot,
    HelperPod,
    Key,
    Manifest,
    ObservedPod,
    RouterSnapshot,
    TenantSnapshot,
    owner_uid,
    read_helper_pod,
    read_pod,
    resource_version,
    routed,
    served_model,
    uid,
)
from m3_operator.resources import OWN_KINDS, WATCHED_KINDS, table_kind
from m3_operator.signals.values import NO_SIGNALS, DeploymentSignals
from m3_operator.tenancy import Tenancy

_Identity = tuple[str, str, str]  # kind, namespace, name
_BURIED = 10_000  # more than are deleted between an event and a late answer


class Store:
    """The last seen state. Snapshots are frozen views of one owner's part."""

    def __init__(self) -> None:
        self._objects = KeptObjects()
        self._routed: dict[_Identity, Manifest] = {}  # of each deployment, what routers and siblings may know
        self._pods: dict[_Identity, ObservedPod] = {}
        self._versions: dict[_Identity, tuple[str, int]] = {}  # uid, resource version
        self._children: dict[Key, set[_Identity]] = {}  # by the owner that their labels name
        self._served_by: dict[tuple[str, str], set[str]] = {}  # (namespace, deployment) -> routers that list it
        self._helpers: dict[Key, dict[str, HelperPod]] = {}  # by the owner that their labels name, and by name
        self._claims: dict[str, set[_Identity]] = {}  # by namespace: those that belong to nobody
        self._signals: dict[Key, DeploymentSignals] = {}
        self._experts: dict[Key, ExpertState] = {}
        self._nodes = NodeIndex()
        self._tenancy = Tenancy()
        self._buried: OrderedDict[str, None] = OrderedDict()  # uids of the last that were forgotten

    def __repr__(self) -> str:
        return f"Store({len(self._objects)} objects, {len(self._pods)} pods)"

    def owners(self) -> list[Key]:
        """All our custom resources."""
        return [Key(*identity) for identity in self._objects if identity[0] in OWN_KINDS]

    def get(self, key: Key) -> Manifest | None:
        """One of our custom resources."""
        return self._objects.get((key.kind, key.namespace, key.name))

    def uid_of(self, manifest: Manifest) -> str | None:
        """The uid of the object of this kind and name, as it was last seen; None: there is none."""
        known = self._versions.get(_identity(table_kind(manifest), manifest))
        return None if known is None else known[0]

    def put(self, kind: str, manifest: Manifest) -> set[Key]:
        """Remember an object as it is now, unless it was forgotten: a late word of it would make it a ghost.

        (The answer to our own DELETE describes the object, and often comes after the event that it is gone.)
        """
        identity = _identity(kind, manifest)
        version = (uid(manifest), resource_version(manifest))
        if version[0] in self._buried:
            return set()
        known = self._versions.get(identity)
        if known is not None and known[0] == version[0] and known[1] >= version[1]:
            return set()
        touched = self._forget(identity) if known is not None and known[0] != version[0] else set()
        self._versions[identity] = version
        return touched | self._remember(identity, manifest)

    def remove(self, kind: str, manifest: Manifest) -> set[Key]:
        """Forget an object that was deleted, unless a namesake has taken its place."""
        identity = _identity(kind, manifest)
        known = self._versions.get(identity)
        return self._forget(identity) if known is not None and known[0] == uid(manifest) else set()

    def put_signals(self, key: Key, signals: DeploymentSignals) -> None:
        """Remember what was scraped of a deployment, unless that is gone; whom to wake is the scraper's to say."""
        if self.get(key) is not None:
            self._signals[key] = signals

    def router_pods(self, key: Key) -> list[HelperPod]:
        """The pods of all routers that list this deployment, by name."""
        routers = self._served_by.get((key.namespace, key.name), ())
        found = (self._helpers_of(Key(names.ROUTER_KIND, key.namespace, router)) for router in routers)
        return sorted((pod for pods in found for pod in pods), key=lambda pod: pod.name)

    def replace(self, kind: str, manifests: Iterable[Manifest], seen_before: Mapping[_Identity, str]) -> set[Key]:
        """Bring one kind to what a full list said; `seen_before` is `identities(kind)` from before the list was asked.

        An object that came after that is not in the list, and stays, also in the place of one that went meanwhile.
        """
        touched: set[Key] = set()
        listed = set()
        for manifest in manifests:
            listed.add(_identity(kind, manifest))
            touched |= self.put(kind, manifest)
        for identity, seen in seen_before.items():
            known = self._versions.get(identity)
            if identity not in listed and known is not None and known[0] == seen:
                touched |= self._forget(identity)
        return touched

    def identities(self, kind: str) -> dict[_Identity, str]:
        """Everything known of one kind, with its uid."""
        return {identity: version[0] for identity, version in self._versions.items() if identity[0] == kind}

    def put_experts(self, key: Key, state: ExpertState | None) -> set[Key]:
        """Remember what is known of a deployment's experts; None: nothing."""
        if self._experts.get(key) == state:
            return set()
        if state is None:
            del self._experts[key]
        else:
            self._experts[key] = state
        return {key}

    def pods_by_deployment(self) -> list[list[ObservedPod]]:
        """All worker pods, those of one M3Deployment together."""
        found: dict[tuple[str, str], list[ObservedPod]] = {}
        for (_, namespace, _), pod in self._pods.items():
            found.setdefault((namespace, pod.deployment), []).append(pod)
        return list(found.values())

    def deployment_snapshot(self, key: Key) -> DeploymentSnapshot | None:
        """Everything the plan of one M3Deployment may look at; None if it is gone."""
        manifest = self.get(key)
        if manifest is None:
            return None
        own, pods, strangers, children = uid(manifest), [], set(), {}
        for identity in sorted(self._children.get(key, ())):
            pod = self._pods.get(identity)
            if pod is not None and pod.owner_uid == own:
                pods.append(pod)
            elif pod is not None:
                strangers.add(pod.name)
            elif owner_uid(found := self._objects[identity]) == own:
                children[identity[0], identity[2]] = found
        return DeploymentSnapshot(
            manifest=manifest,
            pods=tuple(sorted(pods, key=lambda pod: (pod.group, pod.rank))),
            names_in_the_way=frozenset(strangers),
            children=children,
            router=self._objects.get((names.ROUTER_KIND, key.namespace, _router_of(manifest))),
            namesake=self._objects.get((names.ROUTER_KIND, key.namespace, key.name)),
            signals=self._signals.get(key, NO_SIGNALS),
            experts=self._experts.get(key),
            nodes=self._nodes.of(pods),
            siblings=tuple(self._routed[identity] for identity in self._siblings(key, _router_of(manifest))),
            claims={
                (identity[0], identity[2]): self._objects[identity]
                for identity in sorted(self._claims.get(key.namespace, ()))
            },
            fetchers=self._helpers_of(key),
        )

    def router_snapshot(self, key: Key) -> RouterSnapshot | None:
        """Everything the plan of one M3Router may look at; None if it is gone."""
        manifest = self.get(key)
        if manifest is None:
            return None
        children = {
            (identity[0], identity[2]): found
            for identity in sorted(self._children.get(key, ()))
            if owner_uid(found := self._objects[identity]) == uid(manifest)
        }
        deployments = {
            name: self._routed.get((names.DEPLOYMENT_KIND, key.namespace, name)) for name in _listed_by(manifest)
        }
        tenants = tuple(
            self._objects[names.TENANT_KIND, key.namespace, name]
            for name in self._tenancy.tenants_of(key.namespace, key.name)
        )
        return RouterSnapshot(
            manifest=manifest,
            deployments=deployments,
            children=children,
            tenants=tenants,
            pods=self._helpers_of(key),
        )

    def tenant_snapshot(self, key: Key) -> TenantSnapshot | None:
        """Everything that is said of one M3Tenant follows from this; None if it is gone."""
        manifest = self.get(key)
        if manifest is None:
            return None
        meant = self._tenancy.routers_for(key.namespace, manifest)
        routers = {name: self._objects.get((names.ROUTER_KIND, key.namespace, name)) for name in meant}
        return TenantSnapshot(manifest=manifest, routers=routers)

    def _remember(self, identity: _Identity, manifest: Manifest) -> set[Key]:
        kind, namespace, name = identity
        if kind == "Node":
            return _deployments(self._nodes.put(manifest))
        if kind == "Pod":
            return self._remember_pod(identity, manifest)
        before = self._objects.get(identity)
        if kind == names.ROUTER_KIND:
            self._index_router(namespace, name, before, manifest)
        told = self._tenancy.put(kind, namespace, name, before, manifest)
        self._objects[identity] = _without_managed_fields(manifest)
        if kind == names.DEPLOYMENT_KIND:
            return self._remember_deployment(identity, manifest)
        if kind in OWN_KINDS:
            return self._related(identity) | told
        return self._own(identity, manifest)

    def _remember_deployment(self, identity: _Identity, manifest: Manifest) -> set[Key]:
        """Its router and its siblings are told of what they may know of it, and of nothing else."""
        before, after = self._routed.get(identity), routed(manifest)
        if before == after:
            return {Key(*identity)}
        self._routed[identity] = after
        is_renamed = before is None or served_model(before) != served_model(after)
        return self._related(identity) | (self._rivals(identity) if is_renamed else set())

    def _remember_pod(self, identity: _Identity, manifest: Manifest) -> set[Key]:
        _, namespace, name = identity
        helper = read_helper_pod(manifest)
        if helper is not None:
            known = self._helpers.setdefault(helper.owner, {})
            former, known[name] = known.get(name), helper
            return set() if helper.says_the_same_as(former) else {helper.owner}
        pod = read_pod(manifest)
        if pod is None:
            return set()
        before = self._pods.get(identity)
        self._pods[identity] = pod
        if before == pod:  # but for its version
            return set()
        self._nodes.move(namespace, before, pod)
        return self._own(identity, manifest)

    def _own(self, identity: _Identity, manifest: Manifest) -> set[Key]:
        owner = _labelled_owner(manifest)
        if owner is None:
            if identity[0] == "PersistentVolumeClaim":
                self._claims.setdefault(identity[1], set()).add(identity)
            return set()
        self._children.setdefault(owner, set()).add(identity)
        return {owner}

    def _forget(self, identity: _Identity) -> set[Key]:
        dead, _ = self._versions.pop(identity)
        self._buried[dead] = None
        if len(self._buried) > _BURIED:
            self._buried.popitem(last=False)
        if identity[0] == "Node":
            return _deployments(self._nodes.remove(identity[2]))
        pod = self._pods.pop(identity, None)
        if pod is not None:
            self._nodes.move(identity[1], pod, None)
            return self._disown(Key(names.DEPLOYMENT_KIND, identity[1], pod.deployment), identity)
        manifest = self._objects.get(identity)
        if manifest is None:
            return self._forget_helper(identity)
        self._signals.pop(Key(*identity), None)
        if identity[0] in OWN_KINDS:
            self._experts.pop(Key(*identity), None)
            touched = self._related(identity) | self._rivals(identity) | self._tenancy.remove(*identity, manifest)
            self._routed.pop(identity, None)
            if identity[0] == names.ROUTER_KIND:
                self._index_router(identity[1], identity[2], manifest, None)
            del self._objects[identity]
            return touched
        del self._objects[identity]
        owner = _labelled_owner(manifest)
        if owner is not None:
            return self._disown(owner, identity)
        claims = self._claims.get(identity[1], set())
        claims.discard(identity)
        if not claims:
            self._claims.pop(identity[1], None)
        return set()

    def _forget_helper(self, identity: _Identity) -> set[Key]:
        for owner, pods in list(self._helpers.items()):
            if owner.namespace == identity[1] and pods.pop(identity[2], None) is not None:
                if not pods:
                    del self._helpers[owner]
                return {owner}
        return set()

    def _helpers_of(self, key: Key) -> tuple[HelperPod, ...]:
        found = self._helpers.get(key, {})
        return tuple(found[name] for name in sorted(found))

    def _disown(self, owner: Key, identity: _Identity) -> set[Key]:
        children = self._children.get(owner, set())
        children.discard(identity)
        if not children:
            self._children.pop(owner, None)
        return {owner}

    def _index_router(self, namespace: str, name: str, before: Manifest | None, after: Manifest | None) -> None:
        for deployment in _listed_by(before or {}):
            routers = self._served_by.get((namespace, deployment), set())
            routers.discard(name)
            if not routers:
                self._served_by.pop((namespace, deployment), None)
        for deployment in _listed_by(after or {}):
            self._served_by.setdefault((namespace, deployment), set()).add(name)

    def _related(self, identity: _Identity) -> set[Key]:
        """The object itself, and the deployments or routers whose snapshot shows it."""
        kind, namespace, name = identity
        manifest = self._objects[identity]
        related: set[Key] = set()
        if kind == names.DEPLOYMENT_KIND:
            routers = self._served_by.get((namespace, name), set())
            related = {Key(names.ROUTER_KIND, namespace, router) for router in routers}
        elif kind == names.ROUTER_KIND:
            listed = [*_listed_by(manifest), name]
            related = {Key(names.DEPLOYMENT_KIND, namespace, deployment) for deployment in listed}
        return {Key(*identity), *related}

    def _rivals(self, identity: _Identity) -> set[Key]:
        """The deployments behind the routers of this one: a model's name may be theirs now, or no longer."""
        kind, namespace, name = identity
        if kind != names.DEPLOYMENT_KIND:
            return set()
        routers = self._served_by.get((namespace, name), set())
        found = (self._siblings(Key(kind, namespace, name), router) for router in routers)
        return {Key(*sibling) for siblings in found for sibling in siblings}

    def _siblings(self, key: Key, router: str) -> list[_Identity]:
        """The other deployments that this router lists, as far as there are such objects."""
        listed = _listed_by(self._objects.get((names.ROUTER_KIND, key.namespace, router)) or {})
        found = ((names.DEPLOYMENT_KIND, key.namespace, name) for name in listed if name != key.name)
        return [identity for identity in found if identity in self._routed]


def _deployments(found: Iterable[tuple[str, str]]) -> set[Key]:
    return {Key(names.DEPLOYMENT_KIND, namespace, name) for namespace, name in found}


def _identity(kind: str, manifest: Manifest) -> _Identity:
    if kind not in WATCHED_KINDS:
        raise ValueError(f"{kind}: not a kind that is watched")
    # Objects of the whole cluster have no namespace.
    return kind, manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def _without_managed_fields(manifest: Manifest) -> dict[str, Any]:
    """The bulk of most objects, and nothing any decision reads."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    return {**manifest, "metadata": metadata}


def _labelled_owner(manifest: Manifest) -> Key | None:
    labels, namespace = manifest["metadata"].get("labels") or {}, manifest["metadata"]["namespace"]
    if names.DEPLOYMENT_LABEL in labels:
        return Key(names.DEPLOYMENT_KIND, namespace, labels[names.DEPLOYMENT_LABEL])
    if names.ROUTER_LABEL in labels:
        return Key(names.ROUTER_KIND, namespace, labels[names.ROUTER_LABEL])
    return None


def _router_of(deployment: Manifest) -> str:
    reference = deployment.get("spec", {}).get("router") or {}
    return str(reference.get("name") or deployment["metadata"]["name"])


def _listed_by(router: Manifest) -> list[str]:
    return [str(entry.get("name")) for entry in router.get("spec", {}).get("deployments") or ()]
