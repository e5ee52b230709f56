"""The engine that runs the model: its image, flags, limits, and how patient its health checks are."""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import (
    ATOMIC,
    EnvVar,
    ImageReference,
    LocalReference,
    Model,
    PullPolicy,
    cel,
    list_map,
    require,
)

CacheType = Literal["auto", "float32", "bfloat16", "fp8"]


EngineType = Literal["native", "vllm", "sglang"]

IMAGE = "engine.image: required with engine.type vllm and sglang, for which there is no default"
CACHE_FLOAT32 = "engine.cacheDtype: vllm and sglang take auto, bfloat16 and fp8; float32 is for the native engine"
CACHE_INDEX = "engine.indexCacheDtype: of the native engine alone"
CACHE_TOKENS = "engine.cacheTokens: vllm takes a share of memory instead; add --gpu-memory-utilization to engine.args"


class EngineSpec(Model):
    """The engine that runs the model, and its limits."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.type == 'native' || has(self.image)", IMAGE),
            ("self.type == 'native' || self.cacheDtype != 'float32'", CACHE_FLOAT32),
            ("self.type == 'native' || self.indexCacheDtype == 'auto'", CACHE_INDEX),
            ("self.type != 'vllm' || !has(self.cacheTokens)", CACHE_TOKENS),
        )
    )

    type: EngineType = "native"
    """Which engine runs the model: our own, or vLLM or SGLang from their images."""
    image: ImageReference | None = None
    """Image of the engine; absent: the one that the operator was configured with, of the native engine."""
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

    @model_validator(mode="after")
    def _asks_for_what_the_engine_has(self) -> Self:
        is_native = self.type == "native"
        require(is_native or self.image is not None, IMAGE)
        require(is_native or self.cache_dtype != "float32", CACHE_FLOAT32)
        require(is_native or self.index_cache_dtype == "auto", CACHE_INDEX)
        require(self.type != "vllm" or self.cache_tokens is None, CACHE_TOKENS)
        return self


LONGEST_STARTUP_SECONDS: Final = 86400
UNKNOWN_STARTUP_SECONDS: Final = 3600
"""Where nobody says how long, and the size of the checkpoint is not known."""


class ProbesSpec(Model):
    """How patient the health checks are."""

    startup_seconds: Annotated[int, Field(ge=10, le=LONGEST_STARTUP_SECONDS)] | None = None
    """How long loading the model may take before the group is given up and recreated; absent: ten minutes and what
    reading the checkpoint takes at 200 MB a second, or an hour where its size is not known (`model.release`)."""
