"""People: those who write M3Deployments and change their minds, those who meddle, and those who only send requests."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from m3_operator import names
from m3_operator.observed import owner_uid
from m3_simulation import specs
from m3_simulation.api_server import ApiServer, Manifest, identity_of
from m3_simulation.controllers import evict
from m3_simulation.fleet import CRASHING_IMAGE, Fleet
from m3_simulation.history import History
from m3_simulation.virtual_time import Clock

_CHILD_KINDS = ("Service", "ConfigMap", "Deployment", "Role", "RoleBinding", "ServiceAccount")
_FOREIGN = {"app.kubernetes.io/managed-by": "somebody"}


@dataclass
class Users:
    """What people do to the objects of the cluster."""

    server: ApiServer
    clock: Clock
    random: Random
    history: History
    every_seconds: float = 60.0
    is_active: bool = True

    def start(self) -> None:
        """Begin with one deployment, and go on."""
        self._create("m3")
        self._later()

    def settle(self) -> None:
        """Stop, after mending what makes no sense, and remove what stands in the way."""
        self.is_active = False
        for found in self._deployments():
            # What crashes for ever is never quiet; all else may stay wrong, and must then be told of.
            if CRASHING_IMAGE in found["spec"]["engine"]["image"] or self.random.random() < 0.7:
                self.server.change(identity_of(found), "user", lambda one: specs.mend(one["spec"], self.random))
        for kind in _CHILD_KINDS:
            for found in self.server.of_kind(kind):
                if not found["metadata"].get("ownerReferences"):
                    self._say(f"removes {kind} {found['metadata']['name']}, which nobody owns")
                    self.server.delete(identity_of(found), "user")

    def _later(self) -> None:
        self.clock.after(self.random.expovariate(1 / self.every_seconds), self._act)

    def _act(self) -> None:
        if not self.is_active:
            return
        actions: tuple[tuple[int, Callable[[], None]], ...] = (
            (8, self._change_spec),
            (2, self._add),
            (1, self._delete),
            (1, self._delete_and_recreate),
            (2, self._edit_child),
            (2, self._delete_child),
            (2, self._delete_pod),
            (1, self._replace_child),
            (1, self._change_router),
            (2, self._change_tenants),
        )
        self.random.choices([do for _, do in actions], [weight for weight, _ in actions])[0]()
        self._later()

    def _deployments(self) -> list[Manifest]:
        return self.server.of_kind(names.DEPLOYMENT_KIND)

    def _create(self, name: str) -> None:
        self.server.create(specs.new_deployment(self.random, name), "user")

    def _add(self) -> None:
        taken = {found["metadata"]["name"] for found in self._deployments()}
        free = [name for name in specs.NAMES if name not in taken]
        if free:
            self._create(self.random.choice(free))

    def _change_spec(self) -> None:
        found = self._deployments()
        if not found:
            self._add()
            return
        one = self.random.choice(found)
        self.server.change(
            identity_of(one), "user", lambda new: self._say(f"wants {specs.change(new['spec'], self.random)}")
        )

    def _delete(self) -> None:
        if found := self._deployments():
            self.server.delete(identity_of(self.random.choice(found)), "user")

    def _delete_and_recreate(self) -> None:
        if found := self._deployments():
            identity = identity_of(self.random.choice(found))
            self.server.delete(identity, "user")
            self._create(identity[2])

    def _children(self) -> list[Manifest]:
        kinds = [*_CHILD_KINDS, names.ROUTER_KIND]
        return [found for kind in kinds for found in self.server.of_kind(kind) if owner_uid(found)]

    def _edit_child(self) -> None:
        if not (found := self._children()):
            return
        one = self.random.choice(found)
        self._say(f"edits {one['kind']} {one['metadata']['name']}")
        self.server.change(identity_of(one), "user", self._meddle)

    def _meddle(self, child: Manifest) -> None:
        kind = child["kind"]
        if kind == "Service":
            child["spec"]["selector"] = {"app": "mine"}
        elif kind == "ConfigMap":
            child["data"] = {"router.yaml": "listen: nowhere"}
        elif kind == "Deployment":
            child["spec"]["replicas"] = self.random.choice((0, 5))
        elif kind == names.ROUTER_KIND:
            child["spec"]["deployments"] = [{"name": "another"}]
        elif kind == "Role":
            child["rules"] = []
        else:
            child["metadata"]["labels"] = {**child["metadata"]["labels"], "app.kubernetes.io/name": "mine"}

    def _delete_child(self) -> None:
        if found := self._children():
            self.server.delete(identity_of(self.random.choice(found)), "user")

    def _replace_child(self) -> None:
        """Delete a child, and make something else of its name."""
        found = [one for one in self._children() if one["kind"] in ("Service", "ConfigMap")]
        if not found:
            return
        one = self.random.choice(found)
        self.server.delete(identity_of(one), "user")
        metadata = {key: one["metadata"][key] for key in ("name", "namespace")}
        body = {key: value for key, value in one.items() if key in ("apiVersion", "kind", "spec", "data")}
        self.server.create({**body, "metadata": {**metadata, "labels": _FOREIGN}}, "user")

    def _delete_pod(self) -> None:
        if found := self.server.of_kind("Pod"):
            evict(self.server, self.random.choice(found), "user")

    def _change_router(self) -> None:
        if found := self.server.of_kind(names.ROUTER_KIND):
            one = self.random.choice(found)
            self.server.change(
                identity_of(one), "user", lambda new: new["spec"].update(replicas=self.random.choice((1, 2, 3)))
            )

    def _change_tenants(self) -> None:
        """A tenant comes, changes its mind, or goes."""
        name = self.random.choice(specs.TENANTS)
        identity = (names.TENANT_KIND, specs.NAMESPACE, name)
        if identity not in self.server.objects:
            self.server.create(specs.new_tenant(self.random, name), "user")
        elif self.random.random() < 0.3:
            self.server.delete(identity, "user")
        else:
            self.server.change(identity, "user", lambda new: new.update(spec=specs.tenant_spec(self.random)))

    def _say(self, what: str) -> None:
        self.history.add(self.clock.seconds, "user", what)


@dataclass
class Traffic:
    """Requests that arrive at every rank 0 that takes them."""

    clock: Clock
    random: Random
    fleet: Fleet
    every_seconds: float = 5.0
    mean_seconds: float = 20.0
    sent: int = 0
    is_active: bool = True

    def start(self) -> None:
        """Send, and go on."""
        if not self.is_active:
            return
        for worker in list(self.fleet.workers.values()):
            if self.fleet.takes_requests(worker) and self.random.random() < 0.5:
                self.sent += 1
                self.fleet.request(worker, self.random.expovariate(1 / self.mean_seconds), self.sent)
        self.clock.after(self.random.uniform(0.5, 1.5) * self.every_seconds, self.start)
