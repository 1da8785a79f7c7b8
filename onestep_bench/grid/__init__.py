"""Grids: a YAML file to cells, cells to Dask, and each cell to one executed notebook.

Planning reads YAML and notebook JSON only, with neither torch nor Dask; running needs the extra `grid`. Nothing here
knows a model or a method: a cell is a notebook with parameters.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cells": ["Cell", "executed_path", "failed_path", "Grid", "Status", "status_of"],
        "plan": ["read_grid"],
        "progress": ["survey", "watch"],
        "engine": ["run", "run_cells"],
    },
)
