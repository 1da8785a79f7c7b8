"""Data: images by name, from files that are held against their checksums, in one shape.

`load` gives uint8 images (n, c, h, w) with integer labels and a hash of both, from a registered name (`sets/`, a file
for each), an EDM zip, or a folder or tar. Other people's files (archives, pickles) are read here without running
anything of theirs, and `tool` makes and checks data sets.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loading": ["load", "names"],
        "registry": ["Dataset", "dataset"],
        "pixels": ["to_uint8", "to_unit"],
        "streams": ["Images", "images_at"],
    },
)
