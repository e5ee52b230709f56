"""What a checkpoint says about its vision: the tower, the projector and the patch merge, read and checked.

Owns the meaning of `vision_config` and of the top level's fields about media. As with the text model, what would mean
another computation is refused by name. A checkpoint without a `vision_config` has no vision, which is no fault.
"""

from dataclasses import dataclass

from m3_worker.model.config_fields import ABSENT, CheckpointError, Json, number, require, section

_VISION = "vision_config."
_COMPRESSION = "img_token_compression_config"

_TOP_RULES: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("multimodal_projector_bias", (True, ABSENT)),
    ("projector_hidden_act", ("gelu", ABSENT)),
    ("process_image_mode", ("dynamic_res", ABSENT)),
    ("vision_feature_layer", (-1, ABSENT)),
    ("vision_feature_select_strategy", ("full", ABSENT)),
)
_VISION_RULES: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("model_type", ("clip_vision_model",)),
    ("hidden_act", ("gelu",)),
    ("num_channels", (3,)),
    ("position_embedding_type", ("rope", ABSENT)),
    ("rope_mode", ("3d", ABSENT)),
)


@dataclass(frozen=True)
class VisionConfig:
    """The shape of M3's vision, and the tokens that stand for what it saw."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    projector_size: int
    """Width inside the projector, and inside the patch merge."""
    patch_size: int
    """Pixels of a patch's side."""
    temporal_patch_size: int
    """Frames that one patch spans; a still image fills them all."""
    merge_size: int
    """Patches of a side of the square that becomes one token."""
    segment_patches: int
    """Most temporal patches of a video that attend to each other; longer videos are cut into segments."""
    rope_theta: float
    norm_eps: float
    image_token_id: int
    video_token_id: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    @property
    def axis_dim(self) -> int:
        """Rotated dimensions of a head for each of time, height and width: 26 of 80 in M3, the last two stay."""
        return 2 * (self.head_dim // 3 // 2)

    @property
    def patch_elements(self) -> int:
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def tile(self) -> int:
        """Pixels of a token's side; images are resized to multiples of it."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_json(cls, config: Json, vocab_size: int) -> "VisionConfig | None":
        """Build from the parsed config.json; None where it has no `vision_config`. Raises CheckpointError."""
        if config.get("vision_config") is None:
            return None
        vision = section(config, "vision_config")
        for name, allowed in _TOP_RULES:
            require(config, name, allowed)
        for name, allowed in _VISION_RULES:
            require(vision, name, allowed, _VISION)
        merge = _merge_section(config, vision)
        parsed = cls(
            hidden_size=number(vision, "hidden_size", int, _VISION),
            layers=number(vision, "num_hidden_layers", int, _VISION),
            heads=number(vision, "num_attention_heads", int, _VISION),
            intermediate_size=number(vision, "intermediate_size", int, _VISION),
            projector_size=number(config, "projector_hidden_size", int),
            patch_size=number(vision, "patch_size", int, _VISION),
            temporal_patch_size=number(merge, "temporal_patch_size", int, f"{_COMPRESSION}."),
            merge_size=number(merge, "spatial_merge_size", int, f"{_COMPRESSION}."),
            segment_patches=number(vision, "vision_segment_max_frames", int, _VISION),
            rope_theta=number(vision, "rope_theta", float, _VISION),
            norm_eps=number(vision, "layer_norm_eps", float, _VISION),
            image_token_id=number(config, "image_token_index", int),
            video_token_id=number(config, "video_token_index", int),
        )
        parsed._check(vocab_size)
        return parsed

    def _check(self, vocab_size: int) -> None:
        rules = {
            f"{_VISION}hidden_size is {self.hidden_size}: must be a multiple of num_attention_heads {self.heads}": (
                self.hidden_size % self.heads == 0
            ),
            f"{_VISION}hidden_size is {self.hidden_size}: a head must have 6 dimensions, to rotate three axes": (
                self.axis_dim > 0
            ),
            f"image_token_index and video_token_index must differ and be below vocab_size {vocab_size}": (
                self.image_token_id != self.video_token_id
                and max(self.image_token_id, self.video_token_id) < vocab_size
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise CheckpointError(rule)


def _merge_section(config: Json, vision: Json) -> Json:
    """`img_token_compression_config`: at the top, in `vision_config`, or in both, where they must agree."""
    found = [fields[_COMPRESSION] for fields in (vision, config) if fields.get(_COMPRESSION) is not None]
    if not found:
        raise CheckpointError(f"{_VISION}{_COMPRESSION} is missing: must be an object")
    if found[0] != found[-1]:
        raise CheckpointError(f"{_COMPRESSION} and {_VISION}{_COMPRESSION} differ: they must agree")
    merge = section({_COMPRESSION: found[0]}, _COMPRESSION)
    require(merge, "image_token_compression_method", ("patch_merge", ABSENT), f"{_COMPRESSION}.")
    return merge
