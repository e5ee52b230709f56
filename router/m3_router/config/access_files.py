"""Who may do what, as all the files say that the configuration names.

Owns the reading and how the files are put together. The keys file and the tenants file are an administrator's: a fault
in one refuses all of it. Tenants' own keys (`tenants.*.keyDigests`, and `keyFiles`, mounted entries of Secrets) come
from many hands: one that is not there, is no key, or is the key of somebody who came before opens nothing, is named in
`unusable_keys`, and leaves everybody else's key as it is.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from m3_router.config.access import Access, AuthSettings, KeySettings, TenantSettings, access_from_yaml
from m3_router.config.base import ConfigError, explain

DIGEST_PREFIX: Final = "sha256:"
_KEY: Final = re.compile(r"[!-~]{1,1024}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class LoadedAccess(Access):
    """Everything that was read, keys of files included, and which of those files open nothing, each with its reason."""

    unusable_keys: tuple[str, ...] = ()


def load_access(auth: AuthSettings) -> LoadedAccess:
    """What the configuration says, then what the keys file and the tenants file add, then the keys in files of their
    own. Raises ConfigError.
    """
    access = Access(plans=auth.plans, tenants=auth.tenants, keys=auth.keys)
    for name, path in (("auth.keysFile", auth.keys_file), ("auth.tenantsFile", auth.tenants_file)):
        if path is not None:
            access = _with_file(access, name, path)
    found, unusable = _keys_of_tenants(access.tenants, access.keys)
    return LoadedAccess(
        plans=access.plans, tenants=access.tenants, keys=access.keys + found, unusable_keys=tuple(unusable)
    )


def _with_file(access: Access, name: str, path: Path) -> Access:
    try:
        added = access_from_yaml(path.read_text(encoding="utf-8"))
        return Access(
            plans={**access.plans, **added.plans},
            tenants=access.tenants + added.tenants,
            keys=access.keys + added.keys,
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} {path}: cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{name} {path}: {explain(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{name} {path}: {error}") from error


def _keys_of_tenants(
    tenants: Iterable[TenantSettings], known: Iterable[KeySettings]
) -> tuple[tuple[KeySettings, ...], list[str]]:
    """The keys that tenants have themselves, and what is wrong with the rest. The first owner of a key keeps it."""
    owners = {key.sha256: key.tenant for key in known}
    keys: list[KeySettings] = []
    unusable: list[str] = []

    def take(tenant: str, digest: str, where: str) -> None:
        if owners.setdefault(digest, tenant) == tenant:
            keys.append(KeySettings(tenant=tenant, sha256=digest))
        else:
            unusable.append(f"{where}: this key belongs to another tenant")

    for tenant in tenants:
        for place, digest in enumerate(tenant.key_digests):
            take(tenant.name, digest, f"tenants.{tenant.name}.keyDigests.{place}")
        for path in tenant.key_files:
            where = f"tenants.{tenant.name}.keyFiles: {path}"
            try:
                take(tenant.name, _digest_in(path), where)
            except ValueError as error:
                unusable.append(f"{where}: {error}")
    return tuple(keys), unusable


def _digest_in(path: Path) -> str:
    """The digest of the key in a file. Raises ValueError, which never says what the file holds."""
    try:
        text = path.read_bytes().decode("ascii").strip()
    except FileNotFoundError:
        raise ValueError("is not there") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if text.startswith(DIGEST_PREFIX):
        digest = text.removeprefix(DIGEST_PREFIX).lower()
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{DIGEST_PREFIX} is not followed by 64 hexadecimal digits")
        return digest
    if not _KEY.fullmatch(text):
        raise ValueError("does not hold a key: 1 to 1024 visible ASCII characters without spaces")
    return hashlib.sha256(text.encode()).hexdigest()
