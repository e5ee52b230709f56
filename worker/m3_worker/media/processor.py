"""From pictures to the patches of the vision tower: how big, how many, and in which order.

Owns M3's arithmetic of images and video, in pure functions; decoding is `decode`'s. Values stay bytes here: the
tower normalises them on its own device, which gets a quarter of the data that way.

    image   sides to multiples of 28 nearest the aspect ratio, area from 3,136 to 451,584: at most 576 tokens
    video   one frame a second, at least 4 (if there are so many) and at most 768, evenly spread; pairs of frames make
            temporal patches; a frame's area goes to at most 602,112 pixels, and all frames together are bounded
Source: transformers' processors of `minimax_m3_vl`, which are also the oracle of the tests. Of the bound on all frames
only the number is there; how it is applied is the usual way of models of this kind (see `frame_pixels`).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m3_worker.media.items import Grid, MediaError, Patches, ProcessedMedia, Segment
from m3_worker.model.vision_config import VisionConfig

Frame = NDArray[np.uint8]
"""[height, width, 3] RGB, of the final size."""

MIN_PIXELS = 4 * 28 * 28
IMAGE_MAX_PIXELS = 451_584
FRAME_MAX_PIXELS = 768 * 28 * 28
VIDEO_MAX_PIXELS = int(64_000 * 28 * 28 * 0.9)
FRAMES_PER_SECOND = 1.0
MIN_FRAMES = 4
MAX_FRAMES = 768
MAX_ASPECT_RATIO = 200


def fitting_size(height: int, width: int, tile: int, max_pixels: int) -> tuple[int, int]:
    """The size (height, width) that a picture is resized to: multiples of `tile`, area from MIN_PIXELS to `max_pixels`.

    A very long picture may come out larger than that, because no side is less than a tile. Raises MediaError for one
    more than 200 times as long as wide.
    """
    longer, shorter = max(height, width), min(height, width)
    if longer > MAX_ASPECT_RATIO * shorter:
        rule = f"one side must be at most {MAX_ASPECT_RATIO} times the other"
        raise MediaError(f"it is {width} x {height} pixels: {rule}")
    fitted = round(height / tile) * tile, round(width / tile) * tile
    if fitted[0] * fitted[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return max(tile, _floor(height / shrink, tile)), max(tile, _floor(width / shrink, tile))
    if fitted[0] * fitted[1] < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (height * width))
        return _ceil(height * grow, tile), _ceil(width * grow, tile)
    return fitted


def sampled_frames(total: int, frames_per_second: float) -> list[int]:
    """Which of a video's frames are seen, by their number from 0."""
    wanted = int(total / frames_per_second * FRAMES_PER_SECOND)
    count = min(max(wanted, MIN_FRAMES), MAX_FRAMES, total)
    return [number * total // count for number in range(count)]


def frame_pixels(frames: int, config: VisionConfig) -> int:
    """The largest area of each of so many frames: all temporal patches together have VIDEO_MAX_PIXELS."""
    share = VIDEO_MAX_PIXELS * config.temporal_patch_size // frames
    return min(FRAME_MAX_PIXELS, max(MIN_PIXELS, share))


def process_image(picture: Frame, config: VisionConfig) -> ProcessedMedia:
    """A still image of a fitting size: one frame, which all frames of its patches repeat."""
    patches, grid = _patches(picture[None], config)
    patches = np.broadcast_to(patches, (patches.shape[0], 3, config.temporal_patch_size, *patches.shape[3:]))
    run_tokens = grid[1] * grid[2] // config.merge_size**2
    return ProcessedMedia("image", (Segment.of(patches, grid, config.merge_size),), run_tokens)


def process_video(
    frames: NDArray[np.uint8], numbers: Sequence[int], frames_per_second: float, config: VisionConfig
) -> ProcessedMedia:
    """A video's sampled frames, [F, height, width, 3] RGB of a fitting size, and their numbers in the whole video.

    An odd frame at the end is repeated. A temporal patch begins when its first frame is shown.
    """
    span = config.temporal_patch_size
    padding = -len(frames) % span
    if padding:
        frames = np.concatenate((frames, np.repeat(frames[-1:], padding, axis=0)))
    times = len(frames) // span
    segments = []
    for start in range(0, times, config.segment_patches):
        end = min(start + config.segment_patches, times)
        patches, grid = _patches(frames[start * span : end * span], config)
        segments.append(Segment.of(patches, grid, config.merge_size))
    _, height, width = segments[0].grid
    seconds = tuple(numbers[time * span] / frames_per_second for time in range(times))
    return ProcessedMedia("video", tuple(segments), height * width // config.merge_size**2, seconds)


def _patches(frames: NDArray[np.uint8], config: VisionConfig) -> tuple[Patches, Grid]:
    """Cut frames, [F, H, W, 3], into patches: F temporal_patch_sizes, or one frame, which stays one."""
    patch, merge = config.patch_size, config.merge_size
    span = min(config.temporal_patch_size, len(frames))
    time, height, width = len(frames) // span, frames.shape[1] // patch, frames.shape[2] // patch
    squares = frames.reshape(time, span, height // merge, merge, patch, width // merge, merge, patch, 3)
    #                        0     1     2                3      4      5               6      7      8
    ordered = squares.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return ordered.reshape(time * height * width, 3, span, patch, patch), (time, height, width)


def _floor(value: float, tile: int) -> int:
    return math.floor(value / tile) * tile


def _ceil(value: float, tile: int) -> int:
    return math.ceil(value / tile) * tile
