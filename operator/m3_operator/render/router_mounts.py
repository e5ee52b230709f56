"""What a router's pods mount: configuration, keys, Secrets that it names, keys of tenants, and the journal.

The kubelet brings changed ConfigMaps and Secrets into running pods, and the router reads them again. Only a file that
is new to the pods takes new pods. Entries of Secrets are mounted one by one: what else a Secret holds stays out of the
pod. Secrets of the router itself must be there before a pod starts; those of tenants are optional, because somebody who
forgets a Secret must not stop a router that others use.
"""

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

from m3_operator import names
from m3_operator.api import M3Router, M3Tenant
from m3_operator.render.router_settings import Files
from m3_operator.spec.secrets import SecretKey

CONFIG_DIRECTORY: Final = PurePosixPath("/etc/m3-router/config")
CONFIG_ENTRY: Final = "router.yaml"
TENANTS_ENTRY: Final = "tenants.json"
KEYS_DIRECTORY: Final = PurePosixPath("/etc/m3-router/keys")
SECRETS_DIRECTORY: Final = PurePosixPath("/etc/m3-router/secrets")
TENANT_KEYS_DIRECTORY: Final = PurePosixPath("/etc/m3-router/tenants")
JOURNAL_DIRECTORY: Final = PurePosixPath("/var/lib/m3-router")
_POD_NAME: Final = "POD_NAME"

POD_FILES: Final = Files(
    keys=KEYS_DIRECTORY / names.KEYS_FILE_ENTRY,
    tenants=CONFIG_DIRECTORY / TENANTS_ENTRY,
    journal=JOURNAL_DIRECTORY,
    secret=lambda reference: SECRETS_DIRECTORY / reference.name / reference.key,
)


def tenant_key_path(reference: SecretKey) -> str:
    """Where the pods have a tenant's key. Text: a router may have thousands, and paths are slow to make."""
    return f"{TENANT_KEYS_DIRECTORY}/{reference.name}/{reference.key}"


def volumes(router: M3Router, tenants: Sequence[M3Tenant]) -> list[dict[str, Any]]:
    """The pod's volumes."""
    spec, name = router.spec, router.metadata.name
    found: list[dict[str, Any]] = [{"name": "config", "configMap": {"name": names.router_name(name)}}]
    if spec.auth.mode == "Keys":
        secret = spec.auth.secret_name or names.keys_secret_name(name)
        items = [{"key": names.KEYS_FILE_ENTRY, "path": names.KEYS_FILE_ENTRY}]
        found.append({"name": "keys", "secret": {"secretName": secret, "items": items}})
    found += _projected("secrets", _own_references(router), is_optional=False)
    found += _projected("tenants", _references_of(tenants), is_optional=True)
    if spec.ledger.storage == "Claim":
        found.append({"name": "journal", "persistentVolumeClaim": {"claimName": spec.ledger.claim_name}})
    elif spec.ledger.storage == "EmptyDir":
        limit = {} if spec.ledger.size_limit is None else {"sizeLimit": spec.ledger.size_limit}
        found.append({"name": "journal", "emptyDir": limit})
    return found


def volume_mounts(router: M3Router, tenants: Sequence[M3Tenant]) -> list[dict[str, Any]]:
    """Where they appear in the container. No `subPath` but the journal's: the kubelet does not update those."""
    where = {
        "config": CONFIG_DIRECTORY,
        "keys": KEYS_DIRECTORY,
        "secrets": SECRETS_DIRECTORY,
        "tenants": TENANT_KEYS_DIRECTORY,
    }
    there = [volume["name"] for volume in volumes(router, tenants)]
    mounts: list[dict[str, Any]] = [
        {"name": name, "mountPath": str(where[name]), "readOnly": True} for name in there if name in where
    ]
    if "journal" in there:
        mount = {"name": "journal", "mountPath": str(JOURNAL_DIRECTORY)}
        # A journal has one writer, and during a rollout there are two routers.
        is_shared = router.spec.ledger.storage == "Claim"
        mounts.append({**mount, "subPathExpr": f"$({_POD_NAME})"} if is_shared else mount)
    return mounts


def environment(router: M3Router) -> list[dict[str, Any]]:
    """What the mounts need to know."""
    if router.spec.ledger.storage != "Claim":
        return []
    return [{"name": _POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def _own_references(router: M3Router) -> list[SecretKey]:
    spec = router.spec
    references = [pool.api_key_secret_ref for pool in spec.external_pools]
    if spec.redis is not None:
        references += [found for found in (spec.redis.url_secret_ref, spec.redis.password_secret_ref) if found]
    if spec.moderation is not None and spec.moderation.api_key_secret_ref is not None:
        references.append(spec.moderation.api_key_secret_ref)
    return references


def _references_of(tenants: Iterable[M3Tenant]) -> list[SecretKey]:
    return [key.secret_ref for tenant in tenants for key in tenant.spec.keys if key.secret_ref is not None]


def _projected(name: str, references: Iterable[SecretKey], *, is_optional: bool) -> list[dict[str, Any]]:
    """One volume with a directory for each Secret, or none. Sorted, so that the order of tenants changes no pod."""
    entries: dict[str, set[str]] = {}
    for reference in references:
        entries.setdefault(reference.name, set()).add(reference.key)
    if not entries:
        return []
    sources = [
        {
            "secret": {
                "name": secret,
                "items": [{"key": key, "path": f"{secret}/{key}"} for key in sorted(keys)],
                **({"optional": True} if is_optional else {}),
            }
        }
        for secret, keys in sorted(entries.items())
    ]
    return [{"name": name, "projected": {"sources": sources}}]
