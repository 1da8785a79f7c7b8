"""Networks: the U-Nets of the EDM zoo by parameter name, their layers, the papers' sizes, and critics.

A network maps scaled images and noise labels to a prediction and knows nothing of paths or methods: what the prediction
means is the denoiser's business.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "unet": ["DhariwalUNet", "SongUNet"],
        "build": ["ARCHITECTURES", "build", "size_of", "sized"],
        "sizes": ["SIZES"],
    },
)
