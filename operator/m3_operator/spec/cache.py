"""A checkpoint from a hub, and the cache that keeps it: downloaded once, and mounted by every pod."""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import ATOMIC, AbsolutePath, DnsSubdomain, Model, Quantity, cel, require
from m3_operator.spec.secrets import SecretKey

HUB: Final = "https://huggingface.co"
NODE_PATH: Final = "/var/lib/m3serve/models"
AccessMode = Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]
SHARED: Final[tuple[AccessMode, ...]] = ("ReadWriteMany",)


class HuggingFaceSource(Model):
    """Weights in a repository of a Hugging Face hub, downloaded once into `model.cache`."""

    repo: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=192),
    ]
    """Repository, as organization/name."""
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$", max_length=40)]
    """Commit, in full: a branch or tag may be another model tomorrow, and pods of one group would serve two."""
    token_secret_ref: SecretKey | None = None
    """Where the hub's access token is, for gated and private repositories."""
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", max_length=512)] = HUB
    """URL of the hub, or of a mirror that speaks its API."""


ONE_CLAIM = (
    "model.cache: mode PVC takes either claimName (a claim of yours) or size (of one that is made); NodeLocal neither"
)
OWN_CLAIM = "model.cache: storageClassName, accessModes and retain are of a claim that is made, and go with size"
NODE_DIRECTORY = "model.cache.path: of mode NodeLocal"


class ModelCacheSpec(Model):
    """Where a model that was downloaded is kept."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.mode == 'PVC' ? has(self.claimName) != has(self.size) : !has(self.claimName) && !has(self.size)",
                ONE_CLAIM,
            ),
            (
                f"has(self.size) || (!has(self.storageClassName) && self.retain && self.accessModes == {list(SHARED)})",
                OWN_CLAIM,
            ),
            (f"self.mode == 'NodeLocal' || self.path == '{NODE_PATH}'", NODE_DIRECTORY),
        )
    )

    mode: Literal["PVC", "NodeLocal"] = "PVC"
    """PVC: one volume, filled by one Job before any group is made. NodeLocal: a directory of each node, filled by the
    first pod there before its engine starts."""
    claim_name: DnsSubdomain | None = None
    """A PersistentVolumeClaim of yours, which is filled and never deleted. Mode PVC."""
    size: Quantity | None = None
    """Size of the PersistentVolumeClaim that is made where there is none yet. Mode PVC."""
    storage_class_name: DnsSubdomain | None = None
    """Its StorageClass; absent: the cluster's default."""
    access_modes: Annotated[tuple[AccessMode, ...], Field(min_length=1, max_length=3, json_schema_extra=ATOMIC)] = (
        SHARED
    )
    """Its access modes. Pods on several nodes need ReadWriteMany."""
    retain: bool = True
    """Whether it stays when the deployment is deleted, and serves all deployments of its namespace that ask for the
    same commit and storage; with false it is this deployment's own, and goes with it."""
    path: AbsolutePath = NODE_PATH
    """Directory of the nodes, which user 65532 must be able to write. Mode NodeLocal."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        has_claim, has_size = self.claim_name is not None, self.size is not None
        require(has_claim != has_size if self.mode == "PVC" else not has_claim and not has_size, ONE_CLAIM)
        is_usual = self.storage_class_name is None and self.access_modes == SHARED and self.retain
        require(has_size or is_usual, OWN_CLAIM)
        require(self.mode == "NodeLocal" or self.path == NODE_PATH, NODE_DIRECTORY)
        return self
