"""The store: work that is never done twice, and what keeps files whole.

Artifacts are folders named by the hash of their recipe and their parents' keys; `memo` makes one or finds it. Beside
them stand files that are either whole or absent, and downloads that are believed only with the right checksum. Nothing
here knows torch, a model or a grid.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "artifacts": [
            "accept",
            "Artifact",
            "CELLS",
            "damaged_files",
            "key_of",
            "locked",
            "memo",
            "META",
            "one_key",
            "root",
            "total",
            "used_by",
        ],
        "downloads": ["fetch"],
        "provenance": ["origin"],
        "files": ["file_digest", "replacing", "write_json", "write_text"],
    },
)
