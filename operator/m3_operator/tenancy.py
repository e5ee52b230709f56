"""Which M3Tenants belong to which M3Routers, by what their specs say: an index for the store.

Owns the names of both kinds by namespace. A tenant that lists no router is for all of its namespace, so both sides are
found by a walk over one namespace, and nothing has to be kept in step.
"""

from m3_operator import names
from m3_operator.observed import Key, Manifest


class Tenancy:
    """The routers and tenants of each namespace. Fed by the store, which owns the objects."""

    def __init__(self) -> None:
        self._routers: dict[str, set[str]] = {}
        self._tenants: dict[str, dict[str, tuple[str, frozenset[str]]]] = {}  # creation and routers, by name

    def __bool__(self) -> bool:
        return bool(self._routers or self._tenants)

    def put(self, kind: str, namespace: str, name: str, before: Manifest | None, manifest: Manifest) -> set[Key]:
        """Take in an object, and say whose snapshot it changes. Of other kinds than these two nothing is kept."""
        touched: set[Key] = set()
        if kind == names.ROUTER_KIND:
            self._routers.setdefault(namespace, set()).add(name)
        elif kind == names.TENANT_KIND:
            if before is not None and before.get("spec") == manifest.get("spec"):
                return touched  # its status, which no router reads
            created = str(manifest["metadata"].get("creationTimestamp", ""))
            self._tenants.setdefault(namespace, {})[name] = created, frozenset(routers_of(manifest))
            touched = set() if before is None else self._related(kind, namespace, name, before)
        return touched | self._related(kind, namespace, name, manifest)

    def remove(self, kind: str, namespace: str, name: str, manifest: Manifest) -> set[Key]:
        """Forget an object, and say whose snapshot it was in."""
        touched = self._related(kind, namespace, name, manifest)
        if kind == names.ROUTER_KIND:
            self._routers.get(namespace, set()).discard(name)
            if not self._routers.get(namespace):
                self._routers.pop(namespace, None)
        elif kind == names.TENANT_KIND:
            self._tenants.get(namespace, {}).pop(name, None)
            if not self._tenants.get(namespace):
                self._tenants.pop(namespace, None)
        return touched

    def tenants_of(self, namespace: str, router: str) -> list[str]:
        """The tenants that are meant for a router, the oldest first: of two owners of one key the first keeps it."""
        found = self._tenants.get(namespace, {})
        meant = [(created, name) for name, (created, routers) in found.items() if not routers or router in routers]
        return [name for _, name in sorted(meant)]

    def routers_for(self, namespace: str, tenant: Manifest) -> list[str]:
        """The routers that a tenant is meant for: those that it lists, there or not, or all that are there."""
        return list(dict.fromkeys(routers_of(tenant))) or sorted(self._routers.get(namespace, ()))

    def _related(self, kind: str, namespace: str, name: str, manifest: Manifest) -> set[Key]:
        """The objects of the other kind whose snapshot shows this one."""
        if kind == names.TENANT_KIND:
            return {Key(names.ROUTER_KIND, namespace, router) for router in self.routers_for(namespace, manifest)}
        if kind == names.ROUTER_KIND:
            return {Key(names.TENANT_KIND, namespace, tenant) for tenant in self.tenants_of(namespace, name)}
        return set()


def routers_of(tenant: Manifest) -> list[str]:
    """The routers that a tenant lists."""
    return [str(name) for name in tenant.get("spec", {}).get("routers") or ()]
