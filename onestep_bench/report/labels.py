"""Names beside the points of a plot, off its markers, its lines and each other."""

from collections.abc import Iterable
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

# By hand: where our points crowd, adjustText leaves names on names, and textalloc's lines to names cross other points.

HALO = [Stroke(linewidth=2, foreground="white"), Normal()]
# Where a name may stand: right of its point, left, above and below it, then the same farther out.
_PLACES = list(product((7, 11, 18, 26, 36, 48, 62, 78, 96), (0, 180, 30, -30, 150, -150, 60, -60, 90, -90)))
_FAR = 14  # points, from which on a name gets a line


def label_points(axes: Axes, points: list[tuple], taken: Iterable[Text] = ()) -> None:
    """Write each name beside its point (x, y, name, colour, font size).

    Greedy and deterministic: every name takes the least crowded place, the nearest of equals; a far one gets a thin
    line. Call it last: it measures in pixels. taken: texts that already stand.
    """
    pixels = axes.figure.dpi / 72
    boxes = [text.get_window_extent() for text in taken]
    drawn = [(line, line.get_transform().transform_path(line.get_path())) for line in axes.get_lines()]
    dots = np.concatenate([path.vertices for _, path in drawn])
    lines = [path for line, path in drawn if line.get_linestyle() != "None"]
    frame = axes.get_window_extent().padded(-6)
    for x, y, name, colour, size in points:
        text = axes.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            color=colour,
            fontsize=size,
            va="center",
            zorder=5,
            path_effects=HALO,
        )
        dot, extent = axes.transData.transform((x, y)), text.get_window_extent()
        places = [_place(dot, extent.size, angle, radius * pixels, radius > _FAR) for radius, angle in _PLACES]
        box, leader = min(places, key=lambda place: _crowding(*place, boxes, dots, lines, frame))
        text.set_position(((box.x0 - dot[0]) / pixels, ((box.y0 + box.y1) / 2 - dot[1]) / pixels))
        boxes.append(box)
        if leader:
            lines.append(leader)
            ends = axes.transData.inverted().transform(leader.vertices)
            axes.plot(*ends.T, color=colour, linewidth=0.5, alpha=0.7, zorder=1, scalex=False, scaley=False)


def _place(dot: np.ndarray, size: np.ndarray, angle: float, radius: float, far: bool) -> tuple[Bbox, Path | None]:
    """The box of a text whose nearest edge is `radius` from the dot in that direction; if far, the line to it."""
    across, up = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    width, height = size
    left = 0 if across > 0.1 else -width if across < -0.1 else -width / 2
    box = Bbox.from_bounds(dot[0] + radius * across + left, dot[1] + radius * up + (up - 1) * height / 2, width, height)
    return box, Path([dot, np.clip(dot, box.min, box.max)]) if far else None


def _crowding(
    box: Bbox, leader: Path | None, boxes: list[Bbox], dots: np.ndarray, lines: list[Path], frame: Bbox
) -> int:
    """How much a box collides with other texts, the frame, markers and lines, in this order of harm."""
    harm = 8 * box.count_overlaps(boxes) + 4 * (4 - frame.count_contains(box.corners()))
    harm += 3 * box.padded(5).count_contains(dots) + any(line.intersects_bbox(box, filled=False) for line in lines)
    return harm + (2 * sum(leader.intersects_bbox(other, filled=False) for other in boxes) if leader else 0)
