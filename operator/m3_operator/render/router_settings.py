"""An M3Router's spec in the words of the router's own configuration: everything but its addresses and its pools.

Values are passed on as they are: the router's own checks judge them. A reference to a Secret becomes the path of a
file; where that is, says `Files`, because pods have mounts and a laptop has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from m3_operator.api import M3Router
from m3_operator.spec.secrets import SecretKey
from m3_operator.spec.upstreams import ExternalPool, PoolLimits
from m3_router.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where a router finds what its configuration only names. None: there is no such file."""

    keys: PurePath | None = None
    tenants: PurePath | None = None
    journal: PurePath | None = None
    secret: Callable[[SecretKey], PurePath] | None = None

    def secret_path(self, where: str, reference: SecretKey) -> str:
        """The file of a Secret's entry. Raises ConfigError where Secrets are out of reach."""
        if self.secret is None:
            raise ConfigError(f"{where}: needs a cluster, which has Secret {reference.name}")
        return str(self.secret(reference))


def settings(router: M3Router, files: Files) -> dict[str, Any]:
    """The document. Raises ConfigError for a Secret out of reach."""
    spec = router.spec
    document: dict[str, Any] = {
        "adminKeySha256": spec.admin.key_sha256,
        "processes": spec.processes,
        "allowInsecure": spec.auth.allow_insecure,
        "auth": _auth(router, files),
        "contextTier": spec.context_tier.manifest(),
        "prices": spec.prices.manifest(),
        "modelPrices": [prices.manifest() for prices in spec.model_prices],
        "lanes": spec.lanes.manifest(),
        "limits": spec.limits.manifest(),
        "affinity": spec.affinity.manifest(),
        "ledger": _ledger(router, files),
        "redis": _redis(router, files),
        "moderation": _moderation(router, files),
        "tracing": None if spec.tracing is None else spec.tracing.manifest(),
        "aliases": {alias.name: alias.model for alias in spec.aliases},
    }
    return {name: value for name, value in document.items() if value is not None}


def pool_limits(limits: PoolLimits) -> dict[str, Any]:
    """What a pool's entry says of how much it may have in flight; what it leaves out is the router's default."""
    known = PoolLimits.model_fields
    return {name: value for name, value in limits.manifest().items() if name in {known[field].alias for field in known}}


def external_pool(pool: ExternalPool, files: Files) -> dict[str, Any]:
    """A pool of one worker: somebody else's API. Raises ConfigError for a Secret out of reach."""
    key = files.secret_path(f"externalPools.{pool.name}.apiKeySecretRef", pool.api_key_secret_ref)
    document = {
        "name": pool.name,
        "models": list(pool.models),
        "engine": "external",
        "upstreamModel": pool.upstream_model,
        "maxContextTokens": pool.max_context_tokens,
        **pool_limits(pool),
        "workers": {"url": pool.url, "apiKeyFile": key},
    }
    return {name: value for name, value in document.items() if value is not None}


def _auth(router: M3Router, files: Files) -> dict[str, str] | str:
    """Without files, or with auth.mode None, no key is asked for."""
    named = {"keysFile": files.keys, "tenantsFile": files.tenants}
    found = {name: str(path) for name, path in named.items() if path is not None}
    return "none" if router.spec.auth.mode == "None" or not found else found


def _ledger(router: M3Router, files: Files) -> dict[str, Any]:
    ledger = router.spec.ledger
    document = ledger.model_dump(mode="json", exclude={"storage", "claim_name", "size_limit"})
    if ledger.storage != "None" and files.journal is not None:
        document["directory"] = str(files.journal)
    return document


def _redis(router: M3Router, files: Files) -> dict[str, Any] | None:
    redis = router.spec.redis
    if redis is None:
        return None
    document = redis.model_dump(mode="json", exclude={"url_secret_ref", "password_secret_ref"}, exclude_none=True)
    if redis.url_secret_ref is not None:
        document["urlFile"] = files.secret_path("redis.urlSecretRef", redis.url_secret_ref)
    if redis.password_secret_ref is not None:
        document["passwordFile"] = files.secret_path("redis.passwordSecretRef", redis.password_secret_ref)
    return document


def _moderation(router: M3Router, files: Files) -> dict[str, Any] | None:
    moderation = router.spec.moderation
    if moderation is None:
        return None
    document = moderation.model_dump(mode="json", exclude={"api_key_secret_ref"})
    if moderation.api_key_secret_ref is not None:
        document["apiKeyFile"] = files.secret_path("moderation.apiKeySecretRef", moderation.api_key_secret_ref)
    return document
