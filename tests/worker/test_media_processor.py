"""Patches, sizes and frames are those of transformers' processors; what cannot be decoded is refused by name."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from m3_media import image_file, picture, video_file
from m3_worker.config import TinySettings
from m3_worker.media.decode import decode_image, decode_video
from m3_worker.media.items import MediaError, MediaLimits, ProcessedMedia
from m3_worker.media.processor import (
    FRAME_MAX_PIXELS,
    IMAGE_MAX_PIXELS,
    MIN_PIXELS,
    VIDEO_MAX_PIXELS,
    fitting_size,
    frame_pixels,
    sampled_frames,
)
from m3_worker.model.config import ModelConfig
from m3_worker.model.vision import normalised
from m3_worker.model.vision_config import VisionConfig
from m3_worker.tiny import config_json

pytestmark = pytest.mark.xdist_group("oracles")

LIMITS = MediaLimits()
TWO_OF_255 = 2.001 / 255 / 0.26130258  # the largest difference between Pillow's and torchvision's resampling
MEAN_DIFFERENCE = 2e-4


@pytest.fixture(scope="module")
def config() -> VisionConfig:
    vision = ModelConfig.from_json(config_json(TinySettings(directory=Path("unused")))).vision
    assert vision is not None
    return vision


def values(media: ProcessedMedia) -> Tensor:
    """What the tower makes of the patches before it begins, in the shape that the library has them in."""
    parts = [torch.from_numpy(np.ascontiguousarray(segment.patches)) for segment in media.segments]
    return normalised(torch.cat(parts)).flatten(1)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    difference = (found - expected).abs()
    assert difference.max() <= TWO_OF_255
    assert difference.mean() <= MEAN_DIFFERENCE


@pytest.mark.parametrize(
    ("width", "height"),
    [(56, 56), (20, 30), (57, 300), (640, 480), (160, 120), (1200, 800), (29, 2000), (1, 150), (1000, 14), (333, 334)],
)
@pytest.mark.parametrize("detail_pixels", [1, 8])
def test_an_image_has_the_pixel_values_of_transformers(
    config: VisionConfig, width: int, height: int, detail_pixels: int
) -> None:
    from transformers import MiniMaxM3VLImageProcessor

    pixels = picture(width, height, detail_pixels=detail_pixels)
    expected = MiniMaxM3VLImageProcessor()(images=[Image.fromarray(pixels)], return_tensors="pt")
    media = decode_image(image_file(pixels), config, LIMITS)
    assert [list(segment.grid) for segment in media.segments] == expected["image_grid_thw"].tolist()
    assert media.tokens == expected["image_grid_thw"].prod().item() // 4
    assert_close(values(media), expected["pixel_values"])


@pytest.mark.parametrize(
    ("frames", "size", "rate", "form"),
    [
        (50, (96, 64), 10, "mp4"),
        (7, (100, 80), 2, "avi"),
        (3, (64, 64), 5, "mp4"),
        (1, (56, 56), 5, "mp4"),
        (90, (160, 120), 8, "mov"),
    ],
)
def test_a_video_has_the_frames_and_pixel_values_of_transformers(
    config: VisionConfig, tmp_path: Path, *, frames: int, size: tuple[int, int], rate: int, form: str
) -> None:
    """The library samples by itself wherever that gives at least the processor's least number of frames."""
    from transformers import MiniMaxM3VLVideoProcessor
    from transformers.video_utils import default_sample_indices_fn, read_video_pyav

    def sample(metadata: Any, **_: Any) -> Any:
        if metadata.total_num_frames / metadata.fps >= 4:
            return default_sample_indices_fn(metadata, fps=1.0)
        return np.arange(min(4, frames)) * frames // min(4, frames)

    content = video_file(frames, size, rate, form=form)
    path = tmp_path / f"video.{form}"
    path.write_bytes(content)
    seen, metadata = read_video_pyav(str(path), sample)
    seen = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2)
    expected = MiniMaxM3VLVideoProcessor()(videos=[seen], return_tensors="pt")
    media = decode_video(content, config, LIMITS)
    assert [list(segment.grid) for segment in media.segments] == expected["video_grid_thw"].tolist()
    assert media.seconds == tuple(number / metadata.fps for number in metadata.frames_indices[::2])
    assert_close(values(media), expected["pixel_values_videos"])


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libx264"])
def test_usual_codecs_are_read(config: VisionConfig, codec: str) -> None:
    content = video_file(4, (64, 64), 4, codec=codec, form="webm" if "vp9" in codec else "mp4")
    assert [segment.grid for segment in decode_video(content, config, LIMITS).segments] == [(2, 4, 4)]


def test_a_photo_is_turned_as_its_exif_says(config: VisionConfig) -> None:
    pixels = picture(112, 56)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned = decode_image(image_file(pixels, exif=exif), config, LIMITS)
    upright = decode_image(image_file(np.ascontiguousarray(np.rot90(pixels, -1))), config, LIMITS)
    assert turned.segments[0].grid == (1, 8, 4)
    assert turned.segments[0].digest == upright.segments[0].digest


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_colours_of_every_kind_become_rgb_as_in_the_oracle(config: VisionConfig, mode: str) -> None:
    from transformers import MiniMaxM3VLImageProcessor

    image = Image.fromarray(picture(84, 56)).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG" if mode != "CMYK" else "JPEG")
    expected = MiniMaxM3VLImageProcessor()(images=[Image.open(file).convert("RGB")], return_tensors="pt")
    assert_close(values(decode_image(file.getvalue(), config, LIMITS)), expected["pixel_values"])


def test_content_is_told_apart_and_known_again(config: VisionConfig) -> None:
    one, other = picture(56, 56), picture(56, 56, seed=1)
    digests = [decode_image(image_file(pixels), config, LIMITS).segments[0].digest for pixels in (one, other, one)]
    assert digests[0] == digests[2] != digests[1]
    assert decode_image(image_file(one, "BMP"), config, LIMITS).segments[0].digest == digests[0]
    tall = decode_image(image_file(np.zeros((112, 56, 3), np.uint8)), config, LIMITS)
    wide = decode_image(image_file(np.zeros((56, 112, 3), np.uint8)), config, LIMITS)
    assert tall.segments[0].digest != wide.segments[0].digest


def test_the_frames_of_a_still_image_take_the_memory_of_one(config: VisionConfig) -> None:
    patches = decode_image(image_file(picture(280, 280)), config, LIMITS).segments[0].patches
    assert patches.shape == (400, 3, 2, 14, 14)
    assert patches.base is not None
    assert patches.base.nbytes == 280 * 280 * 3


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (56, 56, (56, 56)),
        (672, 672, (672, 672)),
        (673, 673, (672, 672)),
        (2016, 2016, (672, 672)),
        (1080, 1920, (504, 896)),
        (1, 1, (56, 56)),
        (10, 1000, (28, 560)),
        (42, 70, (56, 56)),  # halves go to the even multiple
    ],
)
def test_sizes_are_multiples_of_a_tile_within_bounds(height: int, width: int, expected: tuple[int, int]) -> None:
    assert fitting_size(height, width, 28, IMAGE_MAX_PIXELS) == expected


def test_frames_are_one_a_second_and_evenly_spread() -> None:
    assert sampled_frames(300, 30.0) == list(range(0, 300, 30))
    assert sampled_frames(30, 30.0) == [0, 7, 15, 22]
    assert sampled_frames(2, 30.0) == [0, 1]
    assert len(sampled_frames(30 * 3600, 30.0)) == 768
    assert sampled_frames(30 * 3600, 30.0)[-1] == 767 * 30 * 3600 // 768


def test_all_frames_together_are_bounded(config: VisionConfig) -> None:
    assert frame_pixels(8, config) == FRAME_MAX_PIXELS
    assert frame_pixels(768, config) * 768 <= VIDEO_MAX_PIXELS * 2
    assert frame_pixels(10**9, config) == MIN_PIXELS


def bomb(width: int, height: int) -> bytes:
    """A PNG whose head promises more than is there."""
    file = bytearray(image_file(np.zeros((8, 8, 3), np.uint8)))
    file[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    file[29:33] = zlib.crc32(bytes(file[12:29])).to_bytes(4, "big")
    return bytes(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no image that can be read: must be one of PNG, JPEG, WEBP, GIF, BMP"),
        (b"%PDF-1.7", "it is no image that can be read"),
        (bomb(8_000, 8_000), "it is 8000 x 8000 pixels: must be at most 50,000,000 in all"),
        (bomb(30_000, 30_000), "it has more than 50,000,000 pixels"),
        (image_file(picture(64, 64))[:-600], "it cannot be decoded as an image: "),
        (image_file(np.zeros((1, 201, 3), np.uint8)), "it is 201 x 1 pixels: one side must be at most 200 times"),
    ],
    ids=["empty", "another format", "large", "enormous", "cut off", "long"],
)
def test_a_bad_image_is_refused_in_one_line(config: VisionConfig, content: bytes, message: str) -> None:
    with pytest.raises(MediaError) as refusal:
        decode_image(content, config, LIMITS)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "limits", "message"),
    [
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", LIMITS, "it is no video that can be read: must be MP4"),
        (video_file(8, (64, 64), 4)[:300], LIMITS, "it cannot be decoded as a video: "),
        (video_file(8, (64, 64), 4), MediaLimits(image_pixels=4000), "it is 64 x 64 pixels: must be at most 4,000"),
        (video_file(8, (64, 64), 4), MediaLimits(video_seconds=1), "it is 2 seconds long: must be at most 1"),
        (video_file(4, (64, 64), 4, codec="ffv1", form="matroska"), LIMITS, "its codec is ffv1: must be one of "),
    ],
    ids=["a playlist", "cut off", "large", "long", "another codec"],
)
def test_a_bad_video_is_refused_in_one_line(
    config: VisionConfig, content: bytes, limits: MediaLimits, message: str
) -> None:
    with pytest.raises(MediaError) as refusal:
        decode_video(content, config, limits)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


def test_decoding_a_video_has_a_time_limit(config: VisionConfig) -> None:
    ticks = iter(range(100))
    with pytest.raises(MediaError, match="decoding it took more than 5 seconds"):
        decode_video(video_file(20, (64, 64), 4), config, MediaLimits(seconds=5), clock=lambda: next(ticks))
