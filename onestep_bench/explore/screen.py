"""What a notebook shows: widgets where somebody looks on, else the picture they would begin with."""

import base64
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from onestep_bench.data.pixels import to_uint8
from onestep_bench.errors import OnestepError, needs_extra
from onestep_bench.store.notes import SCRATCH

_SIDE = 56  # pixels of an image on the screen, at least


def live() -> bool:
    """Whether the kernel belongs to a notebook that somebody has open: in JupyterLab, VS Code or Colab.

    What executes notebooks unattended (papermill, a grid, nbconvert, nbval) answers no widget.
    """
    opened = {"JPY_SESSION_NAME", "VSCODE_PID"} & os.environ.keys() or "google.colab" in sys.modules
    return bool(opened) and not {SCRATCH, "PYTEST_VERSION"} & os.environ.keys()


class Panel:
    """The value of a cell: widgets, or a picture of how they would begin.

    widgets: makes them; picture: draws the other. Only what is shown is made.
    """

    def __init__(self, widgets: Callable[[], object], picture: Callable[[], Figure]):
        if live():
            needs_extra("lab", "a panel of widgets", "ipywidgets", "anywidget")
        self._shown = widgets() if live() else picture()

    def __repr__(self) -> str:
        return "explore.Panel"

    def _repr_mimebundle_(self, **_) -> dict:
        if not isinstance(self._shown, Figure):
            return self._shown._repr_mimebundle_() | {"text/plain": repr(self)}
        file = io.BytesIO()
        self._shown.savefig(file, format="png", bbox_inches="tight")
        return {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": repr(self)}


@contextmanager
def told(place) -> Iterator[None]:
    """What goes wrong in this block is a line in `place`, an HTML widget: nobody sees what a callback raises.

    What is no user's mistake is raised as well, for the kernel's log.
    """
    try:
        yield
    except OnestepError as error:
        place.value = alert(str(error))
    except Exception as error:
        place.value = alert(f"{type(error).__name__}: {error}; all of it is in the log (View > Show Log Console)")
        raise


def alert(text: str) -> str:
    """A line, as HTML, of what went wrong."""
    return f"<p role='alert'>{escape(text)}</p>"


def table(rows: Mapping[str, Tensor | str]) -> str:
    """Rows of images by name as HTML whose pixels stay square; a text in their place stands as it is."""
    name_cell, row_cell = "<td style='padding-right:1em'>", "<td style='white-space:nowrap'>"
    lines = (f"<tr>{name_cell}{escape(name)}</td>{row_cell}{_cells(name, row)}</td></tr>" for name, row in rows.items())
    return f"<div style='overflow-x:auto'><table>{''.join(lines)}</table></div>"


def strip(name: str, png: str) -> str:
    """A row of square images that stand side by side in one picture, base64 of a PNG, under its name."""
    # A PNG tells its width and height in bytes 16 to 24.
    header = base64.b64decode(png[:64])
    wide, side = (int.from_bytes(header[at : at + 4]) for at in (16, 20))
    picture = f"<img alt='{escape(name)}' src='data:image/png;base64,{png}' style='image-rendering:pixelated;"
    return f"<p>{escape(name)}</p>{picture}width:{wide * _factor(side)}px;max-width:100%'>"


def _cells(name: str, row: Tensor | str) -> str:
    if isinstance(row, str):
        return f"<span role='alert'>{escape(row)}</span>"
    side = row.shape[-1] * _factor(row.shape[-1])
    return "".join(
        f"<img alt='{escape(name)}, {k}' src='data:image/png;base64,{_png(image)}' "
        f"style='image-rendering:pixelated;width:{side}px;height:{side}px;margin:2px'>"
        for k, image in enumerate(row)
    )


def _factor(side: int) -> int:
    """By which whole number images of this side are enlarged: so no pixel is wider than another."""
    return -(-_SIDE // side)


def _png(image: Tensor) -> str:
    pixels = (image if image.dtype == torch.uint8 else to_uint8(image)).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
