"""From the bytes of a file to pictures of the size that the vision tower sees: Pillow for images, PyAV for video.

Owns what is decoded at all: a few formats, found by their content and never by what the sender calls them, within
limits that are checked before memory is taken. What a decoder raises on a broken file becomes a MediaError.

Images are turned as their EXIF says and made RGB. Resizing is Pillow's bicubic, which antialiases, rows before columns:
so about 99 of 100 values are those of torchvision (bicubic, antialias on), which the oracle uses, and none differs by
more than 2 of 255.
"""

import io
import time
from collections.abc import Callable

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from m3_worker.media.items import MediaError, MediaLimits, ProcessedMedia
from m3_worker.media.processor import (
    IMAGE_MAX_PIXELS,
    Frame,
    fitting_size,
    frame_pixels,
    process_image,
    process_video,
    sampled_frames,
)
from m3_worker.model.vision_config import VisionConfig

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
VIDEO_CODECS = frozenset({"h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4", "mjpeg"})

# The demuxer is named, so that none is chosen that reads other files: playlists and concatenations do.
_CONTAINERS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("mov", lambda data: data[4:8] == b"ftyp"),
    ("matroska", lambda data: data[:4] == b"\x1a\x45\xdf\xa3"),
    ("avi", lambda data: data[:4] == b"RIFF" and data[8:12] == b"AVI "),
)
_NO_PROTOCOLS = {"protocol_whitelist": "none"}

Clock = Callable[[], float]


def decode_image(data: bytes, config: VisionConfig, limits: MediaLimits) -> ProcessedMedia:
    """The first picture in the file. Raises MediaError."""
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            _check_pixels(image.width, image.height, limits)
            turned = ImageOps.exif_transpose(image).convert("RGB")
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MediaError(f"it has more than {limits.image_pixels:,} pixels") from None
    except UnidentifiedImageError:
        raise MediaError(f"it is no image that can be read: must be one of {', '.join(IMAGE_FORMATS)}") from None
    except Exception as error:  # noqa: BLE001 # decoders raise all sorts of errors on broken files
        raise MediaError(f"it cannot be decoded as an image: {_line(error)}") from None
    height, width = fitting_size(turned.height, turned.width, config.tile, IMAGE_MAX_PIXELS)
    return process_image(resized(turned, height, width), config)


def decode_video(
    data: bytes, config: VisionConfig, limits: MediaLimits, clock: Clock = time.monotonic
) -> ProcessedMedia:
    """The sampled frames of the file's first video stream; its sound is not read. Raises MediaError."""
    container = next((name for name, matches in _CONTAINERS if matches(data)), None)
    if container is None:
        raise MediaError("it is no video that can be read: must be MP4 or MOV, Matroska or WebM, or AVI")
    try:
        return _Video(data, container, config, limits, clock).process()
    except MediaError:
        raise
    except Exception as error:  # noqa: BLE001 # as above
        raise MediaError(f"it cannot be decoded as a video: {_line(error)}") from None


class _Video:
    """One video file on its way; every reading opens it anew."""

    def __init__(self, data: bytes, container: str, config: VisionConfig, limits: MediaLimits, clock: Clock) -> None:
        self._data = data
        self._container = container
        self._config = config
        self._limits = limits
        self._clock = clock
        self._deadline = clock() + limits.seconds

    def process(self) -> ProcessedMedia:
        total, rate = self._measure()
        numbers = sampled_frames(total, rate)
        frames = self._frames(numbers)
        return process_video(frames, numbers[: len(frames)], rate, self._config)

    def _open(self) -> InputContainer:
        return av.open(io.BytesIO(self._data), mode="r", format=self._container, options=_NO_PROTOCOLS)

    def _measure(self) -> tuple[int, float]:
        """(frames, frames per second), from the packets: headers may lie, and not all formats have them."""
        with self._open() as opened:
            if not opened.streams.video:
                raise MediaError("it has no video stream")
            stream = opened.streams.video[0]
            codec = stream.codec_context.name
            if codec not in VIDEO_CODECS:
                raise MediaError(f"its codec is {codec}: must be one of {', '.join(sorted(VIDEO_CODECS))}")
            _check_pixels(stream.codec_context.width, stream.codec_context.height, self._limits)
            rate = float(stream.average_rate or 0)
            total = sum(packet.size > 0 for packet in opened.demux(stream))
        if not total or not rate > 0:
            raise MediaError("it has no frames, or does not say how many there are in a second")
        if total / rate > self._limits.video_seconds:
            raise MediaError(f"it is {total / rate:.0f} seconds long: must be at most {self._limits.video_seconds:.0f}")
        return total, rate

    def _frames(self, numbers: list[int]) -> NDArray[np.uint8]:
        """The frames of these numbers, all resized to the size that fits the first: [F, height, width, 3]."""
        wanted, found = set(numbers), []
        size: tuple[int, int] | None = None
        with self._open() as opened:
            stream = opened.streams.video[0]
            stream.codec_context.thread_count = 1  # of several requests' videos, each keeps to its own thread
            for number, frame in enumerate(opened.decode(stream)):
                if self._clock() > self._deadline:
                    raise MediaError(f"decoding it took more than {self._limits.seconds:.0f} seconds")
                _check_pixels(frame.width, frame.height, self._limits)
                if number in wanted:
                    size = size or fitting_size(
                        frame.height, frame.width, self._config.tile, frame_pixels(len(numbers), self._config)
                    )
                    found.append(resized(_picture(frame), *size))
                if number >= numbers[-1]:
                    break
        if not found:
            raise MediaError("none of its frames can be decoded")
        return np.stack(found)


def resized(picture: Image.Image, height: int, width: int) -> Frame:
    """[height, width, 3]. In two steps, because Pillow may take columns first, which rounds otherwise."""
    rows = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    return np.asarray(rows.resize((width, height), Image.Resampling.BICUBIC))


def _picture(frame: VideoFrame) -> Image.Image:
    return Image.fromarray(frame.to_ndarray(format="rgb24"))


def _check_pixels(width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.image_pixels:
        raise MediaError(f"it is {width} x {height} pixels: must be at most {limits.image_pixels:,} in all")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
