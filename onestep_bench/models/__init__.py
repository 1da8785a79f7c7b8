"""Models: what training leaves, as a notebook holds it.

`Model` and `Pairs` are artifacts with something to ask of them; `sample` draws images by index. Checkpoints are read
and written here, other people's formats read (`zoo/`), costs counted, and one-step generators exported.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "model": ["FOREIGN", "Model", "Pairs", "stored"],
        "sampling": ["BATCH", "sample", "sample_batches"],
        "pretrained": ["find", "import_model", "load_pretrained"],
        "export": ["OneStep"],
    },
)
