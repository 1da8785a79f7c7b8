"""Names beside the points of a plot, off its markers, its lines and each other."""

from collections.abc import Iterable
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from onestep_bench.report.tables import measured

# By hand: where our points crowd, adjustText leaves names on names, and textalloc's lines to names cross other points.

# A pale box behind a name: letters with an outline each would make the files of a report three times as large.
BACK = {"facecolor": "white", "alpha": 0.65, "edgecolor": "none", "pad": 0.6}
# Where a name may stand: right of its point, left, above and below it, then the same farther out.
_PLACES = list(product((7, 11, 18, 26, 36, 48, 62, 78, 96), (0, 180, 30, -30, 150, -150, 60, -60, 90, -90)))
_FAR = 14  # points, from which on a name gets a line


def name_ends(axes: Axes, points: list[tuple], size: float = 8.5) -> None:
    """Write names (x, y, name, colour) in a column right of the axes, as high as their points where there is room.

    Names keep the order of their points, never touch, and a thin line leads to each. Call it last.
    """
    if not points:
        return
    pixels = axes.figure.dpi / 72
    frame, apart = axes.get_window_extent(), 1.35 * size * pixels
    points = sorted(points, key=lambda point: (-point[1], point[2]))
    wanted = [axes.transData.transform(point[:2])[1] for point in points]
    left = frame.x1 + 14 * pixels
    for (x, y, name, colour), height in zip(points, _spread(wanted, apart, frame.y0, frame.y1), strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=((left - frame.x0) / frame.width, (height - frame.y0) / frame.height),
            textcoords="axes fraction",
            color=colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)}
            | {"shrinkA": 1, "shrinkB": 4},
        )


def name_column(axes: Axes, side: int, column: list[tuple], bold: set[str]) -> None:
    """Write (height, name, number) beside the left (0) or right (1) edge of axes, the names in `bold` in black."""
    for height, name, number in column:
        words = f"{name}   {measured(number)}" if side == 0 else f"{measured(number)}   {name}"
        axes.annotate(
            words,
            (side, height),
            xytext=(16 * side - 8, 0),
            textcoords="offset points",
            ha="left" if side else "right",
            va="center",
            fontsize=8.5,
            color="0.1" if name in bold else "0.45",
            annotation_clip=False,
        )


def _spread(wanted: list[float], apart: float, low: float, high: float) -> list[float]:
    """Heights in falling order, so near the wanted ones (in that order) as may be and at least `apart` from each other.

    Neighbours that would touch form a block, which stands where their mean wants it (Dwyer, Marriott and Stuckey 2006:
    blocks merge until none overlap); the column is then pushed into [low, high] as far as it fits.
    """
    blocks: list[list[float]] = []  # [mean of where its top wants to be, number of names]
    for height in wanted:
        blocks.append([height, 1])
        while len(blocks) > 1 and blocks[-2][0] - blocks[-2][1] * apart < blocks[-1][0]:
            top, count = blocks.pop()
            above, others = blocks[-1]
            blocks[-1] = [(above * others + (top + others * apart) * count) / (others + count), others + count]
    heights = [top - i * apart for top, count in blocks for i in range(int(count))]
    for i, height in enumerate(heights):
        heights[i] = min(height, (heights[i - 1] if i else high + apart) - apart)
    for i in reversed(range(len(heights))):
        heights[i] = max(heights[i], (heights[i + 1] if i + 1 < len(heights) else low - apart) + apart)
    return heights


def label_points(axes: Axes, points: list[tuple], taken: Iterable[Text] = ()) -> None:
    """Write each name beside its point (x, y, name, colour, font size).

    Greedy and deterministic: every name takes the least crowded place, the nearest of equals; a far one gets a thin
    line. Call it last: it measures in pixels. taken: texts that already stand.
    """
    if not points:
        return
    pixels = axes.figure.dpi / 72
    boxes = [text.get_window_extent() for text in taken]
    drawn = [(line, line.get_transform().transform_path(line.get_path())) for line in axes.get_lines()]
    dots = np.concatenate([path.vertices for _, path in drawn])
    lines = [path for line, path in drawn if line.get_linestyle() != "None"] + _error_bars(axes)
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
            bbox=BACK,
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


def _error_bars(axes: Axes) -> list[Path]:
    """Those that were drawn, in pixels."""
    found = [one for one in axes.collections if isinstance(one, LineCollection)]
    return [path.transformed(one.get_transform()) for one in found for path in one.get_paths()]


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
    harm = 8 * box.count_overlaps(boxes) + 9 * (4 - frame.count_contains(box.corners()))
    harm += 3 * box.padded(5).count_contains(dots) + any(line.intersects_bbox(box, filled=False) for line in lines)
    if not leader:
        return harm
    return (
        harm
        + 2 * sum(leader.intersects_bbox(other, filled=False) for other in boxes)
        + 2 * min(2, _passed(leader, dots))
    )


def _passed(leader: Path, dots: np.ndarray, near: float = 8) -> int:
    """How many dots, within so many pixels, a line to a name passes on its way, and might seem to lead to."""
    start, end = leader.vertices
    way = end - start
    along = np.clip((dots - start) @ way / max(way @ way, 1e-9), 0, 1)
    aside = np.linalg.norm(dots - start - along[:, None] * way, axis=1)
    return int(((aside < near) & (np.linalg.norm(dots - start, axis=1) > near)).sum())
