"""What an M3Deployment's `spec` may say: fields, bounds, defaults and the rules between fields.

Each rule is written twice, as CEL for the API server and as a validator for files that never meet one, with one
sentence for both; a test holds them together. Nothing is immutable: a change that workers must see replaces their
groups one by one.
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.fragments import (
    ATOMIC,
    AbsolutePath,
    DnsSubdomain,
    EnvVar,
    ImageReference,
    LocalReference,
    Model,
    OwnerName,
    PodTemplate,
    PullPolicy,
    cel,
    list_map,
    require,
)

ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128)]
DType = Literal["auto", "float32", "bfloat16"]
CacheType = Literal["auto", "float32", "bfloat16", "fp8"]
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


ONE_SOURCE = "model.source: set exactly one of pvc, hostPath, image, tiny, packaged"


class ModelSource(Model):
    """Where the checkpoint comes from: exactly one of these."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "[has(self.pvc), has(self.hostPath), has(self.image), has(self.tiny), has(self.packaged)]"
                ".filter(x, x).size() == 1",
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
    tiny: TinySource | None = None
    """A random model, for trying things out."""
    packaged: PackagedSource | None = None
    """The trained tiny model that the worker brings with it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        sources = (self.pvc, self.host_path, self.image, self.tiny, self.packaged)
        require(sum(source is not None for source in sources) == 1, ONE_SOURCE)
        return self


RELEASE = "model.release: only with pvc, hostPath or image; the sizes of tiny and packaged models are known"


class ModelSpec(Model):
    """What is served."""

    model_config = ConfigDict(
        json_schema_extra=cel(("!has(self.release) || !(has(self.source.tiny) || has(self.source.packaged))", RELEASE))
    )

    name: ModelName
    """Name of the model, which clients send as `model`."""
    served_names: Annotated[tuple[ModelName, ...], Field(max_length=1, json_schema_extra=ATOMIC)] = ()
    """Name that clients use instead of `name`. At most one, since the native engine answers to one name."""
    dtype: DType = "auto"
    """Type that the engine computes in; auto: the checkpoint's."""
    source: ModelSource
    """Where the checkpoint comes from: exactly one of pvc, hostPath, image, tiny, packaged."""
    release: Release | None = None
    """Which published release the checkpoint is, so that its size is known before a pod starts; absent: not known, and
    not guessed from `name`. Changing it restarts nothing."""

    @model_validator(mode="after")
    def _release_tells_something_new(self) -> Self:
        is_known = self.source.tiny is not None or self.source.packaged is not None
        require(self.release is None or not is_known, RELEASE)
        return self

    @property
    def served_name(self) -> str:
        """The one name that workers answer to and routers route by."""
        return self.served_names[0] if self.served_names else self.name


class EngineSpec(Model):
    """The engine that runs the model, and its limits."""

    type: Literal["native"] = "native"
    """Which engine runs the model."""
    image: ImageReference | None = None
    """Image of the engine; absent: the one that the operator was configured with."""
    image_pull_policy: PullPolicy = "IfNotPresent"
    """When a node pulls the image."""
    image_pull_secrets: Annotated[
        tuple[LocalReference, ...], Field(max_length=8, json_schema_extra=list_map("name"))
    ] = ()
    """Secrets for pulling images."""
    args: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=1024)], ...], Field(max_length=64, json_schema_extra=ATOMIC)
    ] = ()
    """Flags added after those that the operator renders."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=64, json_schema_extra=list_map("name"))] = ()
    """Environment variables added to the engine."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 8000
    """Port of the engine's HTTP API."""
    max_context_tokens: Annotated[int, Field(ge=16, le=1048576)] | None = None
    """Longest context in tokens; absent: what the checkpoint says, as far as the cache allows."""
    max_concurrent: Annotated[int, Field(ge=1, le=4096)] = 64
    """Sequences that one group computes at once."""
    step_tokens: Annotated[int, Field(ge=16, le=1048576)] = 2048
    """Tokens that one step of the engine computes at most."""
    cache_tokens: Annotated[int, Field(ge=16, le=2**31)] | None = None
    """Tokens that the paged cache holds; absent: derived from the device's memory."""
    cache_dtype: CacheType = "auto"
    """Type of cached keys and values; auto: that of the weights. fp8 makes room for twice the tokens."""
    index_cache_dtype: CacheType = "auto"
    """Type of cached index keys; auto: cacheDtype."""


TENSOR = "parallelism.tensor must divide parallelism.gpusPerNode, and be 1 when gpusPerNode is 0"


class ParallelismSpec(Model):
    """The shape of one group: one world of nodes x gpusPerNode ranks that is scheduled and replaced as a whole."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.gpusPerNode == 0 ? self.tensor == 1 : self.gpusPerNode % self.tensor == 0", TENSOR)
        )
    )

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Nodes of one group; each runs one pod."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 8
    """GPUs that each pod of a group gets; 0 runs on CPU."""
    tensor: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks that share one copy of the attention weights; must divide gpusPerNode."""
    redundant_experts: Annotated[int, Field(ge=0, le=4096)] | None = None
    """Expert slots of a layer beyond one for each expert, over all ranks of a group, for copies of experts that many
    tokens choose; absent: as few as let every rank own as many slots."""

    @model_validator(mode="after")
    def _tensor_divides(self) -> Self:
        gpus = self.gpus_per_node
        require(self.tensor == 1 if gpus == 0 else gpus % self.tensor == 0, TENSOR)
        return self


class AcceleratorSpec(Model):
    """How a pod asks for GPUs."""

    resource_name: Annotated[
        str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=253)
    ] = "nvidia.com/gpu"
    """Extended resource of the device plugin."""
    memory_gib: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, alias="memoryGiB")
    """Memory of one GPU in GiB, as `nvidia-smi` counts it, rounded down; absent: not known, and whether the model fits
    is not checked before a pod starts. Changing it restarts nothing."""


class DrainSpec(Model):
    """How a group leaves."""

    timeout_seconds: Annotated[int, Field(ge=0, le=86400)] = 300
    """How long requests in flight may take to finish once a group is to go."""


class ProbesSpec(Model):
    """How patient the health checks are."""

    startup_seconds: Annotated[int, Field(ge=10, le=86400)] = 3600
    """How long loading the model may take before the group is given up and recreated."""


class RouterReference(Model):
    """An M3Router of the same namespace."""

    name: OwnerName
    """Name of the M3Router."""


OWN_GPUS = "template.resources: GPUs come from parallelism.gpusPerNode; remove the accelerator's resource"
_GPU_RULE = (
    "!has(self.template) || !has(self.template.resources) || ["
    "has(self.template.resources.limits) && self.accelerator.resourceName in self.template.resources.limits, "
    "has(self.template.resources.requests) && self.accelerator.resourceName in self.template.resources.requests"
    "].filter(x, x).size() == 0"
)


class M3DeploymentSpec(Model):
    """Workers that serve one model: `replicas` groups of `parallelism.nodes` pods."""

    model_config = ConfigDict(json_schema_extra=cel((_GPU_RULE, OWN_GPUS)))

    model: ModelSpec
    """What is served."""
    engine: EngineSpec = EngineSpec()
    """The engine that runs the model, and its limits."""
    parallelism: ParallelismSpec = ParallelismSpec()
    """The shape of one group."""
    accelerator: AcceleratorSpec = AcceleratorSpec()
    """How a pod asks for GPUs."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Groups to run; `kubectl scale` sets it."""
    drain: DrainSpec = DrainSpec()
    """How a group leaves."""
    probes: ProbesSpec = ProbesSpec()
    """How patient the health checks are."""
    suspend: bool = False
    """Run no group, but keep `replicas`."""
    router: RouterReference | None = None
    """The M3Router that serves this deployment; absent: it gets one of its own name."""
    template: PodTemplate = PodTemplate()
    """What is laid over the worker pods."""

    @model_validator(mode="after")
    def _asks_for_gpus_once(self) -> Self:
        resources = self.template.resources
        require(self.accelerator.resource_name not in {*resources.requests, *resources.limits}, OWN_GPUS)
        return self

    @property
    def desired_groups(self) -> int:
        """Groups that should run now."""
        return 0 if self.suspend else self.replicas
