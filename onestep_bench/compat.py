"""Repairs for other libraries, each with its reason, each applied only where it is needed."""

import sys
import types

import torch


def import_torchvision() -> None:
    """Import torchvision even where its compiled operators cannot load.

    The registry's torchvision beside a CPU build of torch has no compiled operators, and its Python code then fails
    at import because it registers fake kernels for `nms` and `qnms`. Declaring the two schemas is all the import
    needs; nothing here calls them.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    import torchvision  # noqa: F401

    _keep.append(library)  # a collected Library takes its schemas with it


def import_clip() -> None:
    """Import OpenAI's `clip` beside a setuptools that has no pkg_resources any more (82 and later).

    All it wants of pkg_resources is `packaging`. Raises ImportError where clip is not installed.
    """
    try:
        import pkg_resources  # noqa: F401
    except ImportError:
        import packaging.version

        sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)
        try:
            import clip
        finally:
            del sys.modules["pkg_resources"]
    import clip  # noqa: F401


_keep: list[torch.library.Library] = []
