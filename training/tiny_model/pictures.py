"""Pictures for the vision tower to learn from: one shape of one colour on a plain ground, and what to say of it.

Owns the drawing and the layout of patches (that of M3's image processor, for pictures that need no resizing). A still
picture fills both frames of a patch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiny_model.shape import FRAMES, MERGE, PATCH_PIXELS

CELL_PIXELS = MERGE * PATCH_PIXELS
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 60, 220),
    "yellow": (245, 220, 30),
    "orange": (250, 140, 20),
    "purple": (130, 40, 170),
    "black": (10, 10, 10),
}
SHAPES = ("circle", "square", "triangle")
GROUNDS = ((255, 255, 255), (225, 225, 225), (200, 210, 220))
CELLS = (2, 3, 4, 5)
QUESTIONS = ("What is in this picture?", "What do you see?", "Describe the image.", "What is this?")
COLOUR_QUESTIONS = ("Which colour is it?", "What colour does it have?")
SHAPE_QUESTIONS = ("Which shape is it?", "What shape do you see?")
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])  # CLIP's, as M3's image processor takes them
_STD = np.array([0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True)
class Picture:
    """pixels: [patches, channels x frames x 14 x 14] fp32. grid: frames, rows and columns of patches."""

    pixels: NDArray[np.float32]
    grid: tuple[int, int, int]
    question: str
    answer: str

    @property
    def tokens(self) -> int:
        """Placeholders that it takes in a prompt."""
        return self.grid[0] * self.grid[1] * self.grid[2] // MERGE**2


def draw(random: np.random.Generator) -> Picture:
    """A picture with a question."""
    colour = str(random.choice(list(COLOURS)))
    shape = str(random.choice(SHAPES))
    cells = int(random.choice(CELLS))
    image = paint(cells * CELL_PIXELS, shape, colour, random)
    kind = random.integers(4)
    if kind == 0:
        question, answer = random.choice(COLOUR_QUESTIONS), f"It is {colour}."
    elif kind == 1:
        question, answer = random.choice(SHAPE_QUESTIONS), f"It is a {shape}."
    else:
        article = "an" if colour[0] in "aeiou" else "a"
        question, answer = random.choice(QUESTIONS), f"I see {article} {colour} {shape}."
    return Picture(patches(image), (1, cells * MERGE, cells * MERGE), str(question), answer)


def paint(size: int, shape: str, colour: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """[size, size, 3]: the shape near the middle, of a random size, a little noise over everything."""
    radius = size * random.uniform(0.28, 0.42)
    x0, y0 = size / 2 + random.uniform(-0.08, 0.08, 2) * size
    y, x = np.mgrid[:size, :size] + 0.5
    if shape == "circle":
        inside = (x - x0) ** 2 + (y - y0) ** 2 < radius**2
    elif shape == "square":
        inside = np.maximum(abs(x - x0), abs(y - y0)) < radius * 0.9
    else:
        inside = (y < y0 + radius * 0.8) & (y - (y0 - radius) > 1.7 * abs(x - x0))
    ground = np.array(GROUNDS[random.integers(len(GROUNDS))], dtype=float)
    image = np.where(inside[..., None], np.array(COLOURS[colour], dtype=float), ground)
    image += random.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def patches(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[height, width, 3], both multiples of 28, to normalised patches, four neighbours after one another."""
    rows, columns = (side // CELL_PIXELS for side in image.shape[:2])
    values = (image / 255 - _MEAN) / _STD
    cells = values.reshape(rows, MERGE, PATCH_PIXELS, columns, MERGE, PATCH_PIXELS, 3)
    ordered = cells.transpose(0, 3, 1, 4, 6, 2, 5)  # row, column, row and column in the cell, channel, y, x
    frames = np.repeat(ordered[:, :, :, :, :, None], FRAMES, axis=5)
    return frames.reshape(rows * columns * MERGE**2, -1).astype(np.float32)
