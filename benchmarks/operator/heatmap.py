"""Heat maps side by side as SVG text: rows of figures around 1, white at 1, red above, blue below. Needs nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

CELL_WIDTH, CELL_HEIGHT, GAP, LEFT, TOP, BOTTOM = 10, 12, 32, 64, 92, 78
RED, BLUE = (178, 24, 43), (33, 102, 172)
SPAN = 0.6
"""From 1, above or below, where a colour is full."""


@dataclass(frozen=True)
class Panel:
    """One map: rows of figures, all of the same length."""

    title: str
    note: str
    rows: Sequence[Sequence[float]]


def heatmaps(title: str, description: str, x_title: str, y_title: str, panels: Sequence[Panel]) -> str:
    """The picture."""
    rows, columns = len(panels[0].rows), len(panels[0].rows[0])
    width = LEFT + len(panels) * (columns * CELL_WIDTH + GAP)
    height = TOP + rows * CELL_HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui,sans-serif" '
        'font-size="12" fill="#222" role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(title)}</title><desc id="desc">{escape(description)}</desc>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="28" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for index, panel in enumerate(panels):
        parts += _panel(panel, LEFT + index * (columns * CELL_WIDTH + GAP), x_title)
    middle = TOP + rows * CELL_HEIGHT / 2
    parts.append(
        f'<text x="24" y="{middle}" text-anchor="middle" transform="rotate(-90 24 {middle})">{escape(y_title)}</text>'
    )
    parts += [
        f'<text x="{LEFT - 6}" y="{TOP + row * CELL_HEIGHT + 11}" text-anchor="end" font-size="10">{row}</text>'
        for row in range(0, rows, 4)
    ]
    parts += _legend(LEFT, height - 30)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, left: int, x_title: str) -> list[str]:
    columns, bottom = len(panel.rows[0]), TOP + len(panel.rows) * CELL_HEIGHT
    parts = [
        f'<text x="{left}" y="{TOP - 28}" font-weight="bold">{escape(panel.title)}</text>',
        f'<text x="{left}" y="{TOP - 11}" fill="#555">{escape(panel.note)}</text>',
    ]
    parts += [
        f'<rect x="{left + column * CELL_WIDTH}" y="{TOP + row * CELL_HEIGHT}" width="{CELL_WIDTH}" '
        f'height="{CELL_HEIGHT}" fill="{_color(value)}"/>'
        for row, values in enumerate(panel.rows)
        for column, value in enumerate(values)
    ]
    parts.append(
        f'<rect x="{left}" y="{TOP}" width="{columns * CELL_WIDTH}" height="{bottom - TOP}" fill="none" stroke="#999"/>'
    )
    parts += [
        f'<text x="{left + (column + 0.5) * CELL_WIDTH}" y="{bottom + 13}" text-anchor="middle" font-size="10">'
        f"{column}</text>"
        for column in range(0, columns, 8)
    ]
    middle = left + columns * CELL_WIDTH / 2
    return [*parts, f'<text x="{middle}" y="{bottom + 28}" text-anchor="middle">{escape(x_title)}</text>']


def _legend(left: int, top: int) -> list[str]:
    parts = []
    for step in range(25):
        value = 1 - SPAN + step * SPAN / 12
        parts.append(f'<rect x="{left + 8 * step}" y="{top}" width="8" height="12" fill="{_color(value)}"/>')
    for step, label in ((0, f"{1 - SPAN:g}"), (12, "1 = the mean"), (24, f"{1 + SPAN:g} and more")):
        parts.append(
            f'<text x="{left + 8 * step + 4}" y="{top + 25}" text-anchor="middle" font-size="10">{label}</text>'
        )
    return parts


def _color(value: float) -> str:
    share = min(abs(value - 1) / SPAN, 1.0)
    red, green, blue = (round(255 + (full - 255) * share) for full in (RED if value > 1 else BLUE))
    return f"#{red:02x}{green:02x}{blue:02x}"
