"""What is served: the model's names, where its checkpoint comes from, and which published release it is."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.cache import HuggingFaceSource, ModelCacheSpec
from m3_operator.spec.fragments import (
    ATOMIC,
    AbsolutePath,
    DnsSubdomain,
    ImageReference,
    Model,
    PullPolicy,
    cel,
    require,
)

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128)]
DType = Literal["auto", "float32", "bfloat16"]
Release = Literal["MiniMax-M3", "MiniMax-M3-MXFP8", "MiniMax-M3-NVFP4", "MiniMax-M3.1-Flash"]


class PvcSource(Model):
    """Weights in a PersistentVolumeClaim of the same namespace, mounted read-only."""

    claim_name: DnsSubdomain
    """Name of the claim."""
    path: Annotated[str, StringConstraints(pattern=r"^[^/].*$|^$", max_length=1024)] = ""
    """Directory of the checkpoint inside the volume; empty: its root."""


class HostPathSource(Model):
    """Weights in a directory that every node has, mounted read-only."""

    path: AbsolutePath
    """Absolute path of the checkpoint on the node."""


class ImageSource(Model):
    """Weights in an OCI image, mounted read-only as an image volume."""

    reference: ImageReference
    """Image reference, by digest or tag."""
    pull_policy: PullPolicy = "IfNotPresent"
    """When the node pulls it."""


TINY_HEADS = "model.source.tiny: kvHeads must divide heads"
TINY_EXPERTS = "model.source.tiny: expertsPerToken must be at most experts"
TINY_DENSE = "model.source.tiny: denseLayers must be at most layers"
TINY_INDEX = "model.source.tiny: indexDim must be at least half of headDim"


class TinySource(Model):
    """A random checkpoint of this shape, written when a pod starts: for trying things out, it knows nothing."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.heads % self.kvHeads == 0", TINY_HEADS),
            ("self.expertsPerToken <= self.experts", TINY_EXPERTS),
            ("self.denseLayers <= self.layers", TINY_DENSE),
            ("self.indexDim >= self.headDim / 2", TINY_INDEX),
        )
    )

    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of the random weights: the same seed and shape give the same model."""
    layers: Annotated[int, Field(ge=1, le=128)] = 4
    """Transformer layers."""
    hidden: Annotated[int, Field(ge=8, le=8192)] = 64
    """Width of the residual stream."""
    heads: Annotated[int, Field(ge=1, le=128)] = 8
    """Query heads."""
    kv_heads: Annotated[int, Field(ge=1, le=128)] = 2
    """Key and value heads, which is also the number of index heads."""
    head_dim: Annotated[int, Field(ge=4, le=512, multiple_of=4)] = 16
    """Width of one head."""
    index_dim: Annotated[int, Field(ge=4, le=512, multiple_of=4)] = 16
    """Width of one index head, at least the half of headDim that is rotated."""
    experts: Annotated[int, Field(ge=1, le=512)] = 8
    """Experts of a sparse layer."""
    experts_per_token: Annotated[int, Field(ge=1, le=64)] = 2
    """Experts that one token uses."""
    intermediate: Annotated[int, Field(ge=8, le=32768)] = 64
    """Width inside a feed-forward network."""
    dense_layers: Annotated[int, Field(ge=0, le=128)] = 1
    """Leading layers without experts and without sparse attention."""
    block: Annotated[int, Field(ge=1, le=1024)] = 16
    """Tokens in one block of sparse attention, which is also a page of the cache."""
    topk: Annotated[int, Field(ge=1, le=256)] = 4
    """Blocks that a query selects."""
    context: Annotated[int, Field(ge=16, le=1048576)] = 8192
    """Longest context in tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights on disk."""
    vision: bool = True
    """Whether it has a vision tower, for images and video."""

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        require(self.heads % self.kv_heads == 0, TINY_HEADS)
        require(self.experts_per_token <= self.experts, TINY_EXPERTS)
        require(self.dense_layers <= self.layers, TINY_DENSE)
        require(self.index_dim >= self.head_dim // 2, TINY_INDEX)
        return self


class PackagedSource(Model):
    """The tiny M3 that is part of the worker, trained to answer questions about m3serve."""


ONE_SOURCE = "model.source: set exactly one of pvc, hostPath, image, huggingFace, tiny, packaged"


class ModelSource(Model):
    """Where the checkpoint comes from: exactly one of these."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "[has(self.pvc), has(self.hostPath), has(self.image), has(self.huggingFace), has(self.tiny), "
                "has(self.packaged)].filter(x, x).size() == 1",
                ONE_SOURCE,
            )
        )
    )

    pvc: PvcSource | None = None
    """A PersistentVolumeClaim."""
    host_path: HostPathSource | None = None
    """A directory of the node."""
    image: ImageSource | None = None
    """An OCI image."""
    hugging_face: HuggingFaceSource | None = None
    """A repository of a hub, downloaded into `model.cache`."""
    tiny: TinySource | None = None
    """A random model, for trying things out."""
    packaged: PackagedSource | None = None
    """The trained tiny model that the worker brings with it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        sources = (self.pvc, self.host_path, self.image, self.hugging_face, self.tiny, self.packaged)
        require(sum(source is not None for source in sources) == 1, ONE_SOURCE)
        return self


RELEASE = (
    "model.release: only with pvc, hostPath, image and huggingFace; the sizes of tiny and packaged models are known"
)
CACHED = "model.cache: needed by model.source.huggingFace, and of no other source"


class ModelSpec(Model):
    """What is served."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("!has(self.release) || !(has(self.source.tiny) || has(self.source.packaged))", RELEASE),
            ("has(self.cache) == has(self.source.huggingFace)", CACHED),
        )
    )

    name: ModelName
    """Name of the model, which clients send as `model`."""
    served_names: Annotated[tuple[ModelName, ...], Field(max_length=1, json_schema_extra=ATOMIC)] = ()
    """Name that clients use instead of `name`. At most one, since the native engine answers to one name."""
    dtype: DType = "auto"
    """Type that the engine computes in; auto: the checkpoint's."""
    source: ModelSource
    """Where the checkpoint comes from: exactly one of pvc, hostPath, image, huggingFace, tiny, packaged."""
    cache: ModelCacheSpec | None = None
    """Where a model of `source.huggingFace` is kept, which is downloaded once."""
    release: Release | None = None
    """Which published release the checkpoint is, so that its size is known before a pod starts; absent: not known, and
    not guessed from `name`. Changing it restarts nothing."""

    @model_validator(mode="after")
    def _release_tells_something_new(self) -> Self:
        is_known = self.source.tiny is not None or self.source.packaged is not None
        require(self.release is None or not is_known, RELEASE)
        return self

    @model_validator(mode="after")
    def _caches_what_is_downloaded(self) -> Self:
        require((self.cache is not None) == (self.source.hugging_face is not None), CACHED)
        return self

    @property
    def served_name(self) -> str:
        """The one name that workers answer to and routers route by."""
        return self.served_names[0] if self.served_names else self.name
