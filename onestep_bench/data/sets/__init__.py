"""The data sets known by name, a file for each family.

To add one, write a file here with a function from the data folder to images uint8 (n, c, h, w) and labels (n,), or
None, and mark it `@dataset("name")`. One whose authors split it takes 'train' or 'test' too; others are split by hash.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
