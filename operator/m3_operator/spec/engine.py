"""The engine that runs the model: its image, flags, limits, and how patient its health checks are."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from m3_operator.spec.fragments import ATOMIC, EnvVar, ImageReference, LocalReference, Model, PullPolicy, list_map

CacheType = Literal["auto", "float32", "bfloat16", "fp8"]


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


class ProbesSpec(Model):
    """How patient the health checks are."""

    startup_seconds: Annotated[int, Field(ge=10, le=86400)] = 3600
    """How long loading the model may take before the group is given up and recreated."""
