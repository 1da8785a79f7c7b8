"""Reports: executed notebooks to score rows, tables, figures, sample sheets and one HTML page.

A report is a pure function of the notebooks: equal rows give equal bytes. `plots` holds the pictures that notebooks
draw of images and curves.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "page": ["render"],
        "tables": ["read_rows", "read_strips", "summarise", "table"],
        "figures": ["fid_vs_cost", "fid_vs_params", "fid_vs_steps"],
        "samples": ["sample_sheet"],
    },
)
