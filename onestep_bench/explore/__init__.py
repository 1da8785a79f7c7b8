"""Playing with trained models in a notebook: widgets where somebody looks on, the same pictures without.

`pictures` makes images of models and noise, `choice` finds models, `panels` puts the two under sliders, `chart` is the
figure whose points show their samples, `recipe` writes a grid cell, and `watch` draws a training as it goes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "choice": ["of_report", "of_store"],
        "pictures": ["between", "level", "side_by_side", "slerp", "walk"],
        "panels": ["levels", "morph", "samples"],
        "chart": ["figure", "read_scores", "Scores", "scores_of"],
        "recipe": ["cell", "designer", "Recipe"],
        "screen": ["live"],
        "watching": ["watch"],
    },
)
