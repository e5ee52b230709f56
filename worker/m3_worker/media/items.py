"""The nouns of images and video: limits, what processing makes of one, and where it stands in a prompt.

Owns no decision: bytes come from `sources`, pictures from `decode`, patches from `processor`, places
in the prompt from `prompt`; `loader` walks that way. Imports no torch: the vision tower is the runner's.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["image", "video"]
Grid = tuple[int, int, int]
"""Patches in time, height and width."""
Patches = NDArray[np.uint8]
"""[t * h * w, 3, temporal_patch_size, patch_size, patch_size], in the tower's order; not to be written to."""


class MediaError(ValueError):
    """An image or a video that is refused. The message is one line with the rule, `where` what the client calls it."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where


class MediaMemoryError(Exception):
    """All requests together hold as much media as they may: this one may come again later."""


@dataclass(frozen=True, slots=True)
class MediaReference:
    """An image or a video as a request names it."""

    kind: Kind
    url: str
    where: str
    """What the client calls it, for complaints: "messages[0].content[1]"."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """How much media a stranger may send; see the settings of the same names."""

    items: int = 32
    """Images and videos of one request."""
    item_bytes: int = 32 * 2**20
    """One file, as it was sent or fetched."""
    image_pixels: int = 50_000_000
    """Width x height of an image, or of a video's frame, before it is resized."""
    video_seconds: float = 600.0
    """A video's length."""
    seconds: float = 60.0
    """Time to fetch one item, and as much to decode it."""
    held_bytes: int = 2**30
    """Patches of all requests at one time."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What the vision tower sees at once: a still image, or a few temporal patches of a video."""

    patches: Patches
    grid: Grid
    digest: bytes
    """sha256 of content and shape."""

    @classmethod
    def of(cls, patches: Patches, grid: Grid, merge_size: int) -> "Segment":
        """Hash the patches. Of a still image, whose frames are one, the one is hashed."""
        distinct = patches if patches.strides[2] else patches[:, :, :1]
        head = repr((grid, merge_size, patches.shape)).encode()
        return cls(patches, grid, sha256(head + np.ascontiguousarray(distinct).tobytes()).digest())


@dataclass(frozen=True, slots=True)
class ProcessedMedia:
    """One image or video, ready for a prompt."""

    kind: Kind
    segments: tuple[Segment, ...]
    """One for an image."""
    run_tokens: int
    """Placeholders that stand together: those of an image, or of one temporal patch of a video."""
    seconds: tuple[float, ...] = ()
    """Of a video: when each of its temporal patches begins."""

    @property
    def tokens(self) -> int:
        """All its placeholders."""
        return self.run_tokens * sum(segment.grid[0] for segment in self.segments)


@dataclass(frozen=True, slots=True)
class MediaItem:
    """Placeholders that stand together in a prompt, and what they stand for: all of an image, or a part of a video."""

    start: int
    """Its first placeholder among the prompt's tokens."""
    tokens: int
    digest: bytes
    """Of the segment; what the tokens up to here say with it is all that their embeddings depend on."""
    pixels: Patches
    """Of the segment."""
    grid: Grid
    """Of the segment."""
    first_row: int = 0
    """Which of the segment's embeddings its first placeholder takes."""
