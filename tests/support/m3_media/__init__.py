"""Small images and videos for tests, drawn from a seed, and their files."""

import base64
import io

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(width: int, height: int, seed: int = 0, detail_pixels: int = 8) -> NDArray[np.uint8]:
    """[height, width, 3]: smooth coloured clouds; noise if `detail_pixels` is 1."""
    clouds = (height // detail_pixels + 2, width // detail_pixels + 2, 3)
    noise = np.random.default_rng(seed).integers(0, 256, clouds, dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def image_file(pixels: NDArray[np.uint8], form: str = "PNG", **options: object) -> bytes:
    """The picture as a file of that format."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def video_file(
    frames: int, size: tuple[int, int], rate: int, *, codec: str = "mpeg4", form: str = "mp4", seed: int = 0
) -> bytes:
    """A picture of that width and height that moves to the right, `rate` frames a second."""
    file = io.BytesIO()
    width, height = size
    still = picture(width, height, seed)
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            moved = np.ascontiguousarray(np.roll(still, 5 * number, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def data_url(content: bytes, mime: str = "image/png") -> str:
    """The content as a base64 data: URL."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
