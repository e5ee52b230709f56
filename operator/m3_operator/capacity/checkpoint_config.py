"""A checkpoint's config.json as a shape: the fields that memory depends on, checked; no others are read.

The worker reads the same file, all of it, and refuses what it does not support; here a file passes that says how large
the model is.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m3_operator.capacity.shape import DType, ModelShape, Precision, VisionShape
from m3_operator.errors import OperatorError

Count = Annotated[int, Field(ge=1, le=2**31)]
LayerFlags = Annotated[list[Literal[0, 1]], Field(max_length=4096)]
_MX_BLOCK = [1, 32]


class ConfigFileError(OperatorError):
    """A config.json that does not say how large its model is. One line: field and rule, prefixed by whoever read it."""


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Quantization(_Section):
    quant_method: str = "unnamed"
    weight_block_size: list[int] | None = None


class _Attention(_Section):
    sparse_index_dim: Count
    sparse_block_size: Count
    sparse_attention_freq: LayerFlags


class _Text(_Section):
    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    max_position_embeddings: Count
    num_local_experts: Count
    intermediate_size: Count
    shared_intermediate_size: Count
    dense_intermediate_size: Count | None = None
    moe_layer_freq: LayerFlags
    sparse_attention_config: _Attention
    quantization_config: _Quantization | None = None
    torch_dtype: DType | None = None
    dtype: DType | None = None


class _Compression(_Section):
    spatial_merge_size: Count
    temporal_patch_size: Count


class _Vision(_Section):
    hidden_size: Count
    num_hidden_layers: Count
    intermediate_size: Count
    patch_size: Count
    num_channels: Count
    img_token_compression_config: _Compression | None = None


class _Config(_Section):
    model_type: Literal["minimax_m3_vl"]
    text_config: _Text
    vision_config: _Vision | None = None
    projector_hidden_size: Count | None = None
    img_token_compression_config: _Compression | None = None
    quantization_config: _Quantization | None = None
    torch_dtype: DType | None = None
    dtype: DType | None = None


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a parsed config.json describes. Raises ConfigFileError.

    A file that says MXFP8 is taken to mean every matrix that the worker can hold in it, as the release has it.
    """
    try:
        parsed = _Config.model_validate(config)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"])
        given = "" if fault["type"] == "missing" else f" (got {str(fault['input'])[:80]})"
        raise ConfigFileError(f"{field}: {fault['msg']}{given}") from None
    text = parsed.text_config
    flags = {
        "moe_layer_freq": text.moe_layer_freq,
        "sparse_attention_config.sparse_attention_freq": text.sparse_attention_config.sparse_attention_freq,
    }
    for name, per_layer in flags.items():
        if len(per_layer) != text.num_hidden_layers:
            raise ConfigFileError(f"text_config.{name}: must be {text.num_hidden_layers} zeros and ones, one per layer")
    if text.num_attention_heads % text.num_key_value_heads:
        raise ConfigFileError(
            f"text_config.num_attention_heads: must be a multiple of num_key_value_heads {text.num_key_value_heads} "
            f"(got {text.num_attention_heads})"
        )
    moe_layers = sum(text.moe_layer_freq)
    if text.dense_intermediate_size is None and moe_layers < text.num_hidden_layers:
        raise ConfigFileError("text_config.dense_intermediate_size: Field required: not every layer has experts")
    return ModelShape(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        index_dim=text.sparse_attention_config.sparse_index_dim,
        layers=text.num_hidden_layers,
        sparse_layers=sum(text.sparse_attention_config.sparse_attention_freq),
        moe_layers=moe_layers,
        experts=text.num_local_experts,
        expert_intermediate_size=text.intermediate_size,
        shared_intermediate_size=text.shared_intermediate_size,
        dense_intermediate_size=text.dense_intermediate_size or 0,
        page_tokens=text.sparse_attention_config.sparse_block_size,
        max_context_tokens=text.max_position_embeddings,
        precision=_precision(parsed),
        vision=_vision(parsed),
    )


def _precision(config: _Config) -> Precision:
    text = config.text_config
    dtype = config.torch_dtype or config.dtype or text.torch_dtype or text.dtype
    if dtype is None:
        raise ConfigFileError("torch_dtype: Field required: bfloat16, float32 or float16")
    quantization = config.quantization_config or text.quantization_config
    if quantization is None:
        return Precision(dtype=dtype)
    method, block = quantization.quant_method, quantization.weight_block_size
    if (method == "mxfp8" and block in (None, _MX_BLOCK)) or (method == "fp8" and block == _MX_BLOCK):
        return Precision(dtype=dtype, experts="mxfp8", matrices="mxfp8")
    blocks = "" if block is None else f" with blocks of {block}"
    raise ConfigFileError(f"quantization_config.quant_method: {method}{blocks} is not known here: only MXFP8 is")


def _vision(config: _Config) -> VisionShape | None:
    vision = config.vision_config
    if vision is None:
        return None
    merge = vision.img_token_compression_config or config.img_token_compression_config
    if merge is None:
        raise ConfigFileError("vision_config.img_token_compression_config: Field required")
    if config.projector_hidden_size is None:
        raise ConfigFileError("projector_hidden_size: Field required: there is a vision_config")
    return VisionShape(
        hidden_size=vision.hidden_size,
        layers=vision.num_hidden_layers,
        intermediate_size=vision.intermediate_size,
        projector_size=config.projector_hidden_size,
        patch_elements=vision.num_channels * merge.temporal_patch_size * vision.patch_size**2,
        merged_patches=merge.spatial_merge_size**2,
    )
