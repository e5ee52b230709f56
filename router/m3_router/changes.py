"""What is changed while a router runs: keys and plans, by its file; workers, keys and prefixes, by an administrator.

Owns the configuration in force, and what may be changed of it without a restart. Who may act, and the line that is kept
of it, are `admin`'s.
"""

from collections.abc import Mapping

from pydantic.alias_generators import to_camel

from m3_router.admin import ActError, Acts
from m3_router.config import Access, ConfigError, RouterConfig
from m3_router.placement.pools import Pool, Pools
from m3_router.shared.sharing import Sharing
from m3_router.tenants.access_file import AccessFile
from m3_router.tenants.tenants import Tenants
from m3_router.workers.workers import Worker


class Changes:
    """Those of one router. config: what holds now."""

    def __init__(self, config: RouterConfig, tenants: Tenants, pools: Pools, sharing: Sharing | None) -> None:
        self.config = config
        self._tenants = tenants
        self._pools = pools
        self._sharing = sharing

    def take(self, config: RouterConfig, access: Access | None) -> None:
        """A changed file. Raises ConfigError for what takes a restart."""
        changed = [name for name in RouterConfig.model_fields if getattr(config, name) != getattr(self.config, name)]
        fixed = [name for name in changed if name != "auth"]
        if fixed or (config.auth == "none") != (self.config.auth == "none"):
            names = ", ".join(to_camel(name) for name in fixed or ["auth"])
            raise ConfigError(f"a change of {names} takes a restart; only keys, tenants and plans do not")
        self.config = config
        self._tenants.swap(access)

    def acts(self, access_file: AccessFile) -> Acts:
        """What an administrator may do, by name. access_file: what `reload` reads."""

        async def reload(_: Mapping[str, str]) -> str:
            if not await access_file.reload() and access_file.last_error is not None:
                raise ActError(409, f"The configuration was not taken: {access_file.last_error}")
            return "The configuration and its keys were read again."

        return Acts(
            {
                "drain": self._drain_worker,
                "undrain": self._undrain_worker,
                "reload": reload,
                "reset-affinity": self._reset_affinity,
                "revoke": self._revoke,
            }
        )

    async def _reset_affinity(self, _: Mapping[str, str]) -> str:
        if not self.config.affinity.enabled:
            raise ActError(409, "Placement by prefix is switched off.")
        for pool in self._pools:
            if pool.affinity is not None:
                pool.affinity.reset()
        return "This replica has forgotten which worker has which prefix."

    async def _revoke(self, fields: Mapping[str, str]) -> str:
        digest = bytes.fromhex(fields["sha256"])
        if not self._tenants.has_key(digest):
            raise ActError(404, "No key has this digest.")
        if self._sharing is None:
            self._tenants.revoke(self._tenants.revoked | {digest})
            return "The key is revoked."
        if await self._sharing.revocations.revoke(digest):
            return "The key is revoked on every replica."
        return "The key is revoked here; the other replicas hear of it once Redis is back."

    async def _drain_worker(self, fields: Mapping[str, str]) -> str:
        worker, pool = self._worker(fields)
        pool.workers.hold(worker, is_held=True)
        return f"Worker {worker.name} gets no new requests; {worker.requests} go on."

    async def _undrain_worker(self, fields: Mapping[str, str]) -> str:
        worker, pool = self._worker(fields)
        pool.workers.hold(worker, is_held=False)
        return f"Worker {worker.name} takes requests again once a probe finds it ready."

    def _worker(self, fields: Mapping[str, str]) -> tuple[Worker, Pool]:
        for pool in self._pools:
            for worker in pool.workers:
                if (pool.name, worker.name) == (fields["pool"], fields["worker"]):
                    return worker, pool
        raise ActError(404, f"Pool {fields['pool']!r} has no worker {fields['worker']!r}.")
