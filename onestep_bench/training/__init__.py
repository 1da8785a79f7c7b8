"""Training: `fit`, the one loop, with its settings, its data source, its state, and ranks that share the work.

A method only yields losses; everything that methods have in common (optimisers, EMA, precision, checkpoints, exact
resume, several devices) stands here once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["TrainConfig"],
        "loop": ["fit"],
        "source": ["Source"],
        "state": ["LogRow"],
        "ranks": ["device", "device_name"],
    },
)
