"""Reports: executed notebooks to score rows, tables, figures, sample sheets and one HTML page.

A report is a pure function of the notebooks: equal rows give equal bytes. `plots` holds the pictures that notebooks
draw of images and curves. What may be concluded stands in `statistics`: its unit is the training run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "page": ["render"],
        "tables": ["read_rows", "read_strips", "summarise", "table"],
        "figures": ["fid_vs_cost", "fid_vs_latency", "fid_vs_params", "fid_vs_steps"],
        "comparisons": ["copying", "held_out", "judge_order", "judges", "two_by_two"],
        "statistics": ["components", "differences", "generalisation_gap", "rank_disagreement"],
        "recipes": ["results", "search_table"],
        "samples": ["sample_sheet"],
        "judged": ["judged_by"],
    },
)
