"""What a notebook shows: widgets where somebody looks on, else the picture they would begin with."""

import base64
import io
import os
import sys
from collections.abc import Callable, Mapping
from html import escape

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from onestep_bench.data.pixels import to_uint8
from onestep_bench.errors import OnestepError
from onestep_bench.store.notes import SCRATCH

_SIDE = 56  # pixels of an image on the screen


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
        self._shown = widgets() if live() else picture()

    def __repr__(self) -> str:
        return "explore.Panel"

    def _repr_mimebundle_(self, **_) -> dict:
        if not isinstance(self._shown, Figure):
            return self._shown._repr_mimebundle_() | {"text/plain": repr(self)}
        file = io.BytesIO()
        self._shown.savefig(file, format="png", bbox_inches="tight")
        return {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": repr(self)}


def table(rows: Callable[[], Mapping[str, Tensor]]) -> str:
    """Rows of images by name as HTML whose pixels stay square; of a user's mistake, its line."""
    try:
        lines = [_line(name, images) for name, images in rows().items()]
    except OnestepError as error:
        return f"<p role='alert'>{escape(str(error))}</p>"
    return f"<div style='overflow-x:auto'><table>{''.join(lines)}</table></div>"


def strip(name: str, png: str, width: int) -> str:
    """A row of `table` whose images stand in one picture, base64 of a PNG, `width` images wide."""
    picture = f"<img alt='{escape(name)}' src='data:image/png;base64,{png}' style='image-rendering:pixelated;"
    return f"<p>{escape(name)}</p>{picture}width:{_SIDE * width}px;max-width:100%'>"


def _line(name: str, images: Tensor) -> str:
    cells = "".join(
        f"<img alt='{escape(name)}, {k}' src='data:image/png;base64,{_png(image)}' "
        f"style='image-rendering:pixelated;width:{_SIDE}px;height:{_SIDE}px;margin:2px'>"
        for k, image in enumerate(images)
    )
    return f"<tr><td style='padding-right:1em'>{escape(name)}</td><td style='white-space:nowrap'>{cells}</td></tr>"


def _png(image: Tensor) -> str:
    pixels = (image if image.dtype == torch.uint8 else to_uint8(image)).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
